"""Access control lists: who an entity is, what a list gives, and how a bucket's list and its policy are one thing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors
from taxiway.cli import acls as cli_acls
from taxiway.iam import acls, members, policies, projects, roles
from taxiway.iam.access import Access
from taxiway.iam.keys import Keys
from taxiway.iam.members import NOBODY, Caller
from taxiway.storage import buckets, objects
from taxiway.storage.blobs import Blobs, Content, new_id
from taxiway.storage.conditions import ALWAYS

NUMBERS = {"taxi-one": 111, "taxi-two": 222}
EMAILS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}@[a-z0-9.-]{1,20}", fullmatch=True) | st.from_regex(
    r"[a-z0-9-]{1,20}@[a-z0-9-]{1,20}\.iam\.gserviceaccount\.com", fullmatch=True
)
MEMBERS = st.one_of(
    EMAILS.map(members.of_email),
    st.sampled_from(acls.PUBLIC),
    st.builds(
        lambda people, project: f"{people}:{project}",
        st.sampled_from(list(acls.TEAMS.values())),
        st.sampled_from(list(NUMBERS)),
    ),
)
ENTITIES = MEMBERS.map(lambda member: acls.of_member(member, NUMBERS))
OBJECT_ENTRIES = st.dictionaries(ENTITIES, st.sampled_from(list(acls.OBJECT_ROLES)), max_size=5).map(
    lambda held: list(held.items())
)
BUCKET_ENTRIES = st.dictionaries(ENTITIES, st.sampled_from(list(acls.BUCKET_ROLES)), max_size=5).map(
    lambda held: list(held.items())
)
BINDINGS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(list(roles.ROLES)), "members": st.lists(MEMBERS | st.just("projectOwner:elsewhere"))}
    ),
    max_size=5,
)
ANN, BOB = Caller("user:ann@x.y"), Caller("serviceAccount:bob@taxi-two.iam.gserviceaccount.com")


# --- who an entity is ---


@given(MEMBERS)
def test_a_member_is_one_entity_and_the_entity_is_that_member(member):
    entity = acls.of_member(member, NUMBERS)
    assert acls.to_member(entity, NUMBERS) == member
    assert acls.entity(entity, "entity", NUMBERS) == entity


def test_a_projects_people_are_told_by_its_id_or_its_number_and_kept_by_its_number():
    assert acls.entity("project-viewers-taxi-two", "entity", NUMBERS) == "project-viewers-222"
    assert acls.entity("project-viewers-222", "entity", NUMBERS) == "project-viewers-222"
    assert acls.to_member("project-viewers-333", NUMBERS) is None
    assert acls.of_member("projectViewer:elsewhere", NUMBERS) is None


@pytest.mark.parametrize(
    ("entity", "says"),
    [
        ("group-all@x.y", "groups are not known here"),
        ("domain-x.y", "domains are not known here"),
        ("project-owners-333", "no project '333'"),
        ("project-drivers-111", "is no entity"),
        ("user-", "is no entity"),
        ("user-ann", "is no entity"),
        ("ann@x.y", "is no entity"),
        ("allusers", "is no entity"),
        ("", "is no entity"),
        (None, "is no entity"),
        (7, "is no entity"),
        (["allUsers"], "is no entity"),
    ],
)
def test_a_bad_entity_is_refused_by_the_name_of_its_field(entity, says):
    with pytest.raises(errors.InvalidArgument) as refused:
        acls.checked(
            [{"entity": "allUsers", "role": "READER"}, {"entity": entity, "role": "READER"}], "object", NUMBERS, "acl"
        )
    ((field, fault),) = refused.value.faults
    assert field == "acl[1].entity"
    assert says in fault


@pytest.mark.parametrize(
    ("entries", "fields"),
    [
        (None, ["acl"]),
        ({}, ["acl"]),
        (["allUsers"], ["acl[0]"]),
        ([{}], ["acl[0].entity", "acl[0].role"]),
        ([{"entity": "allUsers", "role": "WRITER"}], ["acl[0].role"]),
        ([{"entity": "allUsers", "role": "reader"}], ["acl[0].role"]),
        ([{"entity": "allUsers", "role": ["READER"]}], ["acl[0].role"]),
        ([{"entity": "allUsers", "role": "READER"}] * 101, ["acl"]),
    ],
)
def test_a_bad_list_is_refused_with_every_fault(entries, fields):
    with pytest.raises(errors.InvalidArgument) as refused:
        acls.checked(entries, "object", NUMBERS, "acl")
    assert [field for field, _ in refused.value.faults] == fields


@given(OBJECT_ENTRIES)
def test_what_is_shown_can_be_sent_back(entries):
    shown = [{"entity": entity, "role": role, "etag": "x"} for entity, role in entries]
    assert acls.checked(shown, "object", NUMBERS, "acl") == entries


@pytest.mark.parametrize(
    ("give", "take", "changes"),
    [
        (["ann@x.y:R"], None, [("user-ann@x.y", "READER")]),
        (["ann@x.y:write", "allusers:FC"], [], [("user-ann@x.y", "WRITER"), ("allUsers", "OWNER")]),
        (
            ["viewers-taxi-two:O"],
            ["AllAuthenticatedUsers"],
            [("project-viewers-taxi-two", "OWNER"), ("allAuthenticatedUsers", "")],
        ),
    ],
)
def test_the_command_line_takes_gsutils_words(give, take, changes):
    assert cli_acls.changes(give, take) == changes


@pytest.mark.parametrize(
    ("give", "says"),
    [
        (None, "Nothing to change"),
        (["ann@x.y"], "expected WHO:R, WHO:W or WHO:O"),
        (["ann@x.y:X"], "expected WHO:R, WHO:W or WHO:O"),
        (["ann:R"], "'ann' is nobody that a list can name"),
        ([":R"], "'' is nobody that a list can name"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_other_words(give, says):
    with pytest.raises(errors.InvalidArgument, match=says):
        cli_acls.changes(give, None)


# --- what a list gives ---


@given(OBJECT_ENTRIES, st.sets(ENTITIES, max_size=3), st.sampled_from(sorted(set().union(*roles.ROLES.values()))))
def test_a_list_gives_what_its_roles_have_to_those_it_names(entries, mine, permission):
    given = any(entity in mine and permission in roles.ROLES[acls.OBJECT_ROLES[role]] for entity, role in entries)
    assert acls.gives(entries, "", permission, mine) == given


@given(OBJECT_ENTRIES, ENTITIES, st.sampled_from(sorted(acls.ON_OBJECTS)))
def test_the_owner_owns_whatever_the_list_says(entries, owner, permission):
    assert acls.gives(entries, owner, permission, {owner})
    shown = acls.with_owner(entries, owner)
    assert shown[0] == (owner, "OWNER")
    assert [entity for entity, _ in shown].count(owner) == 1
    assert acls.with_owner(shown, owner) == shown


@pytest.mark.parametrize("permission", ["storage.objects.delete", "storage.objects.create", "storage.buckets.get"])
def test_a_list_never_gives_what_is_the_buckets_to_give(permission):
    assert not acls.gives([("allUsers", "OWNER")], "user-ann@x.y", permission, {"allUsers", "user-ann@x.y"})


@pytest.mark.parametrize(
    ("kind", "name", "entries"),
    [
        ("object", "private", []),
        ("object", "publicRead", [("allUsers", "READER")]),
        ("object", "authenticatedRead", [("allAuthenticatedUsers", "READER")]),
        ("object", "bucketOwnerRead", [("project-owners-111", "READER")]),
        ("object", "bucketOwnerFullControl", [("project-owners-111", "OWNER")]),
        ("bucket", "private", [("project-owners-111", "OWNER")]),
        ("bucket", "publicReadWrite", [("project-owners-111", "OWNER"), ("allUsers", "WRITER")]),
    ],
)
def test_a_ready_made_list(kind, name, entries):
    assert acls.predefined(name, kind, 111, "predefinedAcl") == entries


@pytest.mark.parametrize("kind", ["object", "bucket"])
def test_the_projects_private_list_is_for_its_people(kind):
    assert acls.predefined("projectPrivate", kind, 111, "predefinedAcl") == [
        ("project-owners-111", "OWNER"),
        ("project-editors-111", "OWNER"),
        ("project-viewers-111", "READER"),
    ]


@pytest.mark.parametrize(
    ("kind", "name"), [("object", "publicReadWrite"), ("bucket", "bucketOwnerRead"), ("bucket", "x")]
)
def test_an_unknown_ready_made_list_is_refused_with_all_there_are(kind, name):
    with pytest.raises(
        errors.InvalidArgument, match=rf"predefinedAcl Error: '{name}' is no ready-made list.*projectPrivate"
    ):
        acls.predefined(name, kind, 111, "predefinedAcl")


# --- a bucket's list is a view of its policy ---


@given(BINDINGS, BUCKET_ENTRIES)
def test_a_list_that_is_set_is_the_list_that_is_read(bindings, entries):
    made = acls.into_policy(bindings, entries, NUMBERS)
    assert dict(acls.of_policy(made, NUMBERS)) == dict(entries)
    assert policies.checked({"bindings": made}) == made


@given(BINDINGS, BUCKET_ENTRIES)
def test_setting_a_list_leaves_every_other_role_and_what_lists_cannot_say(bindings, entries):
    made = acls.into_policy(bindings, entries, NUMBERS)
    legacy = acls.BUCKET_ROLES.values()

    def others(of):
        return {
            (binding["role"], member)
            for binding in of
            for member in binding["members"]
            if binding["role"] not in legacy or member == "projectOwner:elsewhere"
        }

    assert others(made) == others(bindings)


@given(BINDINGS)
def test_setting_the_list_that_was_read_takes_no_right_away(bindings):
    made = acls.into_policy(bindings, acls.of_policy(bindings, NUMBERS), NUMBERS)
    for member in {member for binding in bindings for member in binding["members"]}:
        for permission in roles.STORAGE_ALL:
            if policies.may([member], permission, bindings):
                assert policies.may([member], permission, made)


def test_the_policy_of_a_new_bucket_is_its_projects_private_list():
    policy = policies.default_bucket_policy("taxi-one")
    assert sorted(acls.of_policy(policy["bindings"], NUMBERS)) == sorted(
        acls.predefined("projectPrivate", "bucket", 111, "predefinedAcl")
    )


@given(OBJECT_ENTRIES)
def test_an_objects_list_is_a_policy_too(entries):
    assert dict(acls.of_object_policy(acls.object_policy(entries, NUMBERS), NUMBERS)) == dict(entries)


# --- on rows ---


@pytest.fixture
def house(db):
    """Two projects, a bucket of the first, and in it an object that Bob's service account wrote."""
    db.write(lambda tx: projects.create(tx, "taxi-one", owners=["user:owner@x.y"], now=1))
    db.write(lambda tx: projects.create(tx, "taxi-two", owners=[ANN.member], now=1))
    buckets.insert(db, "taxi-one", "rides", now=1)
    store(db, "model", BOB.member)
    return db


