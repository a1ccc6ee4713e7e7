"""Noncurrent and soft-deleted objects: kept as dictionaries would keep them, and their bytes no longer than that."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from taxiway import errors
from taxiway.db.tables import blobs as blobs_table
from taxiway.db.tables import objects as live_table
from taxiway.iam import projects
from taxiway.storage import buckets, listings, noncurrent, objects
from taxiway.storage.blobs import SMALL, Blobs
from taxiway.storage.conditions import ALWAYS, Conditions
from taxiway.storage.listings import Of
from taxiway.storage.objects import Metadata

OWNER = "user:ann@example.com"
WEEK = 604_800


@pytest.fixture
def house(db, tmp_path):
    db.write(lambda rows: projects.create(rows, "rides-project", owners=[OWNER], now=1))
    blobs = Blobs(tmp_path / "blobs")
    yield db, blobs
    blobs.close()


@pytest.fixture
def versioned(house):
    buckets.insert(house[0], "rides-project", "rides", settings={"versioning": True}, now=1)
    return house


def insert(house, bucket, name, data, *, conditions=ALWAYS, now=1.0):
    db, blobs = house

    async def go():
        writer = blobs.writer()
        await writer.write(data)
        content = await writer.finish()
        said = Metadata(custom={"first": data[:5].decode()})
        told = {"owner": OWNER, "now": now, "conditions": conditions, "replacing": lambda: None}
        return await objects.insert(db, blobs, bucket, name, content, said, **told)

    return asyncio.run(go())


def read(house, bucket, name, generation=None):
    db, blobs = house
    found, data = objects.get_with_data(db, bucket, name, generation=generation)
    return blobs.path(found.blob).read_bytes() if data is None else data


def set_to(house, bucket, now=2.0, **columns):
    buckets.patch(house[0], bucket, settings=lambda current: columns, now=now)


def keys(house, bucket, of):
    return [(each.name, each.generation) for page in listings.pages(house[0], bucket, of=of) for each in page.items]


class Generations(RuleBasedStateMachine):
    """What a bucket holds beside what three dictionaries hold: the live, the noncurrent, the soft-deleted."""

    def __init__(self, house):
        super().__init__()
        self.house, self.now = house, 10.0
        self.db, self.blobs = house
        self.bucket = f"b{len(buckets.page(self.db, 'rides-project', limit=100_000))}-bucket"
        buckets.insert(self.db, "rides-project", self.bucket, now=1)
        self.live, self.back, self.soft = {}, {}, {}  # name -> (generation, metageneration, bytes); (name, generation)
        self.versioning, self.soft_delete, self.serial = False, 0, 0

    names = st.sampled_from(["a", "a/b", "b"])

    def tick(self):
        self.now += 1.0
        return self.now

    def gone(self, name, *, for_good=False):
        generation, _, data = self.live.pop(name)
        if self.versioning and not for_good:
            self.back[name, generation] = data
        elif self.soft_delete:
            self.soft[name, generation] = (data, self.now + self.soft_delete)

    def stands(self, conditions, name):
        generation, metageneration, _ = self.live.get(name, (0, None, b""))
        return all(
            wanted is None or (wanted == found) is same
            for wanted, found, same in (
                (conditions.generation, generation, True),
                (conditions.generation_not, generation, False),
                (conditions.metageneration, metageneration, True),
                (conditions.metageneration_not, metageneration, False),
            )
        )

    def put(self, name, made, data):
        if name in self.live:
            assert made.generation > self.live[name][0]
            self.gone(name)
        assert made.generation not in {generation for _, generation in [*self.back, *self.soft]}
        self.live[name] = (made.generation, 1, data)

    @initialize(versioning=st.booleans(), soft_delete=st.booleans())
    def begin(self, versioning, soft_delete):
        self.change(versioning, soft_delete)

    @rule(versioning=st.booleans(), soft_delete=st.booleans())
    def change(self, versioning, soft_delete):
        self.versioning, self.soft_delete = versioning, WEEK if soft_delete else 0
        set_to(self.house, self.bucket, versioning=self.versioning, soft_delete=self.soft_delete)

    @rule(
        name=names,
        large=st.booleans(),
        how=st.sampled_from(["", "", "", "new", "same", "other", "not", "meta", "not meta"]),
    )
    def write(self, name, large, how):
        self.serial += 1
        data = f"{self.serial:05}".encode() * (SMALL // 4 if large else 1)
        generation = self.live.get(name, (7, 0, b""))[0]
        conditions = {
            "": Conditions(),
            "new": Conditions(generation=0),
            "same": Conditions(generation=generation),
            "other": Conditions(generation=generation + 1),
            "not": Conditions(generation_not=generation),
            "meta": Conditions(metageneration=1),
            "not meta": Conditions(metageneration_not=1),
        }[how]
        now = self.tick()
        if self.stands(conditions, name):
            self.put(name, insert(self.house, self.bucket, name, data, conditions=conditions, now=now), data)
        else:
            with pytest.raises(errors.ConditionNotMet):
                insert(self.house, self.bucket, name, data, conditions=conditions, now=now)

    @rule(name=names)
    def delete(self, name):
        now = self.tick()
        if name not in self.live:
            with pytest.raises(errors.NotFound):
                objects.delete(self.db, self.blobs, self.bucket, name, now=now)
            return
        objects.delete(self.db, self.blobs, self.bucket, name, now=now)
        self.gone(name)

    @precondition(lambda self: self.live or self.back)
    @rule(data=st.data())
    def delete_for_good(self, data):
        now = self.tick()
        held = [(name, generation) for name, (generation, _, _) in self.live.items()]
        name, generation = data.draw(st.sampled_from(sorted([*held, *self.back])))
        objects.delete(self.db, self.blobs, self.bucket, name, generation=generation, now=now)
        if (name, generation) in held:
            self.gone(name, for_good=True)
            return
        bytes_ = self.back.pop((name, generation))
        if self.soft_delete:
            self.soft[name, generation] = (bytes_, now + self.soft_delete)

    @precondition(lambda self: self.back)
    @rule(data=st.data(), onto=names, move=st.booleans())
    def bring_back(self, data, onto, move):
        name, generation = data.draw(st.sampled_from(sorted(self.back)))
        bytes_, now = self.back[name, generation], self.tick()
        pair = (self.bucket, name), (self.bucket, onto)
        told = {"source_generation": generation, "owner": OWNER, "now": now, "replacing": lambda: None}
        made = objects.copy(self.db, self.blobs, *pair, **told, move=move)
        self.put(onto, made, bytes_)
        if move and name != onto:
            del self.back[name, generation]
            if self.soft_delete:
                self.soft[name, generation] = (bytes_, now + self.soft_delete)

    @precondition(lambda self: self.soft)
    @rule(data=st.data())
    def restore(self, data):
        name, generation = data.draw(st.sampled_from(sorted(self.soft)))
        bytes_, now = self.soft[name, generation][0], self.tick()
        key = self.db, self.blobs, self.bucket, name, generation
        self.put(name, noncurrent.restore(*key, now=now, replacing=lambda: None), bytes_)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def patch(self, data):
        name = data.draw(st.sampled_from(sorted(self.live)))
        generation, metageneration, bytes_ = self.live[name]
        told = {"conditions": Conditions(metageneration=metageneration), "now": self.tick()}
        objects.patch(self.db, self.bucket, name, {"content_type": "text/csv"}, **told)
        self.live[name] = (generation, metageneration + 1, bytes_)

    @precondition(lambda self: self.soft)
    @rule()
    def wait(self):
        self.now = min(until for _, until in self.soft.values())
        while noncurrent.expire(self.db, self.blobs, now=self.now):
            pass
        self.soft = {key: kept for key, kept in self.soft.items() if kept[1] > self.now}

    @invariant()
    def it_holds_what_the_dictionaries_hold(self):
        live = [(name, generation) for name, (generation, _, _) in self.live.items()]
        assert keys(self.house, self.bucket, Of.LIVE) == sorted(live)
        assert keys(self.house, self.bucket, Of.VERSIONS) == sorted([*live, *self.back])
        assert keys(self.house, self.bucket, Of.SOFT_DELETED) == sorted(self.soft)

    @invariant()
    def every_byte_is_there(self):
        for name, (generation, metageneration, data) in self.live.items():
            assert read(self.house, self.bucket, name) == read(self.house, self.bucket, name, generation) == data
            assert objects.get(self.db, self.bucket, name).metageneration == metageneration
        for (name, generation), data in self.back.items():
            assert read(self.house, self.bucket, name, generation) == data
        for name, generation in self.soft:
            with pytest.raises(errors.NotFound):
                objects.get(self.db, self.bucket, name, generation=generation)
            assert noncurrent.get(self.db, self.bucket, name, generation).kept_until

    def teardown(self):
        """Every blob that is kept is needed, and the bucket takes them all with it."""
        for name in list(self.live):
            objects.delete(self.db, self.blobs, self.bucket, name, now=self.tick())
            self.gone(name)
        if self.back:
            with pytest.raises(errors.Aborted, match="not empty"):
                buckets.delete(self.db, self.blobs, self.bucket)
        for name, generation in self.back:
            objects.delete(self.db, self.blobs, self.bucket, name, generation=generation, now=self.tick())
        buckets.delete(self.db, self.blobs, self.bucket)
        with self.db.read() as rows:
            assert rows.execute(sa.select(blobs_table.c.id)).all() == []
        assert list(self.blobs.folder.iterdir()) == []


def test_generations_are_kept_as_dictionaries_would_keep_them(house):
    run_state_machine_as_test(
        lambda: Generations(house),
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_bytes_that_a_noncurrent_object_shares_outlive_the_live_one(versioned):
    db, blobs = versioned
    data = bytes(SMALL + 1)
    generation = insert(versioned, "rides", "o", data).generation
    objects.delete(db, blobs, "rides", "o", now=2)
    told = {"source_generation": generation, "owner": OWNER, "now": 3.0, "replacing": lambda: None}
    objects.copy(db, blobs, ("rides", "o"), ("rides", "o"), **told)
    set_to(versioned, "rides", versioning=False)
    objects.delete(db, blobs, "rides", "o", now=4)
    assert read(versioned, "rides", "o", generation) == data
    objects.delete(db, blobs, "rides", "o", generation=generation, now=5)
    assert list(blobs.folder.iterdir()) == []


def test_a_noncurrent_object_that_goes_for_good_rests_where_a_policy_says_so(versioned):
    db, blobs = versioned
    set_to(versioned, "rides", soft_delete=WEEK)
    generation = insert(versioned, "rides", "o", b"one").generation
    objects.delete(db, blobs, "rides", "o", now=2)
    objects.delete(db, blobs, "rides", "o", generation=generation, now=3)
    assert keys(versioned, "rides", Of.VERSIONS) == []
    found = noncurrent.get(db, "rides", "o", generation)
    assert (found.deleted, found.kept_until) == (3.0, 3.0 + WEEK)
    with pytest.raises(errors.NotFound):
        objects.delete(db, blobs, "rides", "o", generation=generation, now=4)


def test_a_noncurrent_object_says_since_when_and_can_be_changed(versioned):
    db, _ = versioned
    first = insert(versioned, "rides", "o", b"one", now=1.0)
    insert(versioned, "rides", "o", b"two", now=5.0)
    found = objects.get(db, "rides", "o", generation=first.generation)
    assert (found.deleted, found.kept_until, found.created) == (5.0, None, 1.0)
    told = {"generation": first.generation, "now": 6.0}
    made = objects.patch(db, "rides", "o", {"custom": {"a": "b"}}, conditions=Conditions(metageneration=1), **told)
    assert (made.metageneration, made.custom["a"]) == (2, "b")
    assert objects.get(db, "rides", "o", generation=first.generation) == made
    assert "a" not in objects.get(db, "rides", "o").custom


def test_a_generation_is_never_used_again_not_even_after_a_restart(versioned, tmp_path):
    db, blobs = versioned
    far = insert(versioned, "rides", "o", b"one", now=9e9).generation
    objects.delete(db, blobs, "rides", "o", now=9e9)
    again = Blobs(tmp_path / "blobs")
    again.sweep(db, now=2)
    assert insert((db, again), "rides", "o", b"two", now=2.0).generation > far
    again.close()


def test_the_bytes_of_noncurrent_objects_are_no_strays(versioned):
    db, blobs = versioned
    generation = insert(versioned, "rides", "o", bytes(SMALL + 1)).generation
    objects.delete(db, blobs, "rides", "o", now=2)
    assert blobs.sweep(db, now=3) == 0
    assert len(read(versioned, "rides", "o", generation)) == SMALL + 1


def test_a_new_object_of_a_name_with_noncurrent_ones_is_new(versioned):
    db, blobs = versioned
    insert(versioned, "rides", "o", b"one")
    objects.delete(db, blobs, "rides", "o", now=2)
    insert(versioned, "rides", "o", b"two", conditions=Conditions(generation=0))
    with db.read() as rows:
        assert rows.execute(sa.select(sa.func.count()).select_from(live_table)).scalar() == 1
