"""Lifecycle rules: read with faults that name the field, decided without a clock, applied to a real database."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors
from taxiway.iam import projects
from taxiway.storage import buckets, lifecycle, listings, objects, uploads
from taxiway.storage.blobs import SMALL, Blobs
from taxiway.storage.lifecycle import DAY, Action, Thing
from taxiway.storage.listings import Of
from taxiway.storage.objects import Metadata
from taxiway.storage.upkeep import Upkeep
from taxiway.storage.uploads import Checksums, ContentRange, Intent

OWNER = "user:ann@example.com"
DELETE = {"type": "Delete"}


def ruled(*pairs):
    """Rules of (action, condition)."""
    return lifecycle.checked({"rule": [{"action": action, "condition": condition} for action, condition in pairs]})


def decided(thing, *pairs, now):
    return lifecycle.decide(lifecycle.rules(ruled(*pairs)), thing, now=now)


# ---- decided --------------------------------------------------------------------------------------------------------

MARCH = 1_772_323_200.0  # 2026-03-01T00:00:00Z
OLD = Thing("logs/a.csv", MARCH - 10 * DAY, "NEARLINE")
BACK = Thing("logs/a.csv", MARCH - 10 * DAY, noncurrent=MARCH - 3 * DAY, newer=2)


@pytest.mark.parametrize(
    ("thing", "condition", "holds"),
    [
        (OLD, {"age": 10}, True),
        (OLD, {"age": 11}, False),
        (OLD, {"age": 0}, True),
        (OLD, {"createdBefore": "2026-02-20"}, True),
        (OLD, {"createdBefore": "2026-02-19"}, False),
        (OLD, {"isLive": True}, True),
        (OLD, {"isLive": False}, False),
        (BACK, {"isLive": False}, True),
        (OLD, {"numNewerVersions": 1}, False),
        (BACK, {"numNewerVersions": 2}, True),
        (BACK, {"numNewerVersions": 3}, False),
        (BACK, {"daysSinceNoncurrentTime": 3}, True),
        (BACK, {"daysSinceNoncurrentTime": 4}, False),
        (OLD, {"daysSinceNoncurrentTime": 0}, False),
        (BACK, {"noncurrentTimeBefore": "2026-02-27"}, True),
        (BACK, {"noncurrentTimeBefore": "2026-02-26"}, False),
        (OLD, {"noncurrentTimeBefore": "2030-01-01"}, False),
        (OLD, {"matchesPrefix": ["x", "logs/"]}, True),
        (OLD, {"matchesPrefix": ["ogs/"]}, False),
        (OLD, {"matchesSuffix": [".csv"]}, True),
        (OLD, {"matchesSuffix": [".cs"]}, False),
        (OLD, {"matchesStorageClass": ["NEARLINE"]}, True),
        (OLD, {"matchesStorageClass": ["STANDARD"]}, False),
        (OLD, {"age": 5, "matchesSuffix": [".csv"], "isLive": True}, True),
        (OLD, {"age": 5, "matchesSuffix": [".tmp"], "isLive": True}, False),
    ],
)
def test_a_rule_holds_when_all_of_its_condition_does(thing, condition, holds):
    assert decided(thing, (DELETE, condition), now=MARCH) == (Action("Delete") if holds else None)


def set_class(name):
    return {"type": "SetStorageClass", "storageClass": name}


def test_deleting_goes_first_and_the_coldest_class_wins():
    always = {"age": 0}
    colder = (set_class("COLDLINE"), always), (set_class("ARCHIVE"), always), (set_class("NEARLINE"), always)
    assert decided(OLD, *colder, now=MARCH) == Action("SetStorageClass", "ARCHIVE")
    assert decided(OLD, *colder, (DELETE, always), now=MARCH) == Action("Delete")


@given(st.sampled_from(sorted(lifecycle.COLDNESS)), st.sampled_from(sorted(lifecycle.COLDNESS)))
def test_a_class_becomes_a_colder_one_or_stays(before, after):
    action = decided(Thing("a", 0.0, before), (set_class(after), {"age": 0}), now=1)
    assert (action is not None) == (lifecycle.COLDNESS[after] > lifecycle.COLDNESS[before])


def test_rules_for_uploads_do_nothing_to_objects():
    abort = {"type": "AbortIncompleteMultipartUpload"}
    assert decided(OLD, (abort, {"age": 0}), now=MARCH) is None
    kept = lifecycle.rules(ruled((abort, {"age": 2, "matchesPrefix": ["logs/"]})))
    assert lifecycle.abandons(kept, OLD, now=MARCH)
    assert not lifecycle.abandons(kept, OLD, now=OLD.created + DAY)
    assert not lifecycle.abandons(lifecycle.rules(ruled((DELETE, {"age": 0}))), OLD, now=MARCH)


# ---- read -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"action": DELETE}, "lifecycle.rule[1]"),
        ({"action": DELETE, "condition": {}}, "lifecycle.rule[1].condition"),
        ({"action": {"type": "Shred"}, "condition": {"age": 1}}, "lifecycle.rule[1].action.type"),
        ({"action": {"type": "SetStorageClass"}, "condition": {"age": 1}}, "lifecycle.rule[1].action.storageClass"),
        ({"action": set_class("COOL"), "condition": {"age": 1}}, "lifecycle.rule[1].action.storageClass"),
        (
            {"action": {"type": "Delete", "storageClass": "ARCHIVE"}, "condition": {"age": 1}},
            "lifecycle.rule[1].action.storageClass",
        ),
        ({"action": DELETE, "condition": {"age": -1}}, "lifecycle.rule[1].condition.age"),
        ({"action": DELETE, "condition": {"age": "old"}}, "lifecycle.rule[1].condition.age"),
        ({"action": DELETE, "condition": {"createdBefore": "1.3.2026"}}, "lifecycle.rule[1].condition.createdBefore"),
        ({"action": DELETE, "condition": {"matchesPrefix": "logs"}}, "lifecycle.rule[1].condition.matchesPrefix"),
        (
            {"action": DELETE, "condition": {"matchesStorageClass": ["X"]}},
            "lifecycle.rule[1].condition.matchesStorageClass",
        ),
        ({"action": DELETE, "condition": {"customTimeBefore": "x"}}, "lifecycle.rule[1].condition.customTimeBefore"),
        (
            {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"isLive": True}},
            "lifecycle.rule[1].condition.isLive",
        ),
        ("delete it", "lifecycle.rule[1]"),
    ],
)
def test_a_wrong_rule_is_told_by_its_field(rule, field):
    good = {"action": DELETE, "condition": {"age": 1}}
    with pytest.raises(errors.InvalidArgument) as refused:
        lifecycle.checked({"rule": [good, rule]})
    assert [name for name, _ in refused.value.faults] == [field]


def test_every_fault_is_told_at_once():
    wrong = {"action": {"type": "Shred"}, "condition": {"createdBefore": "x", "matchesStorageClass": ["Y"]}}
    with pytest.raises(errors.InvalidArgument) as refused:
        lifecycle.checked({"rule": [wrong, {"action": DELETE}]})
    assert len(refused.value.faults) == 4


def test_what_is_kept_is_what_was_said():
    told = {"rule": [{"action": set_class("ARCHIVE"), "condition": {"age": "30", "matchesPrefix": ["a"]}}]}
    kept = lifecycle.checked(told)
    assert kept == {"rule": [{"action": set_class("ARCHIVE"), "condition": {"age": 30, "matchesPrefix": ["a"]}}]}
    assert lifecycle.checked(None) is lifecycle.checked({}) is lifecycle.checked({"rule": []}) is None
    for wrong in ([], {"rules": []}, {"rule": {}}, 7):
        with pytest.raises(errors.InvalidArgument, match="lifecycle"):
            lifecycle.checked(wrong)
    with pytest.raises(errors.InvalidArgument, match="at most 100 rules"):
        lifecycle.checked({"rule": [{"action": DELETE, "condition": {"age": 1}}] * 101})


# ---- applied --------------------------------------------------------------------------------------------------------


@pytest.fixture
def house(db, tmp_path):
    db.write(lambda rows: projects.create(rows, "rides-project", owners=[OWNER], now=1))
    blobs = Blobs(tmp_path / "blobs")
    yield db, blobs
    blobs.close()


def make(house, *pairs, **settings):
    settings = {"lifecycle": ruled(*pairs), **settings}
    return buckets.insert(house[0], "rides-project", "rides", settings=settings, now=1).name


def insert(house, name, data=b"x", *, now, said=None):
    async def go():
        writer = house[1].writer()
        await writer.write(data)
        content = await writer.finish()
        told = {"owner": OWNER, "now": now, "replacing": lambda: None}
        return await objects.insert(*house, "rides", name, content, said or Metadata(), **told)

    return asyncio.run(go())


def care(house, now):
    asyncio.run(Upkeep(*house, every_s=3600).round(now))


def held(house, of=Of.LIVE):
    return [each for page in listings.pages(house[0], "rides", of=of) for each in page.items]


def test_what_is_old_enough_is_deleted_with_its_bytes(house):
    make(house, (DELETE, {"age": 30, "matchesPrefix": ["tmp/"]}))
    for index in range(120):
        insert(house, f"tmp/{index:03}", bytes(SMALL + 1) if index % 40 == 0 else b"x", now=index * DAY)
    insert(house, "kept", now=1)
    care(house, 40 * DAY)
    assert [each.name for each in held(house)] == ["kept", *(f"tmp/{index:03}" for index in range(11, 120))]
    assert len(list(house[1].folder.iterdir())) == 2
    care(house, 1000 * DAY)
    assert [each.name for each in held(house)] == ["kept"]
    assert list(house[1].folder.iterdir()) == []


def test_the_newest_versions_are_kept(house):
    make(house, (DELETE, {"numNewerVersions": 3}), versioning=True)
    for name in ("a", "b", "b/c"):
        for day in range(6):
            insert(house, name, now=day * DAY)
    objects.delete(*house, "rides", "b", now=7 * DAY)
    care(house, 8 * DAY)
    left = [(each.name, each.created / DAY) for each in held(house, Of.VERSIONS)]
    assert left == [(name, day) for name in ("a", "b", "b/c") for day in (3, 4, 5)]


def test_a_live_object_becomes_noncurrent_before_it_goes(house):
    make(house, (DELETE, {"age": 10}), versioning=True)
    insert(house, "a", now=0)
    care(house, 10 * DAY)
    assert [each.deleted for each in held(house, Of.VERSIONS)] == [10 * DAY]
    care(house, 10 * DAY)
    assert held(house, Of.VERSIONS) == []


def test_a_colder_class_is_another_metageneration_of_the_same_object(house):
    make(house, (set_class("NEARLINE"), {"age": 10}), (set_class("ARCHIVE"), {"age": 100}))
    before = insert(house, "a", now=0)
    care(house, 20 * DAY)
    found = objects.get(house[0], "rides", "a")
    assert (found.storage_class, found.generation, found.metageneration) == ("NEARLINE", before.generation, 2)
    care(house, 21 * DAY)
    assert objects.get(house[0], "rides", "a") == found
    care(house, 100 * DAY)
    assert objects.get(house[0], "rides", "a").storage_class == "ARCHIVE"


def test_what_a_rule_deletes_can_be_restored_while_the_policy_says_so(house):
    make(house, (DELETE, {"age": 1}), soft_delete=7 * 86_400)
    insert(house, "a", now=0)
    care(house, 2 * DAY)
    assert [each.kept_until for each in held(house, Of.SOFT_DELETED)] == [9 * DAY]
    care(house, 9 * DAY)
    assert held(house, Of.SOFT_DELETED) == []


def test_a_rule_that_was_taken_back_meanwhile_does_nothing(house):
    """A round looks at the rules again, with the rows held still, before it acts."""
    make(house, (DELETE, {"age": 1}))
    insert(house, "a", now=0)
    found = held(house)[0]
    buckets.patch(house[0], "rides", settings=lambda current: {"lifecycle": None}, now=2)
    assert Upkeep(*house, every_s=1)._act("rides", [(found.name, found.generation)], 9 * DAY) == 0
    assert held(house) == [found]


def test_uploads_end_after_a_week_or_when_a_rule_says_so(house):
    db, blobs = house
    abort = {"type": "AbortIncompleteMultipartUpload"}
    make(house, (abort, {"age": 2, "matchesSuffix": [".tmp"]}))

    async def go():
        told = {"owner": OWNER, "size": None, "now": 0.0}
        return [await uploads.begin(db, "rides", name, Intent(metadata=Metadata()), **told) for name in names]

    async def send(session, size, total):
        async def body():
            yield bytes(size)

        said = ContentRange(0, size - 1, total)
        return await uploads.receive(db, blobs, session, body(), said, checksums=Checksums(), now=1.0)

    async def all_of_it():
        begun = await go()
        for session in begun[:2]:
            await send(session, SMALL * 2, None)
        await send(begun[2], SMALL * 2, SMALL * 2)
        keeper = Upkeep(db, blobs, every_s=3600)
        await keeper.round(3 * DAY)
        with pytest.raises(errors.NotFound):
            uploads.find(db, begun[0])
        assert uploads.find(db, begun[1]).received == SMALL * 2
        await keeper.round(7 * DAY)
        for session in begun:
            with pytest.raises(errors.NotFound):
                uploads.find(db, session)

    names = ["a.tmp", "b.csv", "c.csv"]
    asyncio.run(all_of_it())
    assert [each.name for each in held(house)] == ["c.csv"]
    assert len(list(blobs.folder.iterdir())) == 1, "the finished object's"
    assert blobs.open_uploads == {}


def test_a_round_ends_soon_after_it_is_told_to(house):
    make(house, (DELETE, {"age": 0}))
    for index in range(3):
        insert(house, str(index), now=0)

    async def go():
        keeper = Upkeep(*house, every_s=3600)
        running = asyncio.create_task(keeper.run())
        keeper.stop()
        await keeper.round(DAY)
        await asyncio.wait_for(running, 10)

    asyncio.run(go())
    assert len(held(house)) == 3


def test_a_server_does_what_the_rules_say(start_server):
    server = start_server(TAXIWAY_UPKEEP_S="1")
    bucket = f"ruled-{uuid.uuid4().hex[:10]}"
    rules = {"rule": [{"action": DELETE, "condition": {"age": 0, "matchesPrefix": ["tmp/"]}}]}
    made = server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": bucket, "lifecycle": rules})
    assert made.json()["lifecycle"] == rules
    for name in ("tmp/a", "kept"):
        query = {"uploadType": "media", "name": name}
        assert server.call("POST", f"/upload/storage/v1/b/{bucket}/o", params=query, content=b"x").status_code == 200
    deadline = time.monotonic() + 30
    while server.call("GET", f"/storage/v1/b/{bucket}/o/tmp%2Fa").status_code != 404:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)
    assert [each["name"] for each in server.call("GET", f"/storage/v1/b/{bucket}/o").json()["items"]] == ["kept"]
    assert f"lifecycle: gs://{bucket}" in server.log