def store(db, name, owner, **metadata):
    """An object's rows, as a write leaves them; what it replaces is replaced."""
    content = Content(new_id(), 1, "AAAAAA==", None, b"x")
    wanted = objects.New("rides", name, content, objects.Metadata(**metadata), owner, 1.0)
    blobs = Blobs(db.path.parent / "blobs")
    return db.write(lambda tx: objects.put(tx, blobs, wanted, ALWAYS, may_replace=True))[0]


def may(db, who, permission, name="model", generation=""):
    within = policies.object_of(name, generation)
    said = policies.allowed(db, who, permission, bucket="rides", within=within)
    try:
        policies.need(db, who, permission, bucket="rides", within=within)
    except (errors.PermissionDenied, errors.Unauthenticated):
        assert not said
    else:
        assert said
    return said


def give(db, entries, name="model"):
    objects.change_acl(db, "rides", name, lambda found: entries, now=2)


def test_who_wrote_an_object_may_all_but_delete_it_and_nothing_with_others(house):
    store(house, "another", ANN.member)
    for permission in sorted(acls.ON_OBJECTS):
        assert may(house, BOB, permission)
        assert not may(house, BOB, permission, "another")
        assert not may(house, NOBODY, permission)
    assert not may(house, BOB, "storage.objects.delete")


