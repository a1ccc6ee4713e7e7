"""What follows an attempt that ended: the rule itself, then real trainers that are killed and tried again."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing

import pytest
from conftest import running
from trainers import CLOUD, Lab, until

from taxiway.compute.attempts import Attempt, Turn, word
from taxiway.jobs import restarts

PAUSE_S = 0.5


def ended(code=None, error="", reason=None, number=1, restart=0, retry=0):
    known = {"id": "a", "project": "p", "kind": "job", "subject": "j", "task": "master-replica-0", "identity": "sa"}
    known |= {"trial": "", "gang": ""}
    times = {"created": 1.0, "ran": None, "spoke": None, "heard": None, "ended": 2.0}
    return Attempt(
        **known,
        **times,
        number=number,
        restart=restart,
        retry=retry,
        pause=0.0,
        state="FENCED" if code is None else "ENDED",
        work={},
        handle="",
        exit_code=code,
        error=error,
        reason=reason,
        remains=None,
    )


# --- the rule ---


def test_what_was_ended_for_what_it_wrote_is_final():
    filled = ended(137, "The replica master 0 was killed by SIGKILL (status 137). It wrote", reason="Disk")
    assert restarts.reason(filled) == "Disk"
    assert restarts.following(filled, PAUSE_S) is None
    assert restarts.last_words(filled) == filled.error


@pytest.mark.parametrize("code", [0, 1, 2, 64, 127])
def test_what_a_program_says_itself_is_final(code):
    assert restarts.following(ended(code), PAUSE_S) is None


@pytest.mark.parametrize(
    "attempt",
    [ended(128), ended(137), ended(139), ended(255), ended(None), ended(1, reason="OOM"), ended(None, reason="Lost")],
    ids=lambda attempt: f"{attempt.exit_code}-{attempt.reason}",
)
def test_what_comes_from_outside_is_tried_again(attempt):
    assert restarts.following(attempt, PAUSE_S) == Turn(restart=1, retry=0, pause=PAUSE_S)


def test_five_restarts_of_a_replica_then_three_retries_of_the_job_with_as_many_each():
    attempt, turns = ended(137), []
    while turn := restarts.following(attempt, PAUSE_S):
        turns.append(turn)
        attempt = ended(137, number=attempt.number + 1, restart=turn.restart, retry=turn.retry)
    assert [(turn.retry, turn.restart) for turn in turns] == [
        (retry, restart) for retry in range(4) for restart in range(6)
    ][1:]
    assert [turn.pause for turn in turns[:6]] == [0.5, 1, 2, 4, 8, 15]  # each twice the one before, up to 15 s
    assert max(turn.pause for turn in turns) == restarts.LONGEST_S
    assert attempt.number == restarts.MOST == 24
    assert restarts.last_words(attempt).endswith(
        "It was tried 24 times (4 tries of the job, each with 5 restarts of the replica), and ended so each time."
    )


def test_a_reason_that_nobody_knows_is_read_from_the_exit_code():
    assert restarts.reason(ended(3, reason="Bored")) == restarts.ERROR
    assert restarts.reason(ended(130, reason="")) == restarts.SIGNAL == word(130)
    assert restarts.reason(ended(None, reason="Superseded")) == restarts.LOST


def test_each_restart_is_announced_with_its_reason_and_its_count():
    killed = ended(137, "The replica master 0 was killed by SIGKILL (status 137). Termination reason: Error.\nbye")
    assert restarts.announcement(killed, Turn(2, 0, 1.0)) == (
        "The replica master 0 was killed by SIGKILL (status 137). It starts again in 1.0 s: restart 2 of 5."
    )
    assert restarts.announcement(ended(), Turn(0, 3, 0.01)) == (
        "The replica master 0 was lost: it was killed from outside, or its host went down. "
        "The whole job is tried again at once: retry 3 of 3."
    )


def test_the_last_words_of_what_ended_by_itself_are_its_own():
    assert restarts.last_words(ended(1, "it broke")) == "it broke"
    assert restarts.last_words(dataclasses.replace(ended(1, "it broke"), number=3)) == (
        "it broke\nIt was tried 3 times: the attempts before this one were killed or lost."
    )
    assert restarts.last_words(ended(4)) == "The replica master 0 exited with status 4."


# --- real trainers ---


@pytest.fixture(scope="module")
def quick(tmp_path_factory, runtime_python):
    """A server that starts again without a pause worth the name."""
    with running(tmp_path_factory.mktemp("quick") / "home", TAXIWAY_RESTART_MS="1") as started:
        yield started


@pytest.fixture(scope="module")
def lab(quick):
    return Lab(quick.call, quick.project, quick.address.service_agent).open()


def attempts(server, job):
    with closing(sqlite3.connect(server.home / "taxiway.db")) as rows:
        asked = "select state, exit_code, reason, retry, restart from attempts where subject = ? order by number"
        return rows.execute(asked, [job]).fetchall()


@pytest.mark.torture
@pytest.mark.runtime
def test_a_trainer_that_is_killed_each_time_fails_after_all_its_tries_and_says_so(quick, lab):
    job = lab.submit("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    found = lab.ended(job)
    assert found["state"] == "FAILED"
    assert found["errorMessage"] == (
        "The replica master 0 was killed by SIGKILL (status 137). It may have run out of memory.\n"
        "It was tried 24 times (4 tries of the job, each with 5 restarts of the replica), and ended so each time."
    )
    assert attempts(quick, job) == [
        ("ENDED", 137, "Signal", retry, restart) for retry in range(4) for restart in range(6)
    ]
    said = lab.said(job, "service")
    assert len([line for line in said if ": restart " in line]) == 20
    assert [line.rpartition(": ")[2] for line in said if ": retry " in line] == [
        f"retry {number} of 3." for number in (1, 2, 3)
    ]
    assert list((quick.home / "attempts").iterdir()) == []


@pytest.mark.runtime
@pytest.mark.parametrize(("name", "code"), [("SEGV", 139), ("HUP", 129), ("ABRT", 134)])
def test_a_trainer_that_is_killed_once_is_started_again_and_may_then_fail_by_itself(quick, lab, name, code):
    job = lab.submit(f"""{CLOUD}
