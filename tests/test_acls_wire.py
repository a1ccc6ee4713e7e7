"""Access control lists against a live server: what they let in, by the wire, by google-cloud-storage and by gsutil."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.oauth2.credentials import Credentials

from taxiway.iam import keys, members


@dataclass
class Person:
    """Somebody who sends requests; `email` empty: nobody."""

    server: object
    email: str = ""

    def call(self, method, path, headers=None, **rest):
        own = {}
        if self.email:
            token = keys.load(self.server.home / "keys").access_token(members.of_email(self.email), now=time.time())
            own = {"Authorization": f"Bearer {token}"}
        return self.server.http.request(method, path, headers={**own, **(headers or {})}, **rest)

    def reads(self, bucket, name, **query):
        """The status of a read of an object's bytes."""
        return self.call("GET", path_of(bucket, name), params={"alt": "media", **query}).status_code

    def writes(self, bucket, name, data=b"x", **query):
        asked = {"uploadType": "media", "name": name, **query}
        return self.call("POST", f"/upload/storage/v1/b/{bucket}/o", params=asked, content=data)


@pytest.fixture(scope="module")
def owner(server):
    return Person(server, server.address.owner)


@pytest.fixture(scope="module")
def ann(server):
    """A stranger with an account."""
    return Person(server, "ann@example.com")


@pytest.fixture(scope="module")
def nobody(server):
    return Person(server)


@pytest.fixture(scope="module")
def trainer(server, owner):
    """A service account that is granted nothing."""
    return Person(server, account(owner, server))


@pytest.fixture
def bucket(server, owner):
    return make(server, owner)


def account(owner, server) -> str:
    path = f"/v1/projects/{server.project}/serviceAccounts"
    made = owner.call("POST", path, json={"accountId": f"t-{uuid.uuid4().hex[:12]}"})
    assert made.status_code == 200, made.text
    return made.json()["email"]


def make(server, owner, body=None, **query):
    name = f"acl-{uuid.uuid4().hex[:12]}"
    answer = owner.call(
        "POST", "/storage/v1/b", params={"project": server.project, **query}, json={"name": name, **(body or {})}
    )
    assert answer.status_code == 200, answer.text
    return name


def path_of(bucket, name=""):
    return f"/storage/v1/b/{bucket}" + (f"/o/{quote(name, safe='')}" if name else "")


def entry(who, role):
    return {"entity": f"user-{who.email}", "role": role}


def grant(owner, path, who, role):
    answer = owner.call("POST", path, json=entry(who, role))
    assert answer.status_code == 200, answer.text
    return answer.json()


def entries(answer):
    assert answer.status_code == 200, answer.text
    form = answer.json()
    return {each["entity"]: each["role"] for each in form.get("items", form.get("acl", []))}


def said(answer, code):
    assert answer.status_code == code, answer.text
    return answer.json()["error"]["message"]


# ---- who creates an object owns it ----------------------------------------------------------------------------------


def test_a_trainer_that_may_only_write_reads_its_own_objects_back_and_no_others(server, owner, trainer, bucket):
    owner.writes(bucket, "data.csv")
    assert trainer.writes(bucket, "model/1").status_code == 403
    grant(owner, f"{path_of(bucket)}/acl", trainer, "WRITER")
    assert trainer.writes(bucket, "model/1", b"weights").status_code == 200
    answer = trainer.call("GET", path_of(bucket, "model/1"), params={"alt": "media"})
    assert (answer.status_code, answer.content) == (200, b"weights")
    xml = trainer.call("GET", f"/{bucket}/model/1", headers={"Host": "storage.googleapis.com"})
    assert (xml.status_code, xml.content) == (200, b"weights")
    assert trainer.reads(bucket, "data.csv") == 403
    assert trainer.call("GET", f"/{bucket}/data.csv", headers={"Host": "storage.googleapis.com"}).status_code == 403
    assert trainer.call("PATCH", path_of(bucket, "model/1"), json={"contentType": "text/x"}).status_code == 200
    assert trainer.call("PATCH", path_of(bucket, "data.csv"), json={"contentType": "text/x"}).status_code == 403


def test_a_trainer_that_may_only_write_is_told_what_it_has_not_written_yet(server, owner, trainer, ann, bucket):
    grant(owner, f"{path_of(bucket)}/acl", trainer, "WRITER")
    assert "No such object" in said(trainer.call("GET", path_of(bucket, "checkpoint")), 404)
    assert ann.call("GET", path_of(bucket, "checkpoint")).status_code == 403


