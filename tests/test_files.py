"""utils/files.py: files are written in one step."""

import os
from pathlib import Path

import pytest

from nemo_chameleon.utils.files import write_atomically


def test_a_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever writing ends, as on a full disk, the file is as it was, and nothing lies beside it.

    A file that has its new name has its new contents on the disk.
    """
    file = tmp_path / "folder" / "file"
    write_atomically(file, "old")
    sync, replace, done = os.fsync, Path.replace, []

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    for place, name in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
            patch.setattr(place, name, full)
            write_atomically(file, "new")
        assert file.read_text() == "old"
        assert [*file.parent.iterdir()] == [file]

    def noted(beside: Path, to: Path) -> Path:
        done.append("replace")
        return replace(beside, to)

    def synced(number: int) -> None:
        done.append("fsync")
        sync(number)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", noted)
    write_atomically(file, b"new")
    assert file.read_text() == "new"
    assert done == ["fsync", "replace", "fsync"]  # the last one is the folder's
