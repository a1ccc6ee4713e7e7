"""How bad a line is, as it says itself: in the words of TensorFlow, absl, PyTorch, Python's logging and warnings.

    W1123 07:16:27.123456  140 task.py:12] ...       absl, TensorFlow's C++ from 2.12 on, PyTorch in brackets
    2026-11-23 07:16:27.123456: W tensorflow/...:9]  TensorFlow's C++ before that
    WARNING:tensorflow:...                           logging by default, and TensorFlow 1's tf.logging
    2026-11-23 07:16:27,123 - name - WARNING - ...   logging as its documents and most loggers format it
    {"severity": "WARNING", "message": ...}          JSON, as Google's own loggers write it
    trainer/task.py:3: UserWarning: ...              the warnings module, and the line of code below

A traceback is an ERROR from its first line to the exception's; what says nothing is INFO.
"""

from __future__ import annotations

import re

INFO, WARNING, ERROR, CRITICAL = "INFO", "WARNING", "ERROR", "CRITICAL"
TRACEBACK = "Traceback (most recent call last):"
LETTERS = {"D": "DEBUG", "I": INFO, "W": WARNING, "E": ERROR, "F": CRITICAL}
WORDS = {
    "TRACE": "DEBUG",
    "DEBUG": "DEBUG",
    "INFO": INFO,
    "SUCCESS": INFO,
    "NOTICE": "NOTICE",
    "WARN": WARNING,
    "WARNING": WARNING,
    "ERROR": ERROR,
    "FATAL": CRITICAL,
    "CRITICAL": CRITICAL,
}
_LEVEL = "|".join(sorted(WORDS, key=len, reverse=True))
_CLOCK = r"\d\d:\d\d:\d\d(?:[.,:]\d+)?"
_RANK = r"(?:\[rank\d+\]: ?)?"
_GLOG = re.compile(
    rf"{_RANK}\[?(?:\d{{4}}-\d\d-\d\d {_CLOCK}: )?(?P<letter>[DIWEF])(?:\d{{4}} \d\d:\d\d:\d+\.\d+| \S+:\d+\])"
)
_LOGGING = re.compile(rf"{_RANK}(?P<level>{_LEVEL})\b[:\s]")
_TIMED = re.compile(
    rf"{_RANK}\[?(?:\d{{2,4}}[-/]\d\d[-/]\d\d[T ])?{_CLOCK}(?: ?(?:Z|[+-]\d\d:?\d\d))?\]?:?\s*(?:[-|]\s*)?"
    rf"(?:\[[\w.\- ]+\]\s*|[\w.\-/]+\s*[-|:]?\s+)?\[?(?P<level>{_LEVEL})\b"
)
_BRACKETS = re.compile(rf"(?:\[[\w.]+\] )?\[(?P<level>{_LEVEL})\]", re.IGNORECASE)
_JSON = re.compile(rf'\{{.*?"(?:severity|level|levelname)": ?"(?P<level>{_LEVEL})"', re.IGNORECASE)
_SIGNS = {  # by how a line begins: most say nothing, and are not looked at twice
    **dict.fromkeys("DIWEF", (_GLOG, _LOGGING)),
    **dict.fromkeys("TSNC", (_LOGGING,)),
    **dict.fromkeys("0123456789", (_GLOG, _TIMED)),
    "[": (_GLOG, _TIMED, _BRACKETS, _LOGGING),
    "{": (_JSON,),
}
_PREFIX = re.compile(r"(?:\[[^\]]*\]:? ?)?")  # as torchrun puts [rank0]: before each line
_WARNED = re.compile(r"\S.*:\d+: \w*Warning: ")
_DEADLY = (
    "Fatal Python error: ",
    "terminate called ",
    "Segmentation fault",
    "*** Aborted at",
    "*** SIG",
)  # what is left of a program that cannot speak any more


def severity_of(line: str) -> str:
    """The severity that a line names itself, else INFO."""
    for sign in _SIGNS.get(line[:1], ()):
        found = sign.match(line)
        if found is not None:
            told = found.groupdict()
            return LETTERS[told["letter"]] if "letter" in told else WORDS[told["level"].upper()]
    if "Warning: " in line and _WARNED.match(line):
        return WARNING
    return CRITICAL if line.startswith(_DEADLY) else INFO


class Reader:
    """Reads the lines of one stream in their order: some are only understood by the one before."""

    def __init__(self) -> None:
        self._before = INFO
        self._prefix: str | None = None  # what stands before each line of the traceback that is being read
        self._warned = False

    def severity(self, line: str) -> str:
        """The severity of the stream's next line."""
        if TRACEBACK in line:
            self._prefix = _PREFIX.match(line)[0]  # type: ignore[index]  # it matches everything
            return ERROR
        if self._prefix is not None:
            said = line[len(self._prefix) :] if line.startswith(self._prefix) else line
            if not said.startswith(" "):  # the exception itself is the last
                self._prefix = None
            return ERROR
        if self._warned and line.startswith("  "):
            self._warned = False
            return WARNING
        named = severity_of(line)
        self._warned = named == WARNING and _WARNED.match(line) is not None
        return named
