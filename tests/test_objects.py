"""Objects: generations that grow, conditions that hold in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from taxiway import errors
from taxiway.iam import projects
from taxiway.storage import buckets, objects
from taxiway.storage.blobs import SMALL, Blobs
from taxiway.storage.conditions import ALWAYS, Conditions
from taxiway.storage.objects import Metadata

OWNER = "user:ann@example.com"


@pytest.fixture
def blobs(tmp_path):
    made = Blobs(tmp_path / "blobs")
    yield made
    made.close()


@pytest.fixture
def house(db, blobs):
    db.write(lambda rows: projects.create(rows, "rides-project", owners=[OWNER], now=1))
    buckets.insert(db, "rides-project", "rides", now=1)
    return db, blobs


def insert(house, name, data=b"x", *, replacing=lambda: None, conditions=ALWAYS, now=1.0):
    db, blobs = house

    async def go():
        writer = blobs.writer()
        await writer.write(data)
        content = await writer.finish()
        return await objects.insert(
            db,
            blobs,
            "rides",
            name,
            content,
            Metadata(),
            owner=OWNER,
            now=now,
            conditions=conditions,
            replacing=replacing,
        )

    return asyncio.run(go())


def refuse():
    raise errors.PermissionDenied("You may not replace it.")


def test_a_row_and_its_fields_are_in_one_order():
    assert list(objects.Object.__struct_fields__) == [column.name for column in objects.noncurrent.columns]
    assert list(objects.Object.__struct_fields__)[:-2] == [column.name for column in objects.table.columns]
    assert list(buckets.Bucket.__struct_fields__)[:-1] == [column.name for column in buckets.table.columns]


def test_a_generation_grows_with_every_write(house):
    generations = [insert(house, "o", now=now).generation for now in (100.0, 100.0, 50.0)]
    assert generations == sorted(set(generations))


def test_replacing_is_asked_for_only_if_there_is_something(house):
    insert(house, "o", b"1", replacing=refuse)
    with pytest.raises(errors.PermissionDenied, match="may not replace"):
        insert(house, "o", b"2" * (SMALL + 1), replacing=refuse)
    assert objects.get_with_data(house[0], "rides", "o")[1] == b"1"
    assert list(house[1].folder.iterdir()) == []


def test_of_many_that_demand_a_new_object_one_wins(house):
    won = []

    def attempt(index):
        with contextlib.suppress(errors.ConditionNotMet):
            won.append(insert(house, "o", str(index).encode(), conditions=Conditions(generation=0)).generation)

    threads = [threading.Thread(target=attempt, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert objects.get(house[0], "rides", "o").generation == won[0]


@pytest.mark.parametrize(
    ("conditions", "exists", "reading", "raised"),
    [
        (Conditions(generation=0), False, False, None),
        (Conditions(generation=0), True, False, errors.ConditionNotMet),
        (Conditions(generation=7), False, False, errors.ConditionNotMet),
        (Conditions(generation_not=0), False, False, errors.ConditionNotMet),
        (Conditions(generation_not=0), True, False, None),
        (Conditions(metageneration=1), True, False, None),
        (Conditions(metageneration=2), True, True, errors.ConditionNotMet),
        (Conditions(metageneration_not=1), True, True, errors.NotModified),
        (Conditions(metageneration_not=1), True, False, errors.ConditionNotMet),
    ],
)
def test_preconditions(house, conditions, exists, reading, raised):
    current = insert(house, "o") if exists else None
    if raised is None:
        conditions.check("o", current, reading=reading)
        return
    with pytest.raises(raised, match="pre-conditions"):
        conditions.check("o", current, reading=reading)


def test_the_file_goes_with_the_last_object_that_has_it(house):
    db, blobs = house
    insert(house, "one", bytes(SMALL + 1))
    objects.copy(db, blobs, ("rides", "one"), ("rides", "two"), owner=OWNER, now=2, replacing=refuse)
    objects.delete(db, blobs, "rides", "one", now=3)
    assert len(list(blobs.folder.iterdir())) == 1
    insert(house, "two", b"small now")
    assert list(blobs.folder.iterdir()) == []


def test_an_object_copied_onto_itself_keeps_its_bytes(house):
    db, blobs = house
    insert(house, "o", bytes(SMALL + 1))
    made = objects.copy(
        db, blobs, ("rides", "o"), ("rides", "o"), owner=OWNER, now=2, changes={"custom": {"a": "b"}}, replacing=bool
    )
    assert made.custom == {"a": "b"}
    assert blobs.path(made.blob).stat().st_size == SMALL + 1


def test_a_composed_object_has_no_md5_and_counts_its_parts(house):
    db, blobs = house
    for each in "ab":
        insert(house, each, each.encode())
    sources = [("a", None, ALWAYS), ("b", None, ALWAYS)]
    first = objects.compose(db, blobs, "rides", sources, "ab", owner=OWNER, now=2, replacing=refuse)
    assert (first.md5, first.components, first.size) == (None, 2, 2)
    again = [("ab", None, ALWAYS), ("a", None, ALWAYS)]
    assert objects.compose(db, blobs, "rides", again, "ab", owner=OWNER, now=2, replacing=bool).components == 3
    assert objects.get_with_data(db, "rides", "ab")[1] == b"aba"
    with pytest.raises(errors.InvalidArgument, match="1 to 32"):
        objects.compose(db, blobs, "rides", [], "none", owner=OWNER, now=2, replacing=bool)


def test_a_bucket_deleted_meanwhile_takes_no_object(house):
    db, blobs = house
    buckets.delete(db, blobs, "rides")
    with pytest.raises(errors.NotFound, match="does not exist any more"):
        insert(house, "late", bytes(SMALL + 1))
    assert list(blobs.folder.iterdir()) == []


def test_buckets_of_another_project_are_named_as_such(house):
    db, _ = house
    db.write(lambda rows: projects.create(rows, "other-project", owners=[OWNER], now=1))
    with pytest.raises(errors.AlreadyExists, match="belongs to another project"):
        buckets.insert(db, "other-project", "rides", now=2)
    with pytest.raises(errors.InvalidArgument, match="location"):
        buckets.insert(db, "other-project", "marsian", location="mars", now=2)
    assert buckets.insert(db, "other-project", "nam", location="nam4", now=2).location_type == "dual-region"
