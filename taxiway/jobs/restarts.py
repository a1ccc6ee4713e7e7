"""What follows an attempt that ended: nothing, the same replica again, or the whole job again; how often, and when.

An exit code of 1 to 127 is the program's own word and permanent. What came from outside of it (a signal, the limit of
memory, a lost replica) is tried again under the same names, so that checkpoints are found: at most 5 restarts of a
replica, then 3 retries of the whole job with as many each. What was ended for what it wrote to the disk would write it
again, and is not. Source: the training service's "Restarting jobs",
https://cloud.google.com/ai-platform/training/docs/overview
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from taxiway import handles
from taxiway.compute.attempts import SIGNALLED, Attempt, Turn, word

RESTARTS = 5
RETRIES = 3
LONGEST_S = 15.0  # between an end and the next start
MOST = (RESTARTS + 1) * (RETRIES + 1)
COMPLETED, ERROR, SIGNAL, LOST = "Completed", "Error", "Signal", "Lost"
OOM, DISK, ADDRESS = handles.OOM, handles.DISK, handles.ADDRESS
ABORTED = SIGNALLED + signal.SIGABRT  # how TensorFlow ends itself when its coordinator is gone
STOPPED = "Stopped"  # by the service, because its job was over or began anew
AGAIN = (SIGNAL, OOM, LOST, ADDRESS)


def reason(attempt: Attempt) -> str:
    """Why an attempt that is over ended, in a word."""
    if attempt.reason in (COMPLETED, ERROR, DISK, STOPPED, *AGAIN):
        return attempt.reason
    return LOST if attempt.exit_code is None else word(attempt.exit_code)


def following(attempt: Attempt, pause_s: float) -> Turn | None:
    """The turn of its successor; None if it has none. `pause_s` is the first pause; each is twice the one before."""
    if reason(attempt) not in AGAIN:
        return None
    if attempt.restart < RESTARTS:
        return Turn(attempt.restart + 1, attempt.retry, min(LONGEST_S, pause_s * 2**attempt.restart))
    if attempt.retry < RETRIES:
        return Turn(0, attempt.retry + 1, min(LONGEST_S, pause_s * 2 ** (RESTARTS + attempt.retry)))
    return None


def together(attempt: Attempt, tries: Sequence[Attempt], pause_s: float) -> Turn | None:
    """The turn of all of a gang, when `attempt` takes the others with it: None if they had the last.

    It is the same restart as that of the one that was lost, if that has had it by now.
    """
    restart = max(attempt.restart + 1, *(each.restart for each in tries))
    if restart <= RESTARTS:
        return Turn(restart, attempt.retry, min(LONGEST_S, pause_s * 2 ** (restart - 1)))
    if attempt.retry < RETRIES:
        return Turn(0, attempt.retry + 1, min(LONGEST_S, pause_s * 2 ** (RESTARTS + attempt.retry)))
    return None


def announcement(attempt: Attempt, turn: Turn, *, all_of: int = 1) -> str:
    """The line of the job's log that says why its replica starts again, or `all_of` them, and which time that is."""
    when = f"in {turn.pause:.1f} s" if turn.pause >= 0.1 else "at once"
    if turn.restart and all_of > 1:
        behind = " A replica beside it was lost before, so this is taken for a consequence."
        why = f"{how(attempt)}{'' if reason(attempt) in AGAIN and attempt.exit_code != ABORTED else behind}"
        return f"{why} All {all_of} start again together {when}: restart {turn.restart} of {RESTARTS}."
    if turn.restart:
        return f"{how(attempt)} It starts again {when}: restart {turn.restart} of {RESTARTS}."
    return f"{how(attempt)} The whole job is tried again {when}: retry {turn.retry} of {RETRIES}."


def how(attempt: Attempt) -> str:
    """How an attempt ended, in a sentence."""
    role, _, index = attempt.task.partition("-replica-")
    if attempt.error:
        return attempt.error.splitlines()[0].partition(" Termination reason: ")[0]
    if attempt.exit_code is None:
        return f"The replica {role} {index} was lost: it was killed from outside, or its host went down."
    return f"The replica {role} {index} exited with status {attempt.exit_code}."


def last_words(attempt: Attempt) -> str:
    """The errorMessage of a job that ends with this attempt: why, and how often it was tried."""
    why = attempt.error or how(attempt)
    if reason(attempt) in AGAIN:
        each = f"{RETRIES + 1} tries of the job, each with {RESTARTS} restarts of the replica"
        return f"{why}\nIt was tried {attempt.number} times ({each}), and ended so each time."
    if attempt.number > 1:
        return f"{why}\nIt was tried {attempt.number} times: the attempts before this one were killed or lost."
    return why
