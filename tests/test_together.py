"""Small writes that wait at the same time are written together, and each is answered for itself."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from taxiway import errors
from taxiway.api import storage_forms as forms
from taxiway.api.fields import parse
from taxiway.db.tables import blobs as table
from taxiway.iam import projects
from taxiway.storage import buckets, listings, objects
from taxiway.storage.blobs import Blobs
from taxiway.storage.conditions import ALWAYS, Conditions
from taxiway.storage.objects import Metadata

OWNER = "user:ann@example.com"


@pytest.fixture
def house(db, tmp_path):
    db.write(lambda rows: projects.create(rows, "rides-project", owners=[OWNER], now=1))
    buckets.insert(db, "rides-project", "rides", now=1)
    blobs = Blobs(tmp_path / "blobs")
    yield db, blobs
    blobs.close()


def refuse():
    raise errors.PermissionDenied("not you")


def at_once(house, *wanted, conditions=ALWAYS, replacing=refuse):
    """Insert (bucket, name)s from one round of the event loop; what each was answered, an object or an error."""
    db, blobs = house

    async def one(bucket, name, number):
        writer = blobs.writer()
        await writer.write(f"{number}".encode())
        content = await writer.finish()
        return await objects.insert(
            db,
            blobs,
            bucket,
            name,
            content,
            Metadata(custom={"number": f"{number}"}),
            owner=OWNER,
            now=1,
            conditions=conditions,
            replacing=replacing,
        )

    async def go():
        asked = (one(*each, number) for number, each in enumerate(wanted))
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(go())


def blobs_in(db):
    with db.read() as rows:
        return rows.execute(sa.select(sa.func.count()).select_from(table)).scalar()


def test_many_at_once_are_all_there_with_their_own_bytes_and_metadata(house):
    answers = at_once(house, *(("rides", f"{number:03d}") for number in range(100)))
    assert len({each.generation for each in answers}) == 100
    for number, answer in enumerate(answers):
        assert objects.get_with_data(house[0], "rides", f"{number:03d}") == (answer, f"{number}".encode())
        assert answer.custom == {"number": f"{number}"}
    assert listings.page(house[0], "rides").items == answers


def test_of_one_name_at_once_the_first_wins_and_the_others_replace_or_are_refused(house):
    answers = at_once(house, ("rides", "same"), ("rides", "other"), ("rides", "same"))
    assert [type(each) for each in answers] == [objects.Object, objects.Object, errors.PermissionDenied]
    assert objects.get_with_data(house[0], "rides", "same")[1] == b"0"
    first, second = at_once(house, ("rides", "same"), ("rides", "same"), replacing=lambda: None)
    assert {first.metageneration, second.metageneration} == {1}
    assert objects.get(house[0], "rides", "same").generation == max(first.generation, second.generation)
    assert blobs_in(house[0]) == 2


def test_a_condition_holds_among_those_that_come_together(house):
    answers = at_once(house, *[("rides", "same")] * 5, conditions=Conditions(generation=0))
    assert [type(each) for each in answers] == [objects.Object] + [errors.ConditionNotMet] * 4
    assert blobs_in(house[0]) == 1


def test_one_that_cannot_be_stored_does_not_take_the_others_along(house):
    answers = at_once(house, ("rides", "a"), ("gone", "b"), ("rides", "c"))
    assert [type(each) for each in answers] == [objects.Object, errors.NotFound, objects.Object]
    assert "gs://gone" in str(answers[1])
    assert [each.name for each in listings.page(house[0], "rides").items] == ["a", "c"]
    assert blobs_in(house[0]) == 2


def test_works_beside_a_work_answer_each_item_and_undo_nothing_of_others(db):
    def works(rows, items):
        if "worst" in items:
            raise errors.Internal("nobody of us")
        for item in items:
            if item != "bad":
                rows.execute(sa.insert(table), {"id": item, "size": 0})
        return [errors.NotFound("bad") if item == "bad" else item.upper() for item in items]

    async def go():
        alone = db.commit(lambda rows: rows.execute(sa.insert(table), {"id": "alone", "size": 0}).rowcount)
        asked = [alone, *(db.commit_together(works, item) for item in ("a", "worst", "bad", "b"))]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(go())
    assert [*answers[:2], answers[4]] == [1, "A", "B"]
    assert [type(each) for each in answers[2:4]] == [errors.Internal, errors.NotFound]
    assert blobs_in(db) == 3


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ("items/name,prefixes,nextPageToken", {"name"}),
        ("nextPageToken,items(name,size)", {"name", "size"}),
        ("items/name,items/size", {"name", "size"}),
        ("*", None),
        ("items", None),
        ("items/*", None),
        ("*/name", {"name"}),
        ("nextPageToken", set()),
        ("items/owner/entity", {"owner"}),
        ("items(name,owner(entity))", {"name", "owner"}),
    ],
)
def test_a_listing_writes_only_the_fields_that_are_asked_for(asked, fields):
    assert forms.fields_of_items(parse(asked)) == fields


def test_a_part_of_a_resource_is_what_the_whole_says(house):
    made = at_once(house, ("rides", "a/b"))[0]
    whole = forms.object_form("http://here", made)
    for field, value in whole.items():
        assert forms.object_part("http://here", made, {field}) == {field: value}
    assert forms.object_part("http://here", made, {"name", "etag", "nothing"}) == {
        "name": "a/b",
        "etag": whole["etag"],
    }