def test_a_writer_copies_joins_and_renames_what_it_owns_only(server, owner, trainer, bucket):
    grant(owner, f"{path_of(bucket)}/acl", trainer, "WRITER")
    owner.writes(bucket, "theirs", b"T")
    for name in ("mine", "mine-too"):
        trainer.writes(bucket, name, b"M")

    def to(source, verb, target):
        return trainer.call("POST", f"{path_of(bucket, source)}/{verb}/b/{bucket}/o/{target}").status_code

    def joined(*names):
        body = {"sourceObjects": [{"name": name} for name in names]}
        return trainer.call("POST", f"{path_of(bucket, 'joined')}/compose", json=body).status_code

    for verb in ("copyTo", "rewriteTo"):
        assert to("theirs", verb, "stolen") == 403
        assert to("mine", verb, f"mine-by-{verb}") == 200
        assert trainer.reads(bucket, f"mine-by-{verb}") == 200
    assert joined("mine", "theirs") == 403
    assert joined("mine", "mine-too") == 200
    assert trainer.call("POST", f"{path_of(bucket, 'theirs')}/moveTo/o/stolen").status_code == 403
    assert trainer.call("POST", f"{path_of(bucket, 'mine')}/moveTo/o/moved").status_code == 200
    assert trainer.reads(bucket, "moved") == 200
    assert owner.reads(bucket, "stolen") == 404


def test_a_batch_asks_of_each_object_for_itself(server, owner, trainer, bucket):
    grant(owner, f"{path_of(bucket)}/acl", trainer, "WRITER")
    owner.writes(bucket, "theirs")
    trainer.writes(bucket, "mine")
    parts = [
        f"--b\r\nContent-Type: application/http\r\n\r\nGET {path_of(bucket, name)} HTTP/1.1\r\n\r\n\r\n"
        for name in ("mine", "theirs", "neither")
    ]
    answer = trainer.call(
        "POST",
        "/batch/storage/v1",
        headers={"Content-Type": "multipart/mixed; boundary=b"},
        content="".join(parts) + "--b--\r\n",
    )
    statuses = [line.split()[1] for line in answer.text.splitlines() if line.startswith("HTTP/1.1 ")]
    assert statuses == ["200", "403", "404"]


def test_a_version_of_an_object_is_read_by_its_own_list(server, owner, ann, bucket):
    assert owner.call("PATCH", path_of(bucket), json={"versioning": {"enabled": True}}).status_code == 200
    old = owner.writes(bucket, "report", predefinedAcl="private").json()["generation"]
    new = owner.writes(bucket, "report", predefinedAcl="publicRead").json()["generation"]
    assert ann.reads(bucket, "report") == ann.reads(bucket, "report", generation=new) == 200
    assert ann.reads(bucket, "report", generation=old) == 403
    assert owner.reads(bucket, "report", generation=old) == 200


# ---- an object's list -----------------------------------------------------------------------------------------------


def test_an_entry_on_an_object_lets_a_stranger_read_that_object_only_and_its_end_ends_that(
    server, owner, ann, nobody, bucket
):
    for name in ("a/b c", "other"):
        owner.writes(bucket, name, b"words")
    assert [person.reads(bucket, "a/b c") for person in (ann, nobody)] == [403, 401]
    made = grant(owner, f"{path_of(bucket, 'a/b c')}/acl", ann, "READER")
    assert (made["kind"], made["entity"], made["role"]) == (
        "storage#objectAccessControl",
        "user-ann@example.com",
        "READER",
    )
    assert made["email"] == "ann@example.com"
    assert [person.reads(bucket, "a/b c") for person in (ann, nobody)] == [200, 401]
    assert ann.reads(bucket, "other") == 403
    assert ann.call("PATCH", path_of(bucket, "a/b c"), json={}).status_code == 403
    assert ann.call("GET", f"{path_of(bucket, 'a/b c')}/acl").status_code == 403
    one = f"{path_of(bucket, 'a/b c')}/acl/user-ann@example.com"
    assert owner.call("PUT", one, json={"role": "OWNER"}).json()["role"] == "OWNER"
    assert ann.call("PATCH", path_of(bucket, "a/b c"), json={"metadata": {"k": "v"}}).status_code == 200
    assert entries(ann.call("GET", f"{path_of(bucket, 'a/b c')}/acl"))[f"user-{ann.email}"] == "OWNER"
    assert ann.call("DELETE", path_of(bucket, "a/b c")).status_code == 403
    assert owner.call("DELETE", one).status_code == 204
    assert ann.reads(bucket, "a/b c") == 403
    assert owner.call("GET", one).status_code == 404


def test_everybody_reads_what_is_public_also_without_a_token(server, owner, nobody, bucket):
    owner.writes(bucket, "page")
    assert nobody.reads(bucket, "page") == 401
    body = {"entity": "allUsers", "role": "READER"}
    assert owner.call("POST", f"{path_of(bucket, 'page')}/acl", json=body).status_code == 200
    assert nobody.reads(bucket, "page") == 200
    assert httpx.get(f"{server.url}{path_of(bucket, 'page')}").json()["name"] == "page"
    assert nobody.call("PATCH", path_of(bucket, "page"), json={}).status_code == 401
    owner.writes(bucket, "page", b"new")
    assert nobody.reads(bucket, "page") == 401, "a replaced object has the list of a new one"


