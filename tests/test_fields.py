"""Partial responses: the grammar of a mask, what it keeps, and every JSON answer of a live server."""

from __future__ import annotations

import json
import uuid
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors
from taxiway.api import fields

WORDS = ("kind", "items", "name", "size", "acl", "entity", "nothing")
OBJECT = {
    "kind": "storage#object",
    "name": "a",
    "size": "1",
    "metadata": {"k": "v", "l": "w"},
    "acl": [{"entity": "user-a", "role": "OWNER"}, {"entity": "allUsers", "role": "READER"}],
}
LISTING = {"kind": "storage#objects", "prefixes": ["a/"], "items": [OBJECT, {"name": "b"}], "nextPageToken": "t"}


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ("kind,prefixes", {"kind": "storage#objects", "prefixes": ["a/"]}),
        ("nothing", {}),
        ("items/name", {"items": [{"name": "a"}, {"name": "b"}]}),
        (
            "items(name,size),nextPageToken",
            {"items": [{"name": "a", "size": "1"}, {"name": "b"}], "nextPageToken": "t"},
        ),
        ("items/name,items/size", {"items": [{"name": "a", "size": "1"}, {"name": "b"}]}),
        ("items(metadata/l)", {"items": [{"metadata": {"l": "w"}}, {}]}),
        ("items/acl(entity)", {"items": [{"acl": [{"entity": "user-a"}, {"entity": "allUsers"}]}, {}]}),
        ("items/acl/*", {"items": [{"acl": OBJECT["acl"]}, {}]}),
        ("items/*/entity", {"items": [{"acl": [{"entity": "user-a"}, {"entity": "allUsers"}]}, {}]}),
        ("items,items/name", {"items": LISTING["items"]}),
        ("items/name,items", {"items": LISTING["items"]}),
        ("kind/name,prefixes/name,items/name/size", {"items": [{}, {}]}),
        ("*/name,kind", {"kind": "storage#objects", "items": [{"name": "a"}, {"name": "b"}]}),
        (" items ( name , size ) ", {"items": [{"name": "a", "size": "1"}, {"name": "b"}]}),
        (
            "items(acl(role),metadata(k)),kind",
            {
                "kind": "storage#objects",
                "items": [{"metadata": {"k": "v"}, "acl": [{"role": "OWNER"}, {"role": "READER"}]}, {}],
            },
        ),
    ],
)
def test_a_mask_keeps_what_it_names(mask, kept):
    assert fields.keep(fields.parse(mask), LISTING) == kept


@pytest.mark.parametrize("mask", ["*", "*,kind", "kind,*"])
def test_a_star_keeps_everything(mask):
    assert fields.parse(mask) is None


@pytest.mark.parametrize(
    "mask",
    [
        "a(",
        "a)",
        "a,",
        ",a",
        "a,,b",
        "/a",
        "a/",
        "a//b",
        "a()",
        "(a)",
        "a b",
        "a*",
        "a(b)c",
        "a(b)/c",
        "a(b))",
        "'a'",
        ",",
        "()",
        "a(b,)",
        "a\x00",
        "�",
        "/".join("a" * 33),
        "a(" * 33 + "a" + ")" * 33,
        "a" * 5000,
    ],
)
def test_a_malformed_mask_is_refused(mask):
    with pytest.raises(errors.InvalidArgument, match="Invalid field selection") as caught:
        fields.asked({"fields": mask})
    assert caught.value.reason == "invalidParameter"
    assert len(str(caught.value)) < 1000


def masks(depth=3):
    """Masks by the grammar, each with the paths that it names."""
    name = st.sampled_from(WORDS).map(lambda word: (word, {(word,)}))
    if depth == 0:
        return name
    inner = masks(depth - 1)

    def below(pair):
        (outer, _), (text, paths), bracket = pair
        return (f"{outer}({text})" if bracket or "," in text else f"{outer}/{text}", {(outer, *path) for path in paths})

    def beside(pairs):
        return ",".join(text for text, _ in pairs), set().union(*(paths for _, paths in pairs))

    one = name | st.tuples(name, inner, st.booleans()).map(below)
    return st.lists(one, min_size=1, max_size=3).map(beside)


values = st.recursive(
    st.integers(0, 3), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner)
)


def leaves(value, path=()):
    """Every value that is no object, with the fields on the way to it; of a list all alike."""
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, (*path, name))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, path)]
    return [(path, value)]


@given(masks(), st.dictionaries(st.sampled_from(WORDS), values))
def test_what_is_kept_is_what_lies_under_a_named_path(mask, answer):
    text, paths = mask
    kept = fields.keep(fields.parse(text), answer)
    named = [leaf for leaf in leaves(answer) if any(leaf[0][: len(path)] == path for path in paths)]
    assert leaves(kept) == named


