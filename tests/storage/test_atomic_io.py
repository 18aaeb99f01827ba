"""A folder is replaced as one: whatever moment a writer is killed at, the old or the new one is found again."""

import os
import stat

import pytest

from rlhf_pg.storage.atomic_io import clean, replace_folder, usual_modes, write_new


class Dead(BaseException):
    """Stands for SIGKILL."""


def folder(path, text: str):
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_folder_takes_the_place_of_another(tmp_path):
    model = folder(tmp_path / "model", "old")
    replace_folder(folder(tmp_path / ".tmp-model", "new"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (model / "file").read_text() == "new"


@pytest.mark.parametrize(("renames", "text"), [(0, "old"), (1, "old"), (2, "new"), (3, "new")])
def test_killed_before_any_rename_one_of_the_two_is_there_after_cleaning(tmp_path, monkeypatch, renames, text):
    model, unfinished = folder(tmp_path / "model", "old"), folder(tmp_path / ".tmp-model", "new")
    rename, left = os.rename, [renames]

    def counted(source, target):
        if left[0] == 0:
            raise Dead
        left[0] -= 1
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", counted)
        if renames < 3:
            with pytest.raises(Dead):
                replace_folder(unfinished, model)
        else:
            replace_folder(unfinished, model)
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (model / "file").read_text() == text


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o644)])
def test_files_that_others_wrote_get_the_usual_mode(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        (tmp_path / "inner").mkdir()
        write_new(tmp_path / "inner" / "a", b"x", 0o600)
        write_new(tmp_path / "b", b"x", 0o666)
        usual_modes(tmp_path)
        write_new(tmp_path / "ours", b"x")
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in files} == {"a": mode, "b": mode, "ours": mode}