def test_the_owner_stays_on_the_list_of_an_object(server, owner, trainer, bucket):
    owner.writes(bucket, "mine", predefinedAcl="private")
    path = f"{path_of(bucket, 'mine')}/acl"
    own = f"user-{owner.email}"
    assert entries(owner.call("GET", path)) == {own: "OWNER"}
    assert "stays OWNER" in said(owner.call("DELETE", f"{path}/{own}"), 400)
    assert "stays OWNER" in said(owner.call("PATCH", f"{path}/{own}", json={"role": "READER"}), 400)
    body = {"acl": [entry(trainer, "READER"), {"entity": own, "role": "READER"}]}
    made = owner.call("PATCH", path_of(bucket, "mine"), params={"projection": "full"}, json=body)
    assert entries(made) == {own: "OWNER", f"user-{trainer.email}": "READER"}
    assert made.json()["owner"] == {"entity": own}


def test_a_list_comes_with_the_bytes_and_with_every_way_to_make_an_object(server, owner, ann, bucket):
    acl = [entry(ann, "READER")]
    marked = {"Content-Type": "multipart/related; boundary=b"}
    metadata = json.dumps({"name": "multipart", "acl": acl})
    content = (
        f"--b\r\nContent-Type: application/json\r\n\r\n{metadata}\r\n--b\r\nContent-Type: text/x\r\n\r\nX\r\n--b--"
    )
    upload = f"/upload/storage/v1/b/{bucket}/o"
    sent = owner.call("POST", upload, params={"uploadType": "multipart"}, headers=marked, content=content)
    assert sent.status_code == 200, sent.text
    begun = owner.call("POST", upload, params={"uploadType": "resumable"}, json={"name": "resumable", "acl": acl})
    assert owner.call("PUT", begun.headers["location"], content=b"X").status_code == 200
    owner.writes(bucket, "media", predefinedAcl="authenticatedRead")
    owner.writes(bucket, "source")
    made = {"copied": "copyTo", "rewritten": "rewriteTo"}
    for name, verb in made.items():
        path = f"{path_of(bucket, 'source')}/{verb}/b/{bucket}/o/{name}"
        assert owner.call("POST", path, json={"acl": acl}).status_code == 200
    composed = {"sourceObjects": [{"name": "source"}], "destination": {"acl": acl}}
    assert owner.call("POST", f"{path_of(bucket, 'composed')}/compose", json=composed).status_code == 200
    query = {"destinationPredefinedAcl": "publicRead"}
    body = {"sourceObjects": [{"name": "source"}]}
    assert owner.call("POST", f"{path_of(bucket, 'by-name')}/compose", params=query, json=body).status_code == 200
    for name in ("multipart", "resumable", "media", "copied", "rewritten", "composed", "by-name"):
        assert ann.reads(bucket, name) == 200, name
    assert ann.reads(bucket, "source") == 403


def test_a_copy_is_a_new_object_and_a_renamed_one_keeps_its_list(server, owner, ann, bucket):
    owner.writes(bucket, "public", predefinedAcl="publicRead")
    owner.call("POST", f"{path_of(bucket, 'public')}/copyTo/b/{bucket}/o/copy")
    owner.call("POST", f"{path_of(bucket, 'public')}/moveTo/o/moved")
    assert (ann.reads(bucket, "copy"), ann.reads(bucket, "moved")) == (403, 200)


@pytest.mark.parametrize(
    ("method", "below", "query", "body", "says"),
    [
        ("POST", "/acl", {}, {"entity": "group-all@x.y", "role": "READER"}, "entity Error: groups are not known here"),
        (
            "POST",
            "/acl",
            {},
            {"entity": "allUsers", "role": "WRITER"},
            "role Error: 'WRITER' is no role in the list of an",
        ),
        ("POST", "/acl", {}, {}, "entity Error: None is no entity"),
        ("POST", "/acl", {}, [], "must be a JSON object"),
        ("PUT", "/acl/allUsers", {}, {"role": "x"}, "role Error: 'x'"),
        ("GET", "/acl/everybody", {}, None, "entity Error: 'everybody' is no entity"),
        (
            "PATCH",
            "",
            {},
            {"acl": [{"entity": "domain-x.y", "role": "READER"}]},
            "acl[0].entity Error: domains are not",
        ),
        ("PATCH", "", {}, {"acl": {}}, "acl Error: must be a list"),
        (
            "PATCH",
            "",
            {"predefinedAcl": "publicReadWrite"},
            {},
            "predefinedAcl Error: 'publicReadWrite' is no ready-made",
        ),
    ],
)
def test_bad_words_are_refused_by_the_name_of_their_field(server, owner, bucket, method, below, query, body, says):
    owner.writes(bucket, "x")
    before = owner.call("GET", f"{path_of(bucket, 'x')}/acl").json()
    answer = owner.call(method, path_of(bucket, "x") + below, params=query, json=body)
    assert says in said(answer, 400)
    assert owner.call("GET", f"{path_of(bucket, 'x')}/acl").json() == before


