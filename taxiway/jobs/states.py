"""The life of a job: the table is the state machine.

QUEUED -> PREPARING -> RUNNING -> SUCCEEDED | FAILED
any of the first three -> CANCELLING -> CANCELLED
"""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    QUEUED = "QUEUED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


MOVES = {  # from -> every state it may go to; a state not named here is final
    State.QUEUED: {State.PREPARING, State.CANCELLED},
    State.PREPARING: {State.RUNNING, State.FAILED, State.CANCELLING, State.PREPARING},  # again: its attempt is dead
    State.RUNNING: {State.SUCCEEDED, State.FAILED, State.CANCELLING, State.PREPARING},  # back: its attempt is dead
    State.CANCELLING: {State.CANCELLED, State.FAILED},
}
HELD = (State.PREPARING, State.RUNNING, State.CANCELLING)  # a worker holds its lease
FINAL = tuple(state for state in State if state not in MOVES)


def before(to: State) -> list[State]:
    """The states that lead to `to`."""
    return [state for state, after in MOVES.items() if to in after]
