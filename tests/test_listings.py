"""Listings: like a walk over everything there is, page by page, and at the price of what they show."""

from __future__ import annotations

import re
from itertools import count

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taxiway import errors
from taxiway.db.tables import noncurrent
from taxiway.iam import projects
from taxiway.storage import buckets, globs, listings, objects
from taxiway.storage.blobs import Blobs, Content
from taxiway.storage.conditions import ALWAYS
from taxiway.storage.globs import glob
from taxiway.storage.listings import Of
from taxiway.storage.objects import Metadata

OWNER = "user:ann@example.com"
NAMES = st.text(st.sampled_from("ab/é\U0010ffff\ud7ff-"), min_size=1, max_size=6)
COUNTER = count()


@pytest.fixture
def house(db, tmp_path):
    db.write(lambda rows: projects.create(rows, "rides-project", owners=[OWNER], now=1))
    blobs = Blobs(tmp_path / "blobs")
    yield db, blobs
    blobs.close()


def fill(house, names, **settings):
    """A new bucket with an object of each name, a name that comes twice in two generations."""
    db, blobs = house
    bucket = f"b{next(COUNTER)}-bucket"
    buckets.insert(db, "rides-project", bucket, settings=settings, now=1)

    def work(rows):
        for name in names:
            content = Content(blobs.fresh_id(), 1, "", None, b"x")
            new = objects.New(bucket, name, content, Metadata(), OWNER, 1.0)
            objects.put(rows, blobs, new, ALWAYS, may_replace=True)

    db.write(work)
    return bucket


def walk(db, bucket, **asked):
    """(items, prefixes) of all pages, in order."""
    items, prefixes, start, generation = [], [], asked.pop("start", ""), 0
    while True:
        page = listings.page(db, bucket, start=start, generation=generation, **asked)
        items += page.items
        prefixes += page.prefixes
        assert len(page.items) + len(page.prefixes) <= asked["limit"] + 1
        if not page.following:
            return items, prefixes
        assert (page.following, page.generation) > (start, generation)
        start, generation = page.following, page.generation


def naive(names, prefix, delimiter, start, end, trailing, pattern):
    """(items, prefixes) as the reference page says, over every name."""
    items, prefixes = [], []
    for name in sorted(names):
        if not name.startswith(prefix) or name < start or (end and name >= end):
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        group = name[: cut + len(delimiter)] if cut >= 0 else ""
        if group and group not in prefixes and (not pattern or glob(pattern).matches(group)):
            prefixes.append(group)
        if (not group or (trailing and name == group)) and (not pattern or glob(pattern).matches(name)):
            items.append(name)
    return items, prefixes


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_listing_tells_what_a_walk_over_all_names_would(house, data):
    names = data.draw(st.lists(NAMES, max_size=25))
    prefix, start, end = (data.draw(st.one_of(st.just(""), NAMES)) for _ in range(3))
    delimiter = data.draw(st.sampled_from(["", "/", "a", "//"]))
    pattern = data.draw(st.sampled_from(["", "", "*", "**", "a*", "*/", "**/a", "[ab]/**", "{a,b/**}b", "?é*"]))
    trailing, limit = data.draw(st.booleans()), data.draw(st.integers(1, 6))
    of = data.draw(st.sampled_from(Of))
    kept = {Of.LIVE: {}, Of.VERSIONS: {"versioning": True}, Of.SOFT_DELETED: {"soft_delete": 604_800}}[of]
    bucket = fill(house, names, **kept)
    told = {"prefix": prefix, "delimiter": delimiter, "start": start, "end": end, "trailing": trailing}
    pattern_read = glob(pattern) if pattern else None
    items, prefixes = walk(house[0], bucket, of=of, glob=pattern_read, limit=limit, **told)
    there = list(names)
    for name in set(names) if of is Of.SOFT_DELETED else ():
        there.remove(name)  # one of each is live
    if of is Of.LIVE:
        there = list(set(names))
    assert ([each.name for each in items], prefixes) == naive(there, *told.values(), pattern)
    assert [(each.name, each.generation) for each in items] == sorted((each.name, each.generation) for each in items)