def test_a_bad_list_stores_no_bytes(server, owner, bucket):
    assert "no ready-made list" in said(owner.writes(bucket, "x", predefinedAcl="open"), 400)
    assert owner.reads(bucket, "x") == 404


def test_who_may_update_an_object_may_not_thereby_change_its_list(server, owner, ann, bucket):
    owner.writes(bucket, "x", predefinedAcl="private")
    policy = {"bindings": [{"role": "roles/storage.objectUser", "members": [members.of_email(ann.email)]}]}
    assert owner.call("PUT", f"{path_of(bucket)}/iam", json=policy).status_code == 200
    assert ann.call("PATCH", path_of(bucket, "x"), json={"metadata": {"a": "b"}}).status_code == 200
    refused = ann.call("PATCH", path_of(bucket, "x"), json={"acl": [{"entity": "allUsers", "role": "READER"}]})
    assert "storage.objects.setIamPolicy" in said(refused, 403)
    assert ann.call("PATCH", path_of(bucket, "x"), params={"predefinedAcl": "publicRead"}, json={}).status_code == 403
    assert ann.call("PATCH", path_of(bucket), json={"acl": [entry(ann, "OWNER")]}).status_code == 403


def test_a_refusal_names_the_lines_that_grant_it_and_the_lines_do(server, owner, ann, bucket, cli):
    owner.writes(bucket, "data/a b.csv")
    message = said(ann.call("GET", path_of(bucket, "data/a b.csv")), 403)
    url = f"gs://{bucket}/data/a b.csv"
    assert message.startswith(f"user:ann@example.com does not have storage.objects.get on {url}. Grant it: ")
    assert f"gsutil acl ch -u ann@example.com:R '{url}'" in message
    assert "taxiway storage buckets add-iam-policy-binding" in message
    assert cli("storage", "acl", "ch", "-u", "ann@example.com:R", url).returncode == 0
    assert ann.reads(bucket, "data/a b.csv") == 200


# ---- a bucket's lists -----------------------------------------------------------------------------------------------


def test_a_buckets_list_and_its_policy_are_one_thing(server, owner, trainer, bucket):
    path = f"{path_of(bucket)}/acl"
    number = server.address.project_number
    private = {
        f"project-owners-{number}": "OWNER",
        f"project-editors-{number}": "OWNER",
        f"project-viewers-{number}": "READER",
    }
    assert entries(owner.call("GET", path)) == private
    grant(owner, path, trainer, "WRITER")
    policy = owner.call("GET", f"{path_of(bucket)}/iam").json()
    bound = {each["role"]: each["members"] for each in policy["bindings"]}
    assert bound["roles/storage.legacyBucketWriter"] == [members.of_email(trainer.email)]
    for each in policy["bindings"]:
        if each["role"] == "roles/storage.legacyBucketWriter":
            each["role"] = "roles/storage.legacyBucketReader"
    assert owner.call("PUT", f"{path_of(bucket)}/iam", json=policy).status_code == 200
    assert entries(owner.call("GET", path)) == {**private, f"user-{trainer.email}": "READER"}
    assert owner.call("DELETE", f"{path}/user-{trainer.email}").status_code == 204
    assert entries(owner.call("GET", path_of(bucket), params={"projection": "full"})) == private
    assert "stays OWNER" in said(owner.call("DELETE", f"{path}/project-owners-{number}"), 400)


def test_new_objects_take_the_buckets_default_list_and_old_ones_keep_theirs(server, owner, ann, bucket):
    owner.writes(bucket, "before")
    grant(owner, f"{path_of(bucket)}/defaultObjectAcl", ann, "READER")
    for name in ("after", "before-too"):
        owner.writes(bucket, name)
    owner.writes(bucket, "private", predefinedAcl="private")
    owner.call("POST", f"{path_of(bucket, 'before')}/copyTo/b/{bucket}/o/copied")
    begun = owner.call(
        "POST", f"/upload/storage/v1/b/{bucket}/o", params={"uploadType": "resumable", "name": "resumed"}
    )
    owner.call("PUT", begun.headers["location"], content=b"X")
    read = {name: ann.reads(bucket, name) for name in ("before", "after", "before-too", "private", "copied", "resumed")}
    assert read == {"before": 403, "after": 200, "before-too": 200, "private": 403, "copied": 200, "resumed": 200}
    owner.writes(bucket, "before")
    assert ann.reads(bucket, "before") == 200, "a replaced object is a new one"
    query = {"predefinedDefaultObjectAcl": "private"}
    assert owner.call("PATCH", path_of(bucket), params=query, json={"defaultObjectAcl": []}).status_code == 200
    owner.writes(bucket, "later")
    assert ann.reads(bucket, "later") == 403
    assert entries(owner.call("GET", f"{path_of(bucket)}/defaultObjectAcl")) == {}