@pytest.mark.parametrize(
    ("entity", "those"),
    [
        ("user-ann@x.y", {"ann"}),
        ("allAuthenticatedUsers", {"ann", "carl"}),
        ("allUsers", {"ann", "carl", "nobody"}),
        ("project-owners-taxi-two", {"ann"}),
        ("project-editors-taxi-two", set()),
        ("user-annika@x.y", set()),
    ],
)
def test_an_entry_lets_in_those_it_names(house, entity, those):
    people = {"ann": ANN, "carl": Caller("user:carl@x.y"), "nobody": NOBODY}
    assert not any(may(house, who, "storage.objects.get") for who in people.values())
    give(house, [(acls.entity(entity, "entity", projects.numbers(house)), "READER")])
    assert {name for name, who in people.items() if may(house, who, "storage.objects.get")} == those
    assert not any(may(house, who, "storage.objects.update") for who in people.values())


def test_an_object_that_nobody_gave_a_list_is_private_to_its_project(house):
    viewer = Caller("user:viewer@x.y")
    policy = projects.get(house, "taxi-one").policy["bindings"]
    assert not may(house, viewer, "storage.objects.get")
    projects.set_policy(
        house, "taxi-one", {"bindings": [*policy, {"role": "roles/viewer", "members": [viewer.member]}]}
    )
    assert may(house, viewer, "storage.objects.get")
    assert not may(house, viewer, "storage.objects.update")
    give(house, [])
    assert not may(house, viewer, "storage.objects.get")