def test_versions_of_one_name_are_paged_by_their_generation(house):
    bucket = fill(house, ["a"] * 7 + ["b"], versioning=True)
    items, _ = walk(house[0], bucket, of=Of.VERSIONS, limit=2)
    assert [each.name for each in items] == ["a"] * 7 + ["b"]
    assert len({each.generation for each in items}) == 8
    assert [each.deleted is None for each in items] == [False] * 6 + [True, True]


def test_each_generation_of_a_name_that_is_a_prefix_is_shown_and_the_prefix_is_told_once(house):
    bucket = fill(house, ["a/", "a/", "a/x", "b"], versioning=True)
    for limit in (1, 2, 3, 10):
        items, prefixes = walk(house[0], bucket, of=Of.VERSIONS, delimiter="/", trailing=True, limit=limit)
        assert [each.name for each in items] == ["a/", "a/", "b"]
        assert prefixes == ["a/"]


def limits_of(db, work):
    """What `work` asked the database for: how many rows each statement may have answered."""
    work()  # so that there is a connection to listen on
    said = []
    (connection,) = db._looking
    connection.set_trace_callback(said.append)
    work()
    connection.set_trace_callback(None)
    return [int(each) for line in said for each in re.findall(r"LIMIT (\d+)", line)]


def test_a_listing_seeks_past_what_it_does_not_show(house):
    """Twenty folders of five hundred names cost some twenty seeks of four rows, not ten thousand rows."""
    bucket = fill(house, [f"{folder:03}/{index:04}" for folder in range(20) for index in range(500)])
    found = listings.page(house[0], bucket, delimiter="/")
    assert found.prefixes == [f"{folder:03}/" for folder in range(20)]
    limits = limits_of(house[0], lambda: listings.page(house[0], bucket, delimiter="/"))
    assert 20 <= len(limits) <= 22
    assert sum(limits) < 200


def test_a_glob_looks_only_at_what_begins_as_it_does(house):
    bucket = fill(house, [f"{letter}{index:03}" for letter in "abc" for index in range(300)])
    assert [each.name for each in listings.page(house[0], bucket, glob=glob("b00*")).items] == [
        f"b00{index}" for index in range(10)
    ]
    assert sum(limits_of(house[0], lambda: listings.page(house[0], bucket, glob=glob("b00*")))) < 50


def test_a_page_that_finds_little_ends_early_and_the_next_one_goes_on(house):
    bucket = fill(house, ["0"])
    others = ", ".join(column.name for column in objects.table.columns if column.name != "name")
    numbers = "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 12000)"
    copies = f"{numbers} INSERT INTO objects (name, {others}) SELECT printf('%05d', i), {others} FROM objects, n"
    house[0].write(lambda rows: rows.exec_driver_sql(f"{copies} WHERE bucket = ?", (bucket,)).rowcount)
    first = listings.page(house[0], bucket, glob=glob("*2000"))
    assert [each.name for each in first.items] == ["02000"]
    assert first.following == f"{listings.LOOKED:05}"
    items, _ = walk(house[0], bucket, glob=glob("*2000"), limit=1000)
    assert [each.name for each in items] == ["02000", "12000"]


@pytest.mark.parametrize("of", list(Of))
def test_a_page_is_sought_by_an_index_alone(house, of):
    """So its price is that of what it shows, however many objects there are."""
    bucket = fill(house, ["a", "a"], versioning=True)
    said = []
    listings.page(house[0], bucket, of=of, end="b")
    (connection,) = house[0]._looking
    connection.set_trace_callback(said.append)
    listings.page(house[0], bucket, of=of, end="b")
    connection.set_trace_callback(None)
    asked = [line for line in said if "LIMIT" in line]
    assert len(asked) == (2 if of is Of.VERSIONS else 1)
    for line in asked:
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {line}"))
        assert re.search(r"SEARCH \w+ USING INDEX", plan), plan
        assert "TEMP B-TREE" not in plan
        assert "name" in plan


def test_a_bucket_that_is_not_there_has_no_listing(house):
    with pytest.raises(errors.NotFound, match="taxiway storage mb"):
        listings.page(house[0], "no-such-bucket")


def test_what_is_soft_deleted_hides_no_version_and_makes_no_prefix(house):
    db, blobs = house
    bucket = fill(house, ["a/x", "b/x", "b/x"], versioning=True, soft_delete=604_800)
    objects.delete(db, blobs, bucket, "a/x", now=2, generation=objects.get(db, bucket, "a/x").generation)
    assert listings.page(db, bucket, of=Of.VERSIONS, delimiter="/").prefixes == ["b/"]
    assert listings.page(db, bucket, of=Of.SOFT_DELETED, delimiter="/").prefixes == ["a/"]
    with db.read() as rows:
        assert rows.execute(noncurrent.select()).all()


