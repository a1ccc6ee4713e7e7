"""Files are replaced in one step, by any number of hands."""

import os
import stat
import threading

import pytest

from taxiway import files


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_is_made_and_replaced_with_its_mode_whatever_the_umask(tmp_path, mode):
    before = os.umask(0o077)
    try:
        for content in (b"old", b"new, and longer"):
            files.replace(tmp_path / "file", content, mode)
            assert (tmp_path / "file").read_bytes() == content
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    finally:
        os.umask(before)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_reader_sees_one_whole_content_while_many_write(tmp_path):
    contents = [bytes([letter]) * 100_000 for letter in b"abcd"]
    files.replace(tmp_path / "file", contents[0])
    writers = [
        threading.Thread(target=lambda content=content: [files.replace(tmp_path / "file", content) for _ in range(20)])
        for content in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert (tmp_path / "file").read_bytes() in contents
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_replaced_stays_and_no_draft_is_left(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/inside").write_text("kept")
    with pytest.raises(OSError):
        files.replace(tmp_path / "taken", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken/inside").read_text() == "kept"