@given(st.text(max_size=40) | st.text("ab*(),/ ", max_size=20))
def test_any_text_is_a_mask_or_is_refused(text):
    try:
        mask = fields.asked({"fields": text})
    except fields.Malformed:
        return
    if mask is not None:
        assert fields.keep(mask, {}) == {}


# ---- a live server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(server):
    name = f"fields-{uuid.uuid4().hex[:10]}"
    server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": name, "labels": {"a": "1", "b": "2"}})
    for each in ("a", "b/c", "d"):
        server.call("POST", f"/upload/storage/v1/b/{name}/o?uploadType=media&name={each}", content=b"data")
        server.call("PATCH", f"/storage/v1/b/{name}/o/{quote(each, safe='')}", json={"metadata": {"k": "v"}})
    return name


def test_storage_answers_what_was_asked_for(server, bucket):
    def told(method, path, **rest):
        answer = server.call(method, path.format(b=f"/storage/v1/b/{bucket}"), **rest)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert told("GET", "{b}?fields=name,labels/a") == {"name": bucket, "labels": {"a": "1"}}
    assert told("GET", "{b}/o?fields=items/name&delimiter=/") == {"items": [{"name": "a"}, {"name": "d"}]}
    assert told("GET", "{b}/o?fields=prefixes&delimiter=/") == {"prefixes": ["b/"]}
    assert told("GET", "{b}/o?fields=items(metadata,acl/role),kind&projection=full&maxResults=1")["kind"]
    assert list(told("GET", "{b}/o?fields=nextPageToken&maxResults=1")) == ["nextPageToken"]
    assert told("GET", "{b}/o?fields=unheard/of") == {}
    assert told("GET", "{b}/o/a?fields=name,size,unheard&alt=json&prettyPrint=false&key=k") == {
        "name": "a",
        "size": "4",
    }
    assert told("GET", "{b}/o/a?fields=") == told("GET", "{b}/o/a") == told("GET", "{b}/o/a?fields=*")
    assert told("PATCH", "{b}/o/a?fields=metadata", json={"metadata": {"l": "w"}}) == {"metadata": {"k": "v", "l": "w"}}
    assert told("POST", "{b}/o/a/copyTo/b/" + bucket + "/o/e?fields=name") == {"name": "e"}
    assert told("POST", "{b}/o/a/rewriteTo/b/" + bucket + "/o/e?fields=done,resource(name)") == {
        "done": True,
        "resource": {"name": "e"},
    }
    assert told("POST", "/upload{b}/o?uploadType=media&name=f&fields=size", content=b"123") == {"size": "3"}
    assert list(told("GET", "{b}/iam?fields=bindings/role")["bindings"][0]) == ["role"]
    answer = server.call("GET", f"/storage/v1/b/{bucket}/o/a?alt=media&fields=name")
    assert answer.content == b"data"


def test_a_resumable_upload_remembers_what_its_first_request_asked_for(server, bucket):
    begun = server.call("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name=r&fields=name,size")
    assert server.http.put(begun.headers["location"], content=b"12").json() == {"name": "r", "size": "2"}


def test_every_other_api_does_so_too(server):
    project = f"/v1/projects/{server.project}"
    assert server.call("GET", f"{project}?fields=projectId").json() == {"projectId": server.project}
    assert server.call("GET", f"{project}:getConfig?fields=config/nothing").json() == {}
    model = f"m_{uuid.uuid4().hex[:8]}"
    made = server.call(
        "POST", f"{project}/models?fields=name,regions", json={"name": model, "regions": ["us-central1"]}
    )
    assert made.json() == {"name": f"projects/{server.project}/models/{model}", "regions": ["us-central1"]}
    listed = server.call("GET", f"{project}/models", params={"$fields": "models/name"}).json()["models"]
    assert {"name": made.json()["name"]} in listed
    logged = {"resourceNames": [f"projects/{server.project}"]}
    assert "entries" not in server.call("POST", "/v2/entries:list?fields=nextPageToken", json=logged).json()
    assert server.call("GET", "/$discovery/rest?version=v1&fields=name,version").json() == {
        "name": "ml",
        "version": "v1",
    }


def test_a_malformed_mask_does_nothing(server, bucket):
    for method, path, body in (
        ("DELETE", f"/storage/v1/b/{bucket}/o/a?fields=name(", None),
        ("POST", f"/storage/v1/b?project={server.project}&fields=a,,b", {"name": f"{bucket}-2"}),
        ("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name=malformed&fields=)", {}),
    ):
        answer = server.call(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]["errors"][0]["reason"]) == (400, "invalidParameter")
    assert server.call("GET", f"/storage/v1/b/{bucket}/o/a").status_code == 200
    assert server.call("GET", f"/storage/v1/b/{bucket}-2").status_code == 404
    assert server.call("GET", f"/storage/v1/b/{bucket}/o/malformed").status_code == 404
    answer = server.call("GET", f"/v1/projects/{server.project}/models?fields=/")
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert json.loads(answer.text)["error"]["details"][0]["fieldViolations"][0]["field"] == "fields"