def test_uniform_access_ends_what_lists_give(house):
    give(house, [("allUsers", "OWNER")])
    buckets.patch(house, "rides", access=lambda current: {"uniform": True}, now=3)
    assert not any(may(house, who, "storage.objects.get") for who in (ANN, BOB, NOBODY))
    buckets.patch(house, "rides", access=lambda current: {"uniform": False}, now=4)
    assert all(may(house, who, "storage.objects.get") for who in (ANN, BOB, NOBODY))


def test_public_access_prevention_goes_before_lists_and_policies(house):
    give(house, [("allUsers", "READER"), ("user-ann@x.y", "READER")])
    binding = {"role": "roles/storage.objectViewer", "members": ["allUsers", "allAuthenticatedUsers"]}
    buckets.set_policy(house, "rides", {"bindings": [binding]}, now=3)
    buckets.patch(house, "rides", access=lambda current: {"extra": {"publicAccessPrevention": "enforced"}}, now=3)
    assert may(house, ANN, "storage.objects.get")
    assert not may(house, Caller("user:carl@x.y"), "storage.objects.get")
    assert not may(house, NOBODY, "storage.objects.get")


def test_a_generation_is_read_by_its_own_list_only(house):
    buckets.patch(house, "rides", access=lambda current: {"versioning": True}, now=2)
    first = store(house, "report", BOB.member, acl=[])
    second = store(house, "report", BOB.member, acl=[("allUsers", "READER")])
    assert first.generation < second.generation
    assert may(house, ANN, "storage.objects.get", "report")
    assert may(house, ANN, "storage.objects.get", "report", str(second.generation))
    assert not may(house, ANN, "storage.objects.get", "report", str(first.generation))
    assert may(house, BOB, "storage.objects.get", "report", str(first.generation))
    lister(house, ANN)
    with pytest.raises(errors.NotFound, match="gs://rides/report"):
        policies.need(house, ANN, "storage.objects.get", bucket="rides", within=policies.object_of("report", "99"))