def test_a_bucket_is_made_with_its_lists(server, owner, ann, nobody):
    lists = {"acl": [entry(ann, "WRITER")], "defaultObjectAcl": [{"entity": "allUsers", "role": "READER"}]}
    bucket = make(server, owner, lists)
    assert ann.writes(bucket, "x").status_code == 200
    assert nobody.reads(bucket, "x") == 200
    bucket = make(server, owner, predefinedAcl="publicReadWrite", predefinedDefaultObjectAcl="publicRead")
    assert nobody.writes(bucket, "x").status_code == 200
    assert nobody.reads(bucket, "x") == 200
    assert nobody.writes(bucket, "y", predefinedAcl="private").status_code == 401, "nobody owns what nobody wrote"
    shown = owner.call("GET", path_of(bucket, "x"), params={"projection": "full"}).json()
    assert "owner" not in shown
    assert [each["entity"] for each in shown["acl"]] == ["allUsers"]


def test_every_change_grows_the_metageneration_and_of_two_who_read_one_the_second_is_refused(
    server, owner, ann, bucket
):
    owner.writes(bucket, "x")
    for thing, below in (
        (path_of(bucket, "x"), "/acl"),
        (path_of(bucket), "/acl"),
        (path_of(bucket), "/defaultObjectAcl"),
    ):
        before = int(owner.call("GET", thing).json()["metageneration"])
        query = {"ifMetagenerationMatch": before}
        assert owner.call("POST", thing + below, params=query, json=entry(ann, "READER")).status_code == 200
        assert int(owner.call("GET", thing).json()["metageneration"]) == before + 1
        again = owner.call("DELETE", f"{thing}{below}/user-{ann.email}", params=query)
        assert again.status_code == 412
        assert entries(owner.call("GET", thing + below))[f"user-{ann.email}"] == "READER"


@pytest.mark.parametrize("below", ["/o/x/acl", "/acl", "/defaultObjectAcl"])
def test_changes_at_the_same_time_are_all_kept(server, owner, bucket, below):
    owner.writes(bucket, "x")
    path = path_of(bucket) + below
    people = [f"p{number}@example.com" for number in range(12)]
    codes = []

    def add(email):
        codes.append(owner.call("POST", path, json={"entity": f"user-{email}", "role": "READER"}).status_code)

    threads = [threading.Thread(target=add, args=(email,)) for email in people]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert codes == [200] * len(people)
    assert {f"user-{email}" for email in people} <= set(entries(owner.call("GET", path)))


def test_a_list_has_an_end(server, owner, ann, bucket):
    path = f"{path_of(bucket)}/defaultObjectAcl"
    many = [{"entity": f"user-p{number}@example.com", "role": "READER"} for number in range(100)]
    assert owner.call("PATCH", path_of(bucket), json={"defaultObjectAcl": many}).status_code == 200
    assert "100 entries" in said(owner.call("POST", path, json=entry(ann, "READER")), 400)
    assert owner.call("POST", path, json={**many[7], "role": "OWNER"}).status_code == 200
    assert "100 entries" in said(owner.call("PATCH", path_of(bucket), json={"acl": [*many, entry(ann, "READER")]}), 400)


def test_nobody_reads_a_secret_that_takes_the_place_of_what_they_may_read(server, owner, bucket):
    readers, read, ended = 4, [], threading.Event()
    owner.writes(bucket, "x", b"open", predefinedAcl="publicRead")

    def keep_reading():
        with httpx.Client(base_url=server.url, trust_env=False) as http:
            while not ended.is_set():
                for query in ({"alt": "media"}, {"fields": "metadata"}):
                    answer = http.get(path_of(bucket, "x"), params=query)
                    read.append((answer.status_code, answer.content))

    threads = [threading.Thread(target=keep_reading) for _ in range(readers)]
    for each in threads:
        each.start()
    for _ in range(60):
        owner.writes(bucket, "x", b"secret", predefinedAcl="private")
        owner.writes(bucket, "x", b"open", predefinedAcl="publicRead")
    ended.set()
    for each in threads:
        each.join()
    assert {content for status, content in read if status == 200} == {b"open", b"{}"}
    assert {status for status, _ in read} <= {200, 401, 409}