def test_after_all_is_the_first_text_past_a_prefix():
    assert listings.after_all("a/") == "a0"
    assert listings.after_all("\ud7ff") == "\ue000"
    assert listings.after_all("a\U0010ffff") == "b"
    assert listings.after_all("") == listings.after_all("\U0010ffff") == ""


# ---- patterns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a*", ["a", "ab"], ["a/b", "ba"]),
        ("a**", ["a", "ab", "a/b"], ["ba"]),
        ("img/**.jpg", ["img/b.jpg", "img/hi/p.jpg", "img/.jpg"], ["img/b.png", "b.jpg"]),
        ("a/**/b/*.avro", ["a/b/x.avro", "a/c/d/b/x.avro"], ["a/b/c/x.avro", "ab/x.avro"]),
        ("**/x", ["x", "a/x", "/x"], ["ax"]),
        ("a**/b", ["a/b", "ac/d/b"], ["ab"]),
        ("?.csv", ["a.csv", "é.csv"], [".csv", "/.csv", "ab.csv"]),
        ("[a-c-]x", ["ax", "cx", "-x"], ["dx", "x"]),
        ("[!a]x", ["bx"], ["ax", "/x", "x"]),
        ("[^a-b]x", ["cx"], ["bx"]),
        ("[a/b]x", ["/x"], ["cx"]),
        ("{a,b{c,d*},}x", ["ax", "bcx", "bd1x", "x"], ["bx", "cx"]),
        ("{**/x,y}", ["x", "a/x", "y"], ["a/y"]),
        (r"a\*\[b", ["a*[b"], ["aa[b"]),
        ("a\\", ["a\\"], ["a"]),
        ("a,b", ["a,b"], ["a"]),
    ],
)
def test_a_pattern_matches_as_cloud_storage_says(pattern, matching, others):
    assert [name for name in matching + others if glob(pattern).matches(name)] == matching


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("test/[abc", r"'\[' at character 5 is not closed"),
        ("test/[]a]", "at character 5 holds no character"),
        ("[!]", "holds no character"),
        ("a]", r"'\]' at character 1 closes no '\['"),
        ("a}", "'}' at character 1 closes no '{'"),
        ("{a,{b", "'{' at character 3 is not closed"),
        ("[z-a]", "range z-a"),
        ("[[a]", "inside another one"),
        ("{[a,b]}", r"'\[' at character 1 is not closed"),
        ("{" * 500 + "}" * 500, "more than 32 braces"),
        ("a" * 1025, "1024 characters"),
    ],
)
def test_a_malformed_pattern_is_told_where_it_is_wrong(pattern, why):
    with pytest.raises(errors.InvalidArgument, match=f"matchGlob.*{why}"):
        glob(pattern)


@given(st.text(max_size=20))
@example("*\\")
def test_what_a_pattern_begins_with_is_what_its_names_begin_with(text):
    try:
        read = globs.Glob(text)
    except errors.InvalidArgument:
        return
    name = text.replace("*", "x").replace("\\", "")
    if read.matches(name):
        assert name.startswith(read.literal)


def as_regex(pattern):
    """A pattern of *, ** and ? as a regular expression."""
    words = {"**": "(?s:.*)", "*": "[^/]*", "?": "[^/]", "**/": "(?s:(?:.*/)?)"}
    parts = re.findall(r"(?:(?<=^)|(?<=/))\*\*+/|\*\*+|\*|\?|.", pattern, re.DOTALL)
    shorter = [re.sub(r"\*\*+", "**", part) for part in parts]
    return re.compile("".join(words.get(part, re.escape(part)) for part in shorter))


@settings(max_examples=500)
@given(st.text("a/*?", max_size=8), st.text("ab/", max_size=6))
def test_a_pattern_without_braces_is_a_regular_expression(pattern, name):
    assert glob(pattern).matches(name) == bool(as_regex(pattern).fullmatch(name))


def test_no_pattern_is_slow_on_any_name():
    """As a regular expression this one would take longer than the universe has."""
    assert not glob("a*" * 200 + "b").matches("a" * 1000)
