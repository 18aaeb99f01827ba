from rlhf_pg.display.text import visible


def test_control_and_direction_characters_become_their_escapes_and_text_stays():
    assert visible("a\x1b[31mb\u202ec\x00\x9bd\u200b é漢") == "a\\x1b[31mb\\u202ec\\x00\\x9bd\\u200b é漢"
    assert visible("1\n2\t3") == "1⏎2⇥3"
    assert visible("1\n2\x1b", keep="\n") == "1\n2\\x1b"
    assert visible("lone \ud800") == "lone \\ud800"