import signal
if not read({lab.bucket!r}, "once-{name}"):
    write({lab.bucket!r}, "once-{name}", "it was here")
    os.kill(os.getpid(), signal.SIG{name})
sys.exit("no more")
""")
    found = lab.ended(job)
    assert found["errorMessage"].splitlines() == [
        "The replica master 0 exited with a non-zero status of 1. Termination reason: Error.",
        "no more",
        "It was tried 2 times: the attempts before this one were killed or lost.",
    ]
    how = f"The replica master 0 was killed by SIG{name} (status {code})."
    assert f"{how} It starts again at once: restart 1 of 5." in lab.said(job)
    assert attempts(quick, job) == [("ENDED", code, "Signal", 0, 0), ("ENDED", 1, "Error", 0, 1)]


@pytest.mark.runtime
def test_an_exit_of_128_and_more_is_a_signal_that_a_shell_tells_of(quick, lab):
    job = lab.submit("import sys; sys.exit(143)")
    until(lambda: len(attempts(quick, job)) > 2)
    lab.cancel(job)
    assert lab.ended(job)["state"] == "CANCELLED"
    assert {each[2] for each in attempts(quick, job)} <= {"Signal", "Cancelled"}


@pytest.mark.runtime
def test_a_job_that_is_over_its_time_is_not_tried_again(quick, lab):
    job = lab.submit("import os, time; time.sleep(1); os.abort()", scheduling={"maxRunningTime": "2s"})
    found = lab.ended(job)
    assert (found["state"], found["errorMessage"]) == (
        "CANCELLED",
        "The job ran longer than its maxRunningTime of 2s and was cancelled.",
    )
    tried = len(attempts(quick, job))
    assert 1 < tried < 5  # its time counts from its first start
    assert attempts(quick, job)[-1][0] in ("ENDED", "FENCED")
