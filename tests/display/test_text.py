import io
import math

import pytest
from rich.console import Console

from rlhf_pg.display.text import token_table, visible


class Letters:
    """Ids are code points; id 0 is half a character."""

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(i) if i else "\ufffd" for i in ids)

    def convert_ids_to_tokens(self, token):
        return f"<part {token}>"


def printed(row):
    console = Console(file=io.StringIO(), width=120)
    console.print(token_table(row, Letters()))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_control_and_direction_characters_become_their_escapes_and_text_stays():
    assert visible("a\x1b[31mb\u202ec\x00\x9bd\u200b é漢") == "a\\x1b[31mb\\u202ec\\x00\\x9bd\\u200b é漢"
    assert visible("1\n2\t3") == "1⏎2⇥3"
    assert visible("1\n2\x1b", keep="\n") == "1\n2\\x1b"
    assert visible("lone \ud800") == "lone \\ud800"


def test_each_token_has_its_position_id_text_logp_and_probability():
    text = printed({"tokens": [65, 66], "logp": [math.log(0.25), -0.001], "advantage": [1.5, -1.5], "reward": 1.0})
    row = next(line for line in text.splitlines() if "'A'" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["0", "65", "'A'", "-1.386", "0.250", "yes", "1.500"]
    assert "-1.500" in next(line for line in text.splitlines() if "'B'" in line)


def test_markup_and_escapes_in_token_text_are_literal():
    text = printed({"tokens": [ord("["), 27, ord("\n")], "logp": [-1.0, -1.0, -1.0], "prompt_id": "[red]x[/red]"})
    assert "'['" in text and "'\\x1b'" in text and "'\\n'" in text and "[red]x[/red]" in text
    assert "\x1b" not in text


def test_part_of_a_character_is_shown_by_its_vocabulary_entry():
    assert "<part 0>" in printed({"tokens": [0], "logp": [-1.0]})


def test_missing_logps_and_masked_tokens_are_shown_as_such():
    text = printed({"tokens": [65, 66], "logp": [-1.0], "mask": [True, False], "reward": None})
    row = next(line for line in text.splitlines() if "'B'" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["1", "66", "'B'", "-", "-", "no", "-"]


def test_a_row_without_tokens_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no 'tokens' \(it has prompt\)"):
        token_table({"prompt": "x"}, Letters())
