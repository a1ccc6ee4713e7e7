"""What a stranger's folders hold, and away with them: whatever was made of them, and nothing outside of them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from taxiway import trees
from taxiway.trees import Held

MIB = 1024 * 1024


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_bytes(b"x" * MIB)
    made = tmp_path / "tree"
    made.mkdir()
    yield made
    assert (tmp_path / "outside" / "mine").stat().st_size == MIB


def test_what_is_allocated_counts_once_and_what_a_link_leads_to_does_not(tree):
    assert trees.held(tree) == Held(0, 0)
    (tree / "a").mkdir()
    empty = trees.held(tree).bytes
    (tree / "a" / "whole").write_bytes(b"x" * MIB)
    (tree / "again").hardlink_to(tree / "a" / "whole")
    (tree / "way").symlink_to(tree.parent / "outside")
    with (tree / "sparse").open("wb") as file:
        file.truncate(100 * MIB)
    found = trees.held(tree)
    assert found.files == 4  # the folder, the file of two names, the link, the one with a hole
    assert MIB <= found.bytes - empty < MIB + 64 * 1024
    assert trees.held(tree / "way") == trees.held(tree / "sparse") == trees.held(tree / "none") == Held(0, 0)
    trees.remove(tree)
    assert not tree.exists()


def test_folders_within_each_other_beyond_any_path_are_counted_and_removed(tree):
    here = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("within", dir_fd=here)
        inner = os.open("within", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    file = os.open("deep", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, b"x" * MIB)
    os.close(file)
    os.close(here)
    found = trees.held(tree)
    assert found.files == 3001
    assert found.bytes >= MIB
    trees.remove(tree)
    assert not tree.exists()


def test_what_its_owner_locked_is_counted_and_removed(tree):
    """Root needs no right to it: the look is then made by a child that has given its own up."""
    for name, mode in (("unread", 0o300), ("closed", 0), ("listed", 0o400)):
        (tree / name / "in").mkdir(parents=True)
        (tree / name / "in" / "file").write_bytes(b"x" * MIB)
        (tree / name / "in").chmod(mode)
        (tree / name).chmod(mode)
        if os.getuid() == 0:
            for each in (tree / name / "in" / "file", tree / name / "in", tree / name):
                os.chown(each, 12345, 12345)
    if os.getuid() == 0:
        os.chown(tree, 12345, 12345)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(tree)
            if os.getuid() == 0:
                os.setresgid(12345, 12345, 12345)
                os.setresuid(12345, 12345, 12345)
            code = 10 + trees.held(Path()).files
            trees.empty(Path())
            code += 100 * bool(os.listdir())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10 + 9
    assert os.listdir(tree) == []


def test_a_tree_that_somebody_works_in_is_looked_at_to_its_end(tree):
    """Folders become links and back, move and go: no look fails, none leads outside."""
    over = threading.Event()

    def work():
        number = 0
        while not over.is_set():
            number += 1
            (tree / "a").mkdir()
            (tree / "a" / "b").mkdir()
            (tree / "a" / "b" / "file").write_bytes(b"x")
            (tree / "a" / "b").rename(tree / f"moved{number % 7}") if number % 2 else None
            trees.remove(tree / "a")
            (tree / "a").symlink_to(tree.parent / "outside")
            (tree / "a").unlink()
            for each in tree.glob("moved*"):
                trees.remove(each)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert all(trees.held(tree).bytes < MIB for _ in range(2000))
    finally:
        over.set()
        worker.join()