def test_a_name_cannot_pass_for_a_generation_of_another(house):
    give(house, [("allUsers", "READER")])
    store(house, "1/model", BOB.member, acl=[])
    store(house, "model#1", BOB.member, acl=[])
    assert may(house, ANN, "storage.objects.get", "model")
    assert not may(house, ANN, "storage.objects.get", "1/model")
    assert not may(house, ANN, "storage.objects.get", "model#1")


def lister(db, who):
    binding = {"role": "roles/storage.legacyBucketWriter", "members": [who.member]}
    buckets.set_policy(db, "rides", {"bindings": [binding]}, now=3)


def test_who_may_list_is_told_that_an_object_is_not_there_and_others_are_not(house):
    within = policies.object_of("not/yet")
    with pytest.raises(errors.PermissionDenied, match=r"storage\.objects\.get on gs://rides/not/yet"):
        policies.need(house, BOB, "storage.objects.get", bucket="rides", within=within)
    lister(house, BOB)
    with pytest.raises(errors.NotFound, match="gs://rides/not/yet"):
        policies.need(house, BOB, "storage.objects.get", bucket="rides", within=within)
    with pytest.raises(errors.Unauthenticated):
        policies.need(house, NOBODY, "storage.objects.get", bucket="rides", within=within)


@pytest.mark.parametrize(
    ("permissions", "letter"),
    [
        (["storage.objects.get"], "R"),
        (["storage.objects.update"], "O"),
        (["storage.objects.get", "storage.objects.update"], "O"),
    ],
)
def test_a_refusal_names_both_grants(house, permissions, letter):
    store(house, "a b's", BOB.member)
    with pytest.raises(errors.PermissionDenied) as refused:
        policies.need(house, ANN, *permissions, bucket="rides", within=policies.object_of("a b's"))
    told = str(refused.value)
    assert told.startswith(
        f"user:ann@x.y does not have {', '.join(permissions)} on gs://rides/a b's. Grant it: gsutil "
    )
    assert (
        f"gsutil acl ch -u ann@x.y:{letter} 'gs://rides/a b'\"'\"'s' or, for the whole bucket, taxiway storage " in told
    )
    assert "add-iam-policy-binding gs://rides --member=user:ann@x.y --role=roles/storage.object" in told


def test_a_refusal_names_no_list_where_access_is_uniform_or_lists_cannot_give_it(house):
    with pytest.raises(errors.PermissionDenied) as refused:
        policies.need(house, ANN, "storage.objects.delete", bucket="rides", within=policies.object_of("model"))
    assert "acl ch" not in str(refused.value)
    buckets.patch(house, "rides", access=lambda current: {"uniform": True}, now=3)
    with pytest.raises(errors.PermissionDenied) as refused:
        policies.need(house, ANN, "storage.objects.get", bucket="rides", within=policies.object_of("model"))
    assert "acl ch" not in str(refused.value)
    assert "Grant it: taxiway storage buckets add-iam-policy-binding gs://rides" in str(refused.value)


def test_a_yes_of_a_policy_is_remembered_for_all_of_the_bucket_and_one_of_a_list_for_nothing(house):
    access = Access(house, Keys(b"k" * 32))
    get, model = "storage.objects.get", policies.object_of("model")

    def remembered(who):
        return access.remembered(who, get, bucket="rides", project=None)

    assert not access.need(BOB, get, bucket="rides", project=None, within=model)
    assert not remembered(BOB)
    binding = {"role": "roles/storage.objectViewer", "members": [ANN.member]}
    buckets.set_policy(house, "rides", {"bindings": [binding]}, now=3)
    assert access.need(ANN, get, bucket="rides", project=None, within=model)
    assert remembered(ANN)
    give(house, [(acls.of_member(BOB.member, {}), "READER")])
    assert not access.need(BOB, get, bucket="rides", project=None, within=model)
    store(house, "model", ANN.member, acl=[])
    with pytest.raises(errors.PermissionDenied):
        access.need(BOB, get, bucket="rides", project=None, within=model)
