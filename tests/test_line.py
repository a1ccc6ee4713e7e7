"""The line of waiting jobs: shares of projects, places, guesses; the rows of a real database, the clock an argument."""

from __future__ import annotations

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taxiway.compute import attempts, filters, logs
from taxiway.db.database import Prepared
from taxiway.db.tables import jobs
from taxiway.iam import projects
from taxiway.jobs import line, queue
from taxiway.jobs.line import Line
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
    return Line(db).now().wait(queue.get(db, project, job).position, most=most, now=now)


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
    order = Line(db).now()
    foretold, places = [each.id for each in order.waiting], order.places
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
        line.last_queued(rows)
        queue.waiting(rows, worker="w1", now=5.0)
        plans = [row.detail for text, values in tuple(asked) for row in explained(rows, text, values)]
    given = {"least": 1, "project": PROJECTS[0]}
    for prepared in (line._WAITING, line._NEW, line._HELD, line._TOOK):
        plans += [row[-1] for row in db.rows(Plan(prepared), given)]
    assert "SEARCH jobs USING COVERING INDEX ix_jobs_queue (state=?)" in plans  # the order asks for no row of the table
    touched = [plan for plan in plans if plan.startswith(("SCAN jobs", "SEARCH jobs"))]
    assert touched
    assert [plan for plan in touched if "INDEX" not in plan or plan.startswith("SCAN")] == []


def test_what_has_ended_costs_the_first_page_of_a_list_a_lease_and_what_is_looked_for_nothing(db):
    asked = []
    for engine in (db._reading, db._writing):
        sa.event.listen(engine, "before_cursor_execute", lambda _c, _u, text, values, *_: asked.append((text, values)))
    queue.newest(db, PROJECTS[0], limit=20)
    queue.newest(db, PROJECTS[0], limit=20, before=5)
    queue.renew(db, worker="w1", until=5.0)
    queue.release_all(db)
    with db.read() as rows:
        attempts.growing(rows)
        queue.going(rows)
    queue.waited_out(db, now=5.0)
    looks = [each for each in asked if each[0].startswith(("SELECT", "UPDATE"))]
    assert len(looks) == 7
    with db.read() as rows:
        plans = [row.detail for text, values in looks for row in explained(rows, text, values)]
    index = re.compile("SEARCH (jobs|attempts) USING (COVERING )?INDEX")
    assert all(map(index.match, plans)), plans  # and nothing is sorted


def explained(rows, text, values):
    return rows.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()


class Plan(Prepared):
    """How SQLite would answer a prepared statement."""

    def __init__(self, told):
        self.sql, self._constants = f"EXPLAIN QUERY PLAN {told.sql}", told._constants


# --- one order for all who ask ---


def seen(order):
    return order.waiting, order.held, order.places


def test_the_line_is_ordered_once_for_all_who_ask_until_it_changes(db):
    held = Line(db)
    for job in ("a", "b"):
        create(db, job)
    order = held.now()
    assert [each.id for each in order.waiting] == ["a", "b"]
    db.write(lambda tx: logs.say(tx, PROJECTS[0], "a", "Not of the line.", now=1.0))
    queue.set_labels(db, PROJECTS[0], "a", {"owner": "ann"}, etag=None)
    assert held.now() is order
    claim(db)
    assert held.now() is not order
    assert [each.id for each in held.now().held] == ["a"]


CHANGES = ("create", "claim", "run", "end", "cancel")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.sampled_from(PROJECTS), st.integers(0, 2)), max_size=25))
def test_no_change_that_is_on_the_disk_is_missed(db, changes):
    held = Line(db)
    for number, (change, project, priority) in enumerate(changes):
        order = held.now()
        if change == "create":
            create(db, f"j{time.monotonic_ns()}", project, priority=priority, max_running_time=100.0 + number)
        elif change == "claim":
            claim(db)
        elif change == "cancel" and order.waiting:
            found = order.waiting[priority % len(order.waiting)]
            queue.cancel(db, found.project, found.id, now=5.0)
        elif change in ("run", "end") and order.held:
            found = order.held[priority % len(order.held)]
            started = {"started": 10.0 + number}
            db.write(lambda tx, found=found: queue.runs(tx, found.project, found.id, now=10.0))
            if change == "end":
                move(db, found.id, State.SUCCEEDED, found.project, ended=50.0, **started)
        assert seen(held.now()) == seen(Line(db).now())


def test_whoever_was_told_of_a_change_sees_it_while_others_ask_and_change(db):
    held = Line(db)

    def submit(number):
        for each in range(12):
            job = create(db, f"j{number}_{each}", PROJECTS[number % 3])
            assert job.position in held.now().places
            if each % 3 == 0:
                queue.cancel(db, job.project, job.id, now=5.0)
                assert job.position not in held.now().places

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(submit, number) for number in range(8)]:
            done.result()
    assert seen(held.now()) == seen(Line(db).now())
    assert len(held.now().waiting) == 8 * 8


def test_why_a_job_waits_is_told_once_and_not_to_one_that_was_cancelled_meanwhile(db):
    held = Line(db)
    for job in ("a", "b", "c"):
        create(db, job)
    claim(db)
    assert held.explain(most=1, after=0, now=20.0) == 3
    assert held.explain(most=1, after=3, now=20.0) == 3
    create(db, "d")
    queue.cancel(db, PROJECTS[0], "d", now=21.0)
    assert held.explain(most=1, after=3, now=22.0) == 3
    waits = [each for job in ("a", "b", "c", "d") for each in said(db, job) if each.startswith("Waiting")]
    assert waits == [
        "Waiting for another job to end: 1 run (a), 1 may at once, and no queued job starts before this one.",
        "Waiting for another job to end: 1 run (a), 1 may at once, and 1 queued job starts before this one.",
    ]


def said(db, job, project=PROJECTS[0]):
    found = logs.page(db, [project], filters.sql(f'resource.labels.job_id="{job}"'), limit=99)
    return [entry.message for entry in found]


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


def test_a_guess_moves_with_the_clock_though_the_line_stays_as_it_is(db):
    for number in range(3):
        ran(db, f"past_{number}", 50)
    create(db, "a")
    claim(db)
    move(db, "a", State.RUNNING, started=80.0)
    job, order = create(db, "b"), Line(db).now()
    assert [order.wait(job.position, most=1, now=now).starts for now in (90.0, 120.0, 131.0)] == [130.0, 130.0, None]
    assert [order.wait(job.position, most=2, now=now).starts for now in (90.0, 120.0)] == [90.0, 120.0]


def test_rooms_get_free_one_after_the_other():
    assert list(line.starts([], [])) == [None]
    assert list(line.starts([5.0], [])) == [5.0]
    assert list(line.starts([10.0, 20.0, math.inf], [3.0, 30.0])) == [10.0, 13.0, 20.0]
    assert list(line.starts([math.inf, math.inf], [1.0])) == [None, None]
