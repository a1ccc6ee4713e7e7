"""The line of waiting jobs: shares of projects, places, guesses; the rows of a real database, the clock an argument."""

from __future__ import annotations

import math

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taxiway.db.tables import jobs
from taxiway.iam import projects
from taxiway.jobs import line, queue
from taxiway.jobs.states import State
from taxiway.schemas import Scheduling, TrainingInput

PROJECTS = ("rides-1", "trees-1", "ships-1")


@pytest.fixture
def db(db):
    for project in PROJECTS:
        db.write(lambda tx, project=project: projects.create(tx, project, owners=["user:o@x.org"], now=0))
    return db


def create(db, job, project=PROJECTS[0], now=0.0, **rules):
    told = TrainingInput(python_module="trainer.task", scheduling=Scheduling(**rules) if rules else None)
    return queue.create(db, project, job, told, {}, creator="user:o", now=now)


def claim(db, now=10.0):
    return db.write(lambda tx: queue.claim(tx, worker="w1", now=now, lease=60.0))


def move(db, job, to, project=PROJECTS[0], **changes):
    return db.write(lambda tx: queue.move(tx, project, job, to, **changes))


def wait(db, job, *, most, now=100.0, project=PROJECTS[0]):
    with db.read() as rows:
        return line.wait(rows, queue.read(rows, project, job).position, most=most, now=now)


def ran(db, job, seconds, project=PROJECTS[0]):
    """A job of the past that took so long."""
    create(db, job, project)
    claim(db)
    move(db, job, State.RUNNING, project, started=10.0)
    move(db, job, State.SUCCEEDED, project, ended=10.0 + seconds)


# --- whose turn it is ---


def test_many_jobs_of_one_project_do_not_starve_one_of_another(db):
    for number in range(200):
        create(db, f"many_{number}")
    create(db, "one", PROJECTS[1])
    assert [claim(db).id for _ in range(3)] == ["many_0", "one", "many_1"]


def test_within_one_priority_the_project_with_the_fewest_running_jobs_goes_first(db):
    for number in range(3):
        create(db, f"a{number}")
    create(db, "b0", PROJECTS[1])
    assert [claim(db).id for _ in range(2)] == ["a0", "b0"]
    move(db, "b0", State.RUNNING, PROJECTS[1])
    move(db, "b0", State.SUCCEEDED, PROJECTS[1], ended=11.0)
    create(db, "b1", PROJECTS[1])
    create(db, "a9", priority=1)
    assert [claim(db).id for _ in range(4)] == ["a9", "b1", "a1", "a2"]  # the higher priority before every share


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(PROJECTS), st.integers(0, 2)), min_size=1, max_size=12),
    st.integers(0, 6),
)
def test_the_places_are_the_order_in_which_jobs_are_claimed(db, wanted, running):
    db.write(lambda tx: tx.execute(sa.delete(jobs)))
    for number, (project, priority) in enumerate(wanted):
        create(db, f"j{number}", project, priority=priority)
    for _ in range(running):
        claim(db)
    with db.read() as rows:
        foretold = [each.id for each in line.order(rows)]
        places = line.places(rows)
    claimed = [job for _ in foretold if (job := claim(db))]
    assert [job.id for job in claimed] == foretold
    assert [places[job.position] for job in claimed] == list(range(len(claimed)))
    assert claim(db) is None


def test_what_has_ended_costs_a_claim_nothing(db):
    """By the plan that SQLite makes: neither the line nor what runs is looked for in the whole table."""
    asked = []
    with db.read() as rows:
        sa.event.listen(rows, "before_cursor_execute", lambda _c, _u, text, values, *_: asked.append((text, values)))
        line.first(rows)
        line.order(rows)
        line.running(rows)
        line.last_queued(rows)
        queue.waiting(rows, worker="w1", now=5.0)
        line._usual(rows, PROJECTS[0])
        plans = [row.detail for text, values in tuple(asked) for row in explained(rows, text, values)]
    touched = [plan for plan in plans if plan.startswith(("SCAN jobs", "SEARCH jobs"))]
    assert touched
    assert [plan for plan in touched if "INDEX" not in plan or plan.startswith("SCAN")] == []


