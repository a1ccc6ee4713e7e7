"""What a trainer prints, on its way to the log: lines as a person would see them, none lost, whatever the bytes are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors, handles
from taxiway.replica import words


class Server:
    """What the shipping side of the log sees of a server: takes batches, is away, or refuses."""

    def __init__(self):
        self.batches = []
        self.refuses = False
        self.here = threading.Event()
        self.here.set()

    def say(self, lines):
        self.here.wait()
        if self.refuses:
            raise errors.FailedPrecondition("superseded")
        self.batches.append([msgspec.json.decode(line, type=handles.Said) for line in lines])

    @property
    def lines(self):
        return [said for batch in self.batches for said in batch]


@contextmanager
def printed(data):
    """A pipe that somebody writes to, piece by piece, from a thread."""
    read, write = os.pipe()

    def run():
        with os.fdopen(write, "wb", buffering=0) as out:
            for piece in data:
                out.write(piece)

    writer = threading.Thread(target=run)
    writer.start()
    with os.fdopen(read, "rb") as pipe:
        yield pipe
    writer.join()


def seen(*pieces):
    with printed(pieces) as pipe:
        return list(words.lines(pipe))


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"a\nb\n"], ["a", "b"]),
        ([b"a\nno end"], ["a", "no end"]),
        ([], []),
        ([b"a\n\n  b\n"], ["a", "", "  b"]),
        ([b"dos\r\nends\r\n"], ["dos", "ends"]),
        ([b"10%\r50%\r100%\n"], ["100%"]),
        ([b"10%\r50%\r100%\r\ndone\n"], ["100%", "done"]),
        ([b"10%\r", b"50%\r", b"done"], ["done"]),
        ([b"half a", b" line\n"], ["half a line"]),
        ([b"\xc3", b"\xbc\n"], ["ü"]),
        ([b"\x1b[1m\x1b[32mgreen\x1b[0m\ttab\x08\x00\n"], ["green\ttab"]),
        ([b"\xff\xfe\x00\x01junk\n"], ["��junk"]),
        (["naïve ☃ \u2028 one line\n".encode()], ["naïve ☃ \u2028 one line"]),
    ],
)
def test_lines_are_as_a_person_would_see_them(pieces, expected):
    assert seen(*pieces) == expected


@pytest.mark.parametrize("size", [words.LONGEST - 1, words.LONGEST, words.LONGEST + 1, 300_000])
def test_a_line_that_is_too_long_is_cut_and_says_so(size):
    first, second = seen(b"x" * size + b"\nnext\n")
    assert second == "next"
    cut = f" ... (cut: the line had {size} bytes)" if size > words.LONGEST else ""
    assert first == "x" * min(size, words.LONGEST) + cut


def test_a_line_without_an_end_does_not_fill_the_memory():
    tracemalloc.start()
    (line,) = seen(*[b"x" * 65536] * 1000)
    assert line.endswith(f"(cut: the line had {65536 * 1000} bytes)")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_are_some_lines_that_json_can_hold(pieces):
    whole = b"".join(pieces)
    got = seen(*pieces)
    assert got == seen(whole)  # however they were cut
    assert len(got) == whole.count(b"\n") + (not whole.endswith(b"\n") and whole != b"")
    assert msgspec.json.decode(msgspec.json.encode(got)) == got


def test_of_an_error_stream_the_last_traceback_and_what_follows_is_the_reason():
    first = ["Traceback (most recent call last):", '  File "a.py", line 1', "KeyError: 1"]
    last = ["Traceback (most recent call last):", '  File "b.py", line 2', "ValueError: two", "lines of it"]
    assert words.last_of([*first, "", "During handling of the above exception:", *last]) == last
    assert words.last_of([f"line {n}" for n in range(50)]) == [f"line {n}" for n in range(30, 50)]
    assert words.last_of([]) == []


def follow(log, data, errors_stream=False):
    with printed(data) as pipe:
        log.follow(pipe, errors_stream=errors_stream)


def test_every_line_arrives_once_and_in_order_and_the_disk_is_empty_after(tmp_path):
    server = Server()
    log = words.Words(tmp_path, server)
    began = time.monotonic()
    follow(
        log,
        [b"".join(b"line %d\n" % number for number in range(first, first + 100)) for first in range(0, 20_000, 100)],
    )
    log.close()
    assert [said.message for said in server.lines] == [f"line {number}" for number in range(20_000)]
    assert [said.seq for said in server.lines] == list(range(1, 20_001))
    assert time.monotonic() - began < 10
    assert list(handles.said(tmp_path)) == []


def test_a_batch_is_never_larger_than_the_server_takes(tmp_path):
    server = Server()
    server.here.clear()
    log = words.Words(tmp_path, server)
    follow(log, [b"\xff" * 65536 + b"\n"] * 60)
    server.here.set()
    log.close()
    assert len(server.lines) == 60
    assert max(len(msgspec.json.encode(batch)) for batch in server.batches) <= words.BATCH


def test_while_the_server_is_away_the_words_are_on_the_disk(tmp_path):
    server = Server()
    server.here.clear()
    log = words.Words(tmp_path, server)
    for number in range(50):
        log.say(f"line {number}")
    assert [said.message for said in handles.said(tmp_path)] == [f"line {number}" for number in range(50)]
    server.here.set()
    log.close()
    assert len(server.lines) == 50


def test_what_the_server_refuses_stays_on_the_disk(tmp_path):
    server = Server()
    server.refuses = True
    log = words.Words(tmp_path, server)
    log.say("the last word")
    log.close()
    assert [said.message for said in handles.said(tmp_path)] == ["the last word"]


def test_the_file_begins_anew_when_much_of_it_was_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "ROOM", 1000)
    server = Server()
    log = words.Words(tmp_path, server)
    sizes = set()
    for number in range(300):
        log.say(f"line {number}")
        if number % 50 == 0:
            while len(server.lines) <= number:
                sizes.add((tmp_path / "said.jsonl").stat().st_size)
    log.close()
    assert [said.message for said in server.lines] == [f"line {number}" for number in range(300)]
    assert max(sizes) < 10_000


def test_the_lines_of_a_traceback_are_errors_and_what_comes_after_is_not(tmp_path):
    server = Server()
    log = words.Words(tmp_path, server)
    follow(log, [b"before\nTraceback (most recent call last):\n  File\n    raise\nValueError: no\nafter\n"], True)
    log.close()
    assert [said.severity for said in server.lines] == ["INFO", *["ERROR"] * 4, "INFO"]


def test_what_a_full_disk_does_not_take_is_missing_and_the_log_says_so(tmp_path):
    """The limit on a file's size is the disk of this process."""
    code = f"""
import pathlib, resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_words import Server, follow
from taxiway.replica import words
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
server = Server()
server.here.clear()
log = words.Words(pathlib.Path({str(tmp_path)!r}), server)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
follow(log, [b"".join(b"line %d\\n" % number for number in range(9))])
follow(log, [b"x" * 5000 + b"\\n" + b"y" * 5000 + b"\\n"])
log.say("z" * 5000)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.say("again")
server.here.set()
log.close()
print(*(said.message for said in server.lines), sep="\\n")
print(*(said.seq for said in server.lines))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *told, numbers = done.stdout.splitlines()
    assert told == [*(f"line {number}" for number in range(9)), "3 lines are missing here: the disk was full.", "again"]
    assert numbers == " ".join(map(str, range(1, 12)))


def test_a_server_that_is_slower_than_the_trainer_is_waited_for_and_the_disk_holds_little(tmp_path, monkeypatch):
    for name, value in (("ROOM", 1000), ("MOST", 100_000), ("PACE_S", 0.001)):
        monkeypatch.setattr(words, name, value)
    sizes = []

    class Slow(Server):
        def say(self, lines):
            sizes.append((tmp_path / "said.jsonl").stat().st_size)
            super().say(lines)

    server = Slow()
    log = words.Words(tmp_path, server)
    follow(log, [b"".join(b"line %d\n" % number for number in range(50_000))])
    log.close()
    assert [said.message for said in server.lines] == [f"line {number}" for number in range(50_000)]
    assert log.said > 10 * words.MOST
    assert max(sizes) < words.MOST + 10 * words.PIECE  # a piece of short lines is some times as long as JSON


def test_what_is_said_while_the_server_is_away_is_missing_once_much_waits_for_it(tmp_path, monkeypatch):
    for name, value in (("ROOM", 0), ("MOST", 1000), ("AWAY_S", 0.0)):
        monkeypatch.setattr(words, name, value)
    server = Server()
    server.here.clear()
    log = words.Words(tmp_path, server)
    for number in range(100):
        log.say(f"line {number}")
    server.here.set()
    while (tmp_path / "said.jsonl").stat().st_size:
        pass
    log.say("again")
    log.close()
    *kept, missing, last = [said.message for said in server.lines]
    assert 5 < len(kept) < 50
    assert kept == [f"line {number}" for number in range(len(kept))]
    assert missing.startswith(f"{100 - len(kept)} lines are missing here: the server was away, and ")
    assert last == "again"
