"""Who may do what: the pure rule, what a refusal says, and what a policy may hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors
from taxiway.iam import members, policies, projects, roles
from taxiway.iam.members import NOBODY, Caller
from taxiway.storage import buckets

MEMBERS = st.sampled_from(["user:ann@x.y", "user:bob@x.y", "serviceAccount:s@p.iam.gserviceaccount.com", "allUsers"])
PERMISSIONS = st.sampled_from(sorted(set().union(*roles.ROLES.values())))
BINDINGS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(list(roles.ROLES)), "members": st.lists(MEMBERS, max_size=3)}),
    max_size=4,
)
ANN, BOB = Caller("user:ann@x.y"), Caller("user:bob@x.y")


@given(st.sets(MEMBERS), PERMISSIONS, BINDINGS)
def test_one_may_exactly_what_some_binding_gives(who, permission, bindings):
    given = [
        member in who and permission in roles.ROLES[each["role"]] for each in bindings for member in each["members"]
    ]
    assert policies.may(who, permission, bindings) == any(given)


@given(st.sets(MEMBERS), PERMISSIONS, BINDINGS, BINDINGS)
def test_a_further_grant_never_takes_anything_away(who, permission, bindings, more):
    if policies.may(who, permission, bindings):
        assert policies.may(who, permission, [*bindings, *more])
        assert policies.may(who | {"allUsers"}, permission, [*more, *bindings])


@given(PERMISSIONS, BINDINGS)
def test_nobody_may_only_what_everybody_may(permission, bindings):
    for who in (NOBODY, Caller("", attempt="a1")):
        names = policies.names_of(who, "p", bindings)
        assert names == {members.ALL_USERS}
        assert policies.may(names, permission, bindings) == policies.may({"allUsers"}, permission, bindings)


@given(PERMISSIONS)
def test_the_suggested_role_gives_the_permission(permission):
    assert permission in roles.ROLES[roles.suggested(permission)]


def test_an_unknown_role_gives_nothing():
    assert not policies.may(["allUsers"], "ml.jobs.get", [{"role": "roles/unheardOf", "members": ["allUsers"]}])


def test_the_projects_people_are_members_of_their_buckets():
    bindings = [{"role": "roles/owner", "members": ["user:ann@x.y"]}]
    assert policies.names_of(ANN, "p", bindings) == {
        "user:ann@x.y",
        "projectOwner:p",
        "allUsers",
        "allAuthenticatedUsers",
    }
    theirs = policies.default_bucket_policy("p")["bindings"]
    assert policies.may(policies.names_of(ANN, "p", bindings), "storage.objects.create", theirs)
    assert not policies.may(policies.names_of(ANN, "q", bindings), "storage.objects.create", theirs)
    assert not policies.may(policies.names_of(BOB, "p", bindings), "storage.objects.create", theirs)


# --- on rows ---


@pytest.fixture
def house(db):
    """Two projects, and a bucket of the first."""
    db.write(lambda tx: projects.create(tx, "taxi-one", owners=[ANN.member], now=1))
    db.write(lambda tx: projects.create(tx, "taxi-two", owners=[BOB.member], now=1))
    buckets.insert(db, "taxi-one", "rides", policy=policies.default_bucket_policy("taxi-one"), now=1)
    return db


def test_an_owner_may_in_the_own_project_only(house):
    policies.need(house, ANN, "ml.jobs.create", project="taxi-one")
    policies.need(house, ANN, "storage.objects.create", bucket="rides")
    with pytest.raises(errors.PermissionDenied):
        policies.need(house, ANN, "ml.jobs.create", project="taxi-two")
    with pytest.raises(errors.PermissionDenied):
        policies.need(house, BOB, "storage.objects.get", bucket="rides")


def test_the_service_agent_has_nothing_until_it_is_granted(house):
    agent = Caller(members.of_email(projects.service_agent(projects.get(house, "taxi-one").number)))
    with pytest.raises(errors.PermissionDenied) as refused:
        policies.need(house, agent, "storage.objects.get", "storage.objects.list", bucket="rides")
    told = str(refused.value)
    for part in (agent.member, "storage.objects.get, storage.objects.list", "gs://rides"):
        assert part in told
    command = f"add-iam-policy-binding gs://rides --member={agent.member} --role=roles/storage.objectViewer"
    assert told.endswith(command)
    binding = {"role": "roles/storage.objectViewer", "members": [agent.member]}
    policy = buckets.get(house, "rides").policy
    buckets.set_policy(house, "rides", {"bindings": [*policy["bindings"], binding]}, now=2)
    policies.need(house, agent, "storage.objects.get", "storage.objects.list", bucket="rides")
    with pytest.raises(errors.PermissionDenied, match=r"objects.create on gs://rides\. Grant it: .*objectAdmin"):
        policies.need(house, agent, "storage.objects.create", bucket="rides")


@pytest.mark.parametrize("who", [NOBODY, Caller("", attempt="a1")], ids=["no token", "a replica's own token"])
def test_nobody_is_asked_for_a_token_and_told_nothing_else(house, who):
    for place in ({"bucket": "rides"}, {"bucket": "no-such-bucket"}, {"project": "taxi-one"}, {"project": "nowhere"}):
        with pytest.raises(errors.Unauthenticated, match="anonymous caller"):
            policies.need(house, who, "storage.objects.get", **place)


def test_what_does_not_exist_is_told_to_whoever_has_a_name(house):
    with pytest.raises(errors.NotFound, match="gs://no-such-bucket"):
        policies.need(house, ANN, "storage.objects.get", bucket="no-such-bucket")
    with pytest.raises(errors.NotFound, match="'nowhere'"):
        policies.need(house, ANN, "ml.jobs.get", project="nowhere")


def test_a_policy_for_everybody_is_for_nobody_too(house):
    binding = {"role": "roles/storage.objectViewer", "members": ["allUsers"]}
    buckets.set_policy(house, "rides", {"bindings": [binding]}, now=2)
    policies.need(house, NOBODY, "storage.objects.get", bucket="rides")
    policies.need(house, BOB, "storage.objects.get", bucket="rides")


# --- what a policy may hold ---


@pytest.mark.parametrize(
    ("bindings", "fields"),
    [
        ("all of them", ["bindings"]),
        (["roles/owner"], ["bindings[0]"]),
        ([{"role": "roles/nope", "members": ["user:a@b"]}], ["bindings[0].role"]),
        ([{"role": ["roles/owner"], "members": []}], ["bindings[0].role"]),
        ([{"role": "roles/owner", "members": "user:a@b"}], ["bindings[0].members"]),
        ([{"role": "roles/owner", "members": ["ann", 7, "user:a b@c"]}], ["bindings[0].members"] * 3),
        ([{"role": "roles/owner", "members": ["group:all@x.y"]}], ["bindings[0].members"]),
        (
            [{"role": "roles/owner", "members": ["user:a@b"]}, {"role": "x", "members": ["y"], "condition": {"a": 1}}],
            ["bindings[1].role", "bindings[1].condition", "bindings[1].members"],
        ),
    ],
)
def test_a_bad_policy_is_refused_by_the_names_of_its_fields(bindings, fields):
    with pytest.raises(errors.InvalidArgument) as refused:
        policies.checked({"bindings": bindings})
    assert [field for field, _ in refused.value.faults] == fields


@given(BINDINGS)
def test_a_checked_policy_means_the_same_and_is_a_fixed_point(bindings):
    kept = policies.checked({"bindings": bindings})
    assert policies.checked({"bindings": kept}) == kept
    assert len({each["role"] for each in kept}) == len(kept)
    for role in roles.ROLES:
        for permission in sorted(roles.ROLES[role])[:3]:
            for who in ("user:ann@x.y", "allUsers"):
                assert policies.may([who], permission, kept) == policies.may([who], permission, bindings)


def test_a_project_keeps_an_owner(house):
    with pytest.raises(errors.FailedPrecondition, match="must keep an owner"):
        projects.set_policy(house, "taxi-one", {"bindings": [{"role": "roles/viewer", "members": [ANN.member]}]})
    policies.need(house, ANN, "ml.jobs.create", project="taxi-one")


def test_of_two_who_change_a_policy_the_second_reads_it_again(house):
    held = projects.get(house, "taxi-one")
    policy = {"bindings": held.policy["bindings"], "etag": policies.etag(held.policy_version)}
    projects.set_policy(house, "taxi-one", policy)
    with pytest.raises(errors.Aborted, match="read it again"):
        projects.set_policy(house, "taxi-one", policy)