def test_what_has_ended_costs_the_first_page_of_a_list_and_a_renewed_lease_nothing(db):
    asked = []
    for engine in (db._reading, db._writing):
        sa.event.listen(engine, "before_cursor_execute", lambda _c, _u, text, values, *_: asked.append((text, values)))
    queue.newest(db, PROJECTS[0], limit=20)
    queue.newest(db, PROJECTS[0], limit=20, before=5)
    queue.renew(db, worker="w1", until=5.0)
    looks = [each for each in asked if each[0].startswith(("SELECT", "UPDATE"))]
    assert len(looks) == 3
    with db.read() as rows:
        plans = [row.detail for text, values in looks for row in explained(rows, text, values)]
    assert all(plan.startswith("SEARCH jobs USING INDEX") for plan in plans), plans  # and nothing is sorted


def explained(rows, text, values):
    return rows.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()


# --- why, behind whom, and until when ---


def test_a_waiting_job_is_told_why_and_behind_which_of_its_own(db):
    for job in ("a", "b", "c", "d"):
        create(db, job)
    create(db, "elsewhere", PROJECTS[1])
    claim(db)
    found = wait(db, "d", most=1)
    assert (found.ahead, found.behind, found.starts) == (3, ["b", "c"], None)
    assert found.reason == (
        "Waiting for another job to end: 1 run (a), 1 may at once, and 3 queued jobs start before this one."
    )
    assert wait(db, "elsewhere", most=1, project=PROJECTS[1]).reason == (
        "Waiting for another job to end: 1 run (1 of other projects), 1 may at once, and no queued job starts "
        "before this one."
    )
    assert wait(db, "b", most=3).reason == "There is room for it: it starts in a moment."
    assert wait(db, "a", most=1) is None  # it is queued no more


def test_nothing_is_guessed_from_too_little(db):
    create(db, "a")
    claim(db)
    move(db, "a", State.RUNNING, started=50.0)
    create(db, "b")
    assert wait(db, "b", most=1).starts is None  # no job of the project has ended yet
    assert wait(db, "b", most=2).starts == 100.0


def test_a_start_is_guessed_from_what_the_projects_last_jobs_took(db):
    for number, seconds in enumerate((60, 30, 90, 40)):
        ran(db, f"past_{number}", seconds)
    create(db, "a")
    claim(db)
    move(db, "a", State.RUNNING, started=80.0)
    for job in ("b", "c", "d"):
        create(db, job)
    assert [wait(db, job, most=1).starts for job in ("b", "c", "d")] == [130.0, 180.0, 230.0]  # the median is 50 s
    assert [wait(db, job, most=2).starts for job in ("b", "c", "d")] == [100.0, 130.0, 150.0]
    assert wait(db, "b", most=1, now=131.0).starts is None  # it runs longer than usual: nobody knows


def test_the_limit_that_a_running_job_names_is_a_guess_too(db):
    create(db, "a", max_running_time=600.0)
    claim(db)
    move(db, "a", State.RUNNING, started=80.0)
    create(db, "b", max_running_time=20.0)
    create(db, "c")
    assert [wait(db, job, most=1).starts for job in ("b", "c")] == [680.0, 700.0]
    create(db, "d")
    assert wait(db, "d", most=1).starts is None  # c may run for seven days


def test_rooms_get_free_one_after_the_other():
    assert line.start_of([], [], now=5.0) is None
    assert line.start_of([1.0], [], now=5.0) == 5.0
    assert line.start_of([10.0, 20.0, math.inf], [3.0, 30.0], now=5.0) == 20.0
    assert line.start_of([math.inf, math.inf], [1.0], now=5.0) is None
