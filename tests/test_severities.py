"""How bad a line is, as it says itself: in the words of every framework's loggers."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway.compute.logs import SEVERITIES
from taxiway.replica import severities
from taxiway.replica.severities import Reader, severity_of


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        # TensorFlow 1.8 to 2.11, and from 2.12 on; absl; PyTorch
        ("2018-05-01 07:16:27.123456: I tensorflow/core/platform/cpu_feature_guard.cc:140] Your CPU", "INFO"),
        ("2018-05-01 07:16:27.123456: W ./tensorflow/core/x.cc:47] careful", "WARNING"),
        ("2026-11-23 07:16:27.123456: E external/local_xla/xla/x.cc:467] bad", "ERROR"),
        ("2026-11-23 07:16:27.123456: F external/x.cc:9] worse", "CRITICAL"),
        ("I tensorflow/core/common_runtime/gpu/gpu_device.cc:885] Found device 0", "INFO"),
        ("I0000 00:00:1700000000.123456   12 cuda_executor.cc:1] fine", "INFO"),
        ("W0000 00:00:1700000000.123456   12 cuda.cc:1] hm", "WARNING"),
        ("E1123 07:16:27.123456 140012 deprecation.py:323] no", "ERROR"),
        ("F1123 07:16:27.123456 140012 task.py:3] the end", "CRITICAL"),
        ("[W1123 07:16:27.123456789 ProcessGroupNCCL.cpp:1569] Warning: hm", "WARNING"),
        ("[W socket.cpp:426] [c10d] hm", "WARNING"),
        ("[rank1]:[E1123 07:16:27.123456789 ProcessGroupNCCL.cpp:616] timeout", "ERROR"),
        # logging: by default, TensorFlow 1's, and as it is formatted
        ("WARNING:tensorflow:careful", "WARNING"),
        ("INFO:tensorflow:loss = 1, step = 2", "INFO"),
        ("ERROR:root:broken", "ERROR"),
        ("CRITICAL it burns", "CRITICAL"),
        ("FATAL: it burns", "CRITICAL"),
        ("DEBUG:x:y", "DEBUG"),
        ("WARNING: Logging before flag parsing goes to stderr.", "WARNING"),
        ("WARNING:2026-11-23 07:16:27,123:jax._src.xla_bridge:966: no GPU", "WARNING"),
        ("2026-11-23 07:16:27,123 - trainer.task - WARNING - hm", "WARNING"),
        ("2026-11-23 07:16:27,123 ERROR trainer: no", "ERROR"),
        ("2026-11-23 07:16:27,123 trainer.task DEBUG    hm", "DEBUG"),
        ("2026-11-23T07:16:27.123Z WARN hm", "WARNING"),
        ("2026-11-23 07:16:27.123 | WARNING  | trainer:run:12 - hm", "WARNING"),
        ("2026-11-23 07:16:27.123 | SUCCESS  | trainer:run:12 - done", "INFO"),
        ("[2026-11-23 07:16:27 +0000] [12] [CRITICAL] WORKER TIMEOUT", "CRITICAL"),
        ("[2026-11-23 07:16:27,123] ERROR in app: no", "ERROR"),
        ("[07:16:27] WARNING: /workspace/src/learner.cc:1115: hm", "WARNING"),
        ("26/11/23 07:16:27 WARN NativeCodeLoader: hm", "WARNING"),
        ("07:16:27 ERROR no", "ERROR"),
        ("[WARNING] hm", "WARNING"),
        ("[LightGBM] [Warning] hm", "WARNING"),
        ('{"severity": "ERROR", "message": "no"}', "ERROR"),
        ('{"message":"no","level":"warning"}', "WARNING"),
        # warnings, and what is left of a program that has crashed
        ("/a/trainer/task.py:3: UserWarning: careful", "WARNING"),
        ("<string>:1: DeprecationWarning: old", "WARNING"),
        ("Fatal Python error: Segmentation fault", "CRITICAL"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "CRITICAL"),
        # what says nothing
        ("ERRORS: 0", "INFO"),
        ("E = mc2", "INFO"),
        ("I am here", "INFO"),
        ("Information", "INFO"),
        ("12 rides with ERROR", "INFO"),
        ("2026-11-23 07:16:27 there was no ERROR here", "INFO"),
        ("[1, 2, 3]", "INFO"),
        ("{'level': 3}", "INFO"),
        ("Warning: ", "INFO"),
        ("plain", "INFO"),
        ("", "INFO"),
    ],
)
def test_a_line_that_names_its_severity_has_it(line, severity):
    assert severity_of(line) == severity


@given(st.text(alphabet='IWEF0123456789:-.,|[] ERRORWARNING{}"/=x', max_size=60))
def test_any_line_has_some_severity(line):
    assert severity_of(line) in SEVERITIES


def read(*lines):
    reader = Reader()
    return [reader.severity(line) for line in lines]


def test_a_traceback_is_an_error_to_its_exception_and_what_comes_after_is_not():
    lines = ["before", severities.TRACEBACK, "  File", "    raise", "ValueError: no", "after"]
    assert read(*lines) == ["INFO", *["ERROR"] * 4, "INFO"]
    assert read(*(f"[rank0]: {line}" for line in lines)) == ["INFO", *["ERROR"] * 4, "INFO"]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    lines = done.stderr.splitlines()
    return list(zip(read(*lines), lines, strict=True))


def test_pythons_own_tracebacks_and_warnings_are_read_as_they_are_written():
    """Whatever this Python writes: chains, groups, the line of code below a warning."""
    chained = run("try:\n    1 / 0\nexcept ZeroDivisionError:\n    open('/nowhere')")
    blank = [(severity, line) for severity, line in chained if not line or line.startswith("During")]
    assert {severity for severity, _ in blank} == {"INFO"}
    assert {severity for severity, line in chained if (severity, line) not in blank} == {"ERROR"}
    if sys.version_info >= (3, 11):
        group = run("raise ExceptionGroup('two', [ValueError(1), OSError(2)])")
        assert [severity for severity, _ in group] == ["ERROR"] * len(group)
    warned = run("import warnings\nwarnings.warn('careful')\nprint('fine', file=__import__('sys').stderr)")
    assert warned[0][0] == "WARNING"
    assert warned[-1] == ("INFO", "fine")
    text = warnings.formatwarning("careful", UserWarning, "task.py", 3, "fit(model)").splitlines()
    assert read(*text, "  fit(model)") == ["WARNING", "WARNING", "INFO"]


def test_every_level_of_pythons_logging_is_known_in_its_default_and_its_usual_form():
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        record = logging.LogRecord("trainer.task", level, "task.py", 1, "said", None, None)
        for form in (
            logging.BASIC_FORMAT,
            "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
            "%(asctime)s %(levelname)-8s %(message)s",
        ):
            assert severity_of(logging.Formatter(form).format(record)) == record.levelname