# ---- where lists say nothing ----------------------------------------------------------------------------------------


def test_uniform_access_ends_what_lists_gave_and_their_methods_say_so(server, owner, trainer, ann, bucket):
    grant(owner, f"{path_of(bucket)}/acl", trainer, "WRITER")
    trainer.writes(bucket, "mine", predefinedAcl="publicRead")
    assert (trainer.reads(bucket, "mine"), ann.reads(bucket, "mine")) == (200, 200)
    uniform = {"iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}}}
    made = owner.call("PATCH", path_of(bucket), json=uniform).json()["iamConfiguration"]["uniformBucketLevelAccess"]
    assert made["enabled"] is True
    assert made["lockedTime"] > time.strftime("%Y-%m-%d")
    assert (trainer.reads(bucket, "mine"), ann.reads(bucket, "mine"), owner.reads(bucket, "mine")) == (403, 403, 200)
    refused = said(ann.call("GET", path_of(bucket, "mine")), 403)
    assert "acl ch" not in refused
    for below, what in (("/o/mine/acl", "legacy ACL for an object"), ("/acl", "legacy ACL for a bucket")):
        for method, verb in (("GET", "get"), ("POST", "update")):
            told = said(owner.call(method, path_of(bucket) + below, json=entry(ann, "READER")), 400)
            assert told.startswith(
                f"Cannot {verb} {what} when uniform bucket-level access is enabled. Read more at https://"
            )
    assert "default object ACL" in said(owner.call("GET", f"{path_of(bucket)}/defaultObjectAcl"), 400)
    for answer in (
        owner.writes(bucket, "new", predefinedAcl="private"),
        owner.call("PATCH", path_of(bucket, "mine"), json={"acl": []}),
        owner.call("PATCH", path_of(bucket), json={"acl": []}),
        owner.call("PATCH", path_of(bucket), params={"predefinedDefaultObjectAcl": "private"}, json={}),
    ):
        assert "uniform bucket-level access is enabled" in said(answer, 400)
    full = owner.call("GET", path_of(bucket, "mine"), params={"projection": "full"}).json()
    assert "acl" not in full
    uniform["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"] = False
    assert owner.call("PATCH", path_of(bucket), json=uniform).status_code == 200
    assert (trainer.reads(bucket, "mine"), ann.reads(bucket, "mine")) == (200, 200)


def test_public_access_prevention_ends_and_refuses_what_is_for_everybody(server, owner, ann, nobody, bucket):
    owner.writes(bucket, "page", predefinedAcl="publicRead")
    assert nobody.reads(bucket, "page") == 200
    enforced = {"iamConfiguration": {"publicAccessPrevention": "enforced"}}
    assert (
        owner.call("PATCH", path_of(bucket), json=enforced).json()["iamConfiguration"]["publicAccessPrevention"]
        == "enforced"
    )
    assert (nobody.reads(bucket, "page"), ann.reads(bucket, "page")) == (401, 403)
    everybody = {"entity": "allUsers", "role": "READER"}
    policy = {"bindings": [{"role": "roles/storage.objectViewer", "members": ["allUsers"]}]}
    for answer in (
        owner.call("POST", f"{path_of(bucket, 'page')}/acl", json=everybody),
        owner.call("POST", f"{path_of(bucket)}/acl", json=everybody),
        owner.call("POST", f"{path_of(bucket)}/defaultObjectAcl", json=everybody),
        owner.call("PATCH", path_of(bucket, "page"), params={"predefinedAcl": "authenticatedRead"}, json={}),
        owner.writes(bucket, "new", predefinedAcl="publicRead"),
        owner.call("PUT", f"{path_of(bucket)}/iam", json=policy),
    ):
        assert "public access prevention is enforced" in said(answer, 412)
    assert grant(owner, f"{path_of(bucket, 'page')}/acl", ann, "READER")["role"] == "READER"
    assert ann.reads(bucket, "page") == 200
    enforced["iamConfiguration"]["publicAccessPrevention"] = "inherited"
    assert owner.call("PATCH", path_of(bucket), json=enforced).status_code == 200
    assert nobody.reads(bucket, "page") == 200


# ---- what is shown to whom ------------------------------------------------------------------------------------------


def test_lists_are_shown_to_those_who_may_read_them_and_only_when_asked(server, owner, trainer, bucket):
    grant(owner, f"{path_of(bucket)}/acl", trainer, "WRITER")
    owner.writes(bucket, "theirs")
    trainer.writes(bucket, "mine")

    def shown(who, **query):
        items = who.call("GET", f"{path_of(bucket)}/o", params=query).json()["items"]
        return {each["name"]: [one["entity"] for one in each.get("acl", [])] for each in items}

    assert shown(owner) == {"mine": [], "theirs": []}
    full = shown(owner, projection="full")
    assert f"user-{trainer.email}" in full["mine"]
    assert f"user-{owner.email}" in full["theirs"]
    assert shown(owner, projection="full", fields="items(name,acl)") == full
    assert shown(trainer, projection="full") == {"mine": full["mine"], "theirs": []}
    assert "acl" not in trainer.call("GET", path_of(bucket), params={"projection": "full"}).json()
    assert "defaultObjectAcl" in owner.call("GET", path_of(bucket), params={"projection": "full"}).json()


def test_an_objects_list_is_its_policy_too(server, owner, ann, bucket):
    owner.writes(bucket, "x", predefinedAcl="private")
    path = f"{path_of(bucket, 'x')}/iam"
    policy = owner.call("GET", path).json()
    own = members.of_email(owner.email)
    assert policy["bindings"] == [{"role": "roles/storage.legacyObjectOwner", "members": [own]}]
    policy["bindings"].append({"role": "roles/storage.legacyObjectReader", "members": [members.of_email(ann.email)]})
    assert owner.call("PUT", path, json=policy).status_code == 200
    assert ann.reads(bucket, "x") == 200
    assert owner.call("PUT", path, json=policy).status_code == 412, "the etag is of the policy before"
    asked = [("permissions", "storage.objects.get"), ("permissions", "storage.objects.update")]
    assert ann.call("GET", f"{path}/testPermissions", params=asked).json()["permissions"] == ["storage.objects.get"]
    bad = {"bindings": [{"role": "roles/storage.admin", "members": [own]}]}
    assert "bindings[0].role" in said(owner.call("PUT", path, json=bad), 400)


# ---- the command line -----------------------------------------------------------------------------------------------


def test_the_command_line_changes_and_shows_lists(server, owner, ann, bucket, cli):
    for name in ("data/a", "data/b", "other"):
        owner.writes(bucket, name)

    def well(*words):
        done = cli("storage", *words)
        assert done.returncode == 0, done.stderr
        return done

    done = well("acl", "ch", "-r", "-u", f"{ann.email}:R", f"gs://{bucket}/data")
    assert sorted(done.stderr.splitlines()) == [f"Updated ACL on gs://{bucket}/data/{name}" for name in "ab"]
    assert [ann.reads(bucket, name) for name in ("data/a", "data/b", "other")] == [200, 200, 403]
    # Who is not on a list need not be taken off it.
    well("acl", "ch", "-d", ann.email, "-d", "bob@example.com", "-u", "AllUsers:R", f"gs://{bucket}/data/*")
    assert [Person(server).reads(bucket, name) for name in ("data/a", "data/b", "other")] == [200, 200, 401]
    shown = json.loads(well("acl", "get", f"gs://{bucket}/data/a", "--format", "json").stdout)
    assert {"entity": "allUsers", "role": "READER"} in shown
    assert not [each for each in shown if each.get("email") == ann.email]
    well("acl", "ch", "-u", f"{ann.email}:w", f"gs://{bucket}")
    assert ann.writes(bucket, "hers").status_code == 200
    well("defacl", "ch", "-u", f"viewers-{server.project}:O", f"gs://{bucket}")
    assert f"project-viewers-{server.address.project_number}" in well("defacl", "get", f"gs://{bucket}").stdout


def test_the_command_line_tells_what_the_server_refuses(server, owner, bucket, cli):
    owner.writes(bucket, "x")
    done = cli("storage", "acl", "ch", "-d", owner.email, f"gs://{bucket}/x")
    assert done.returncode == 1
    assert "stays OWNER" in done.stderr


# ---- google-cloud-storage -------------------------------------------------------------------------------------------


@pytest.fixture
def client(server):
    options = {"api_endpoint": server.url}
    made = storage.Client(project=server.project, credentials=Credentials(server.token), client_options=options)
    yield made
    made.close()


def test_google_cloud_storage_makes_public_and_private_and_edits_lists(server, client, bucket, ann):
    handle = client.bucket(bucket)
    blob = handle.blob("page.html")
    blob.upload_from_string("hello")
    anybody = storage.Client(
        project=server.project, credentials=AnonymousCredentials(), client_options={"api_endpoint": server.url}
    )
    blob.make_public()
    assert anybody.bucket(bucket).blob("page.html").download_as_bytes() == b"hello"
    blob.make_private()
    assert Person(server).reads(bucket, "page.html") == 401
    anybody.close()
    blob.acl.user(ann.email).grant_read()
    blob.acl.save()
    assert ann.reads(bucket, "page.html") == 200
    blob.acl.reload()
    assert {"entity": f"user-{ann.email}", "role": "READER"} in list(blob.acl)
    blob.acl.save_predefined("private")
    assert ann.reads(bucket, "page.html") == 403
    handle.acl.user(ann.email).grant_write()
    handle.acl.save()
    assert ann.writes(bucket, "hers").status_code == 200
    handle.default_object_acl.user(ann.email).grant_read()
    handle.default_object_acl.save()
    handle.blob("later").upload_from_string("x")
    assert ann.reads(bucket, "later") == 200
    handle.iam_configuration.uniform_bucket_level_access_enabled = True
    handle.patch()
    handle.reload()
    assert handle.iam_configuration.uniform_bucket_level_access_locked_time is not None
    assert ann.reads(bucket, "later") == 403


# ---- gsutil, as the lab uses it -------------------------------------------------------------------------------------


def key_file(server, owner, email, folder: Path) -> Path:
    """A boto file with a key of a service account, beside it."""
    made = owner.call("POST", f"/v1/projects/{server.project}/serviceAccounts/{email}/keys", json={})
    assert made.status_code == 200, made.text
    key, boto = folder / "key.json", folder / "boto"
    key.write_bytes(base64.b64decode(made.json()["privateKeyData"]))
    boto.write_text(Path(server.address.boto).read_text().replace(server.address.key, str(key)))
    return boto


def test_gsutil_grants_as_the_lab_does(server, owner, gsutil, tmp_path):
    bucket, email = f"lab-{uuid.uuid4().hex[:12]}", account(owner, server)
    trainer = Person(server, email)
    boto = key_file(server, owner, email, tmp_path)

    def well(*words, **rest):
        done = gsutil(*words, **rest)
        assert done.returncode == 0, done.stderr
        return done.stdout

    well("mb", "-p", server.project, f"gs://{bucket}")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.csv", "valid.csv"):
        (data / name).write_text("1,2,3\n")
    well("-m", "cp", *map(str, sorted(data.iterdir())), f"gs://{bucket}/data/")
    assert trainer.reads(bucket, "data/train.csv") == 403
    well("-m", "defacl", "ch", "-u", f"{email}:R", f"gs://{bucket}")
    well("-m", "acl", "ch", "-u", f"{email}:R", "-r", f"gs://{bucket}")
    well("-m", "acl", "ch", "-u", f"{email}:W", f"gs://{bucket}")
    assert trainer.reads(bucket, "data/train.csv") == 200
    (data / "test.csv").write_text("4\n")
    well("-m", "rsync", "-r", str(data), f"gs://{bucket}/data")
    assert trainer.reads(bucket, "data/test.csv") == 200
    (tmp_path / "model").write_text("weights")
    well("cp", str(tmp_path / "model"), f"gs://{bucket}/model", boto=boto)
    assert well("cat", f"gs://{bucket}/model", boto=boto) == "weights"
    shown = json.loads(well("acl", "get", f"gs://{bucket}/model", boto=boto))
    assert {"entity": f"user-{email}", "email": email, "role": "OWNER"} in shown
    whole = json.loads(well("acl", "get", f"gs://{bucket}"))
    assert {"entity": f"user-{email}", "email": email, "role": "WRITER"} in whole
    assert {"entity": f"user-{email}", "email": email, "role": "READER"} in json.loads(
        well("defacl", "get", f"gs://{bucket}")
    )
    well("acl", "ch", "-d", email, f"gs://{bucket}/data/train.csv")
    assert trainer.reads(bucket, "data/train.csv") == 403
    well("iam", "ch", f"serviceAccount:{email}:objectViewer", f"gs://{bucket}")
    assert trainer.reads(bucket, "data/train.csv") == 200
    well("acl", "set", "public-read", f"gs://{bucket}/data/valid.csv")
    assert Person(server).reads(bucket, "data/valid.csv") == 200
    well("-m", "rm", "-r", f"gs://{bucket}")
    assert owner.call("GET", path_of(bucket)).status_code == 404


def test_gsutil_turns_uniform_access_on_and_off(server, owner, ann, bucket, gsutil):
    owner.writes(bucket, "page", predefinedAcl="publicRead")
    assert gsutil("ubla", "set", "on", f"gs://{bucket}").returncode == 0
    assert "Enabled: True" in gsutil("ubla", "get", f"gs://{bucket}").stdout
    refused = gsutil("acl", "ch", "-u", f"{ann.email}:R", f"gs://{bucket}/page")
    assert refused.returncode == 1
    assert "OWNER-role access" in refused.stderr  # gsutil's own words where no list is shown
    assert ann.reads(bucket, "page") == 403
    assert gsutil("ubla", "set", "off", f"gs://{bucket}").returncode == 0
    assert ann.reads(bucket, "page") == 200
