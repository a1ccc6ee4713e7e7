"""Whose word a token is: every way in which one does not hold."""

from __future__ import annotations

import base64
import json
import stat

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from taxiway import errors, plan
from taxiway.compute import attempts
from taxiway.db.tables import service_account_keys
from taxiway.handles import Exit
from taxiway.iam import keys, members, projects
from taxiway.iam.keys import HOUR, LEEWAY_S, Keys
from taxiway.iam.members import Caller

NOW = 1_800_000_000.0
EMAIL = "lab@taxi-one.iam.gserviceaccount.com"


@pytest.fixture
def held():
    return Keys(b"s" * 32)


@pytest.fixture
def house(db):
    def make(tx):
        projects.create(tx, "taxi-one", owners=["user:ann@x.y"], now=NOW)
        projects.create_account(tx, "taxi-one", EMAIL, "The lab", now=NOW)

    db.write(make)
    return db


@pytest.fixture
def key(house):
    """A service account's key, as the JSON file that was handed out."""
    return house.write(lambda tx: keys.create_key(tx, EMAIL, token_uri="http://127.0.0.1:1/token", now=NOW))


def signed(key, secret=None, aud="https://oauth2.googleapis.com/token"):
    claims = {"iss": EMAIL, "sub": EMAIL, "aud": aud, "iat": NOW, "exp": NOW + HOUR}
    headers = {"kid": key["private_key_id"]}
    return jwt.encode(claims, secret or key["private_key"], algorithm="RS256", headers=headers)


def refused(held, db, token, now=NOW, match=None):
    with pytest.raises(errors.Unauthenticated, match=match):
        held.caller(db, token, now=now)


def test_an_access_token_says_its_member_until_it_expires(held, house):
    token = held.access_token("user:ann@x.y", now=NOW)
    assert held.caller(house, token, now=NOW) == Caller("user:ann@x.y")
    assert held.caller(house, token, now=NOW + HOUR) == Caller("user:ann@x.y")
    refused(held, house, token, now=NOW + HOUR + 1, match=r"expired.*taxiway auth print-access-token")


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "ya29.looks-like-googles", "ü.ü.ü", "." * 5000, "e30.e30."])
def test_what_is_no_token_is_refused(held, house, token):
    refused(held, house, token, match="not one of this server's|does not hold")


def test_a_token_of_another_secret_is_refused(held, house):
    refused(held, house, Keys(b"t" * 32).access_token("user:ann@x.y", now=NOW), match="does not hold")


def test_a_token_that_was_changed_is_refused(held, house):
    head, claims, signature = held.access_token("user:ann@x.y", now=NOW).split(".")
    told = json.loads(base64.urlsafe_b64decode(claims + "=="))
    forged = text64(json.dumps(told | {"sub": "user:bob@x.y"}))
    refused(held, house, f"{head}.{forged}.{signature}", match="does not hold")
    refused(held, house, f"{head}.{claims}.", match="does not hold")


def test_a_token_without_a_signature_is_refused(held, house):
    claims = {"iss": "taxiway", "sub": "user:ann@x.y", "exp": NOW + 60}
    refused(held, house, jwt.encode(claims, "", algorithm="none"), match="does not hold")


@pytest.mark.parametrize("missing", ["exp", "sub", "iss"])
def test_a_token_must_say_who_by_whom_and_until_when(held, house, missing):
    claims = {"iss": "taxiway", "sub": "user:ann@x.y", "exp": NOW + 60}
    del claims[missing]
    refused(held, house, jwt.encode(claims, held.secret, algorithm="HS256"), match=missing)


# --- service accounts' own JWTs ---


def test_a_service_accounts_own_jwt_is_taken_as_it_is(held, house, key):
    assert held.caller(house, signed(key), now=NOW) == Caller(f"serviceAccount:{EMAIL}")
    assert held.caller(house, signed(key, aud="http://127.0.0.1:1/token"), now=NOW).email == EMAIL
    assert held.caller(house, signed(key), now=NOW + HOUR + LEEWAY_S - 1).email == EMAIL


def test_the_jwt_of_an_unknown_or_deleted_key_is_refused(held, house, key):
    refused(held, house, signed({**key, "private_key_id": "0" * 40}), match="No service account here has the key '0000")
    assert keys.has_key(house, key["private_key_id"])
    house.write(lambda tx: tx.execute(service_account_keys.delete()))
    refused(held, house, signed(key), match="No service account here has the key")
    assert not keys.has_key(house, key["private_key_id"])


def test_a_jwt_signed_with_somebody_elses_key_is_refused(held, house, key):
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    refused(held, house, signed(key, secret=other), match="does not hold: Signature")


def test_a_public_key_is_no_secret_to_sign_with(held, house, key):
    """The old trick: HS256 with the public key's text, which everybody may know."""
    with house.read() as rows:
        public = rows.execute(service_account_keys.select()).one().public_key
    parts = ({"alg": "HS256", "kid": key["private_key_id"]}, {"iss": EMAIL, "iat": NOW, "exp": NOW + 60})
    signing = ".".join(text64(json.dumps(part)) for part in parts)
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    token = f"{signing}.{text64(algorithm.sign(signing.encode(), public.encode()))}"
    refused(held, house, token)
    with pytest.raises(errors.Unauthenticated):
        keys.asserted(house, token, now=NOW)


WRONG = [
    ({"iss": "owner@taxi-one.iam.gserviceaccount.com"}, "says it is by"),
    ({"iss": None}, '"iss"'),
    ({"exp": None}, '"exp"'),
    ({"iat": None}, '"iat"'),
    ({"exp": "soon"}, "seconds since 1970"),
    ({"iat": [1]}, "seconds since 1970"),
    ({"exp": NOW - LEEWAY_S - 1}, "has expired"),
    ({"exp": NOW + 2 * HOUR}, "more than an hour"),
    ({"iat": NOW + LEEWAY_S + 1}, "has expired"),
]


def test_a_jwt_with_wrong_claims_is_refused(held, house, key):
    for changes, match in WRONG:
        refused(held, house, raw(key, **changes), match=match)


def raw(key, **changes):
    """A well-signed JWT with claims that PyJWT would not write."""
    claims = {"iss": EMAIL, "iat": NOW, "exp": NOW + HOUR} | changes
    told = {name: value for name, value in claims.items() if value is not None}
    signing = ".".join(text64(json.dumps(part)) for part in ({"alg": "RS256", "kid": key["private_key_id"]}, told))
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    return f"{signing}.{text64(algorithm.sign(signing.encode(), algorithm.prepare_key(key['private_key'])))}"


def text64(part):
    data = part.encode() if isinstance(part, str) else part
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_a_key_is_for_an_account_that_exists(house):
    with pytest.raises(errors.NotFound, match="nobody@x"):
        house.write(lambda tx: keys.create_key(tx, "nobody@x", token_uri="", now=NOW))


def test_the_private_half_of_a_key_is_not_kept(house, key):
    with house.read() as rows:
        assert "PRIVATE" not in str(rows.execute(service_account_keys.select()).all())


# --- attempts ---


@pytest.fixture
def attempt(house):
    work = msgspec.convert(
        {
            **dict.fromkeys(("subject", "task", "runtime", "python"), "x"),
            **{"project": "taxi-one", "project_number": 1, "packages": [], "fetch": {}, "command": [], "variables": {}},
        },
        plan.Work,
    )
    return house.write(lambda tx: attempts.create(tx, "a1", "job", work, identity=EMAIL, now=NOW))


@pytest.mark.parametrize("end", ["fenced", "finished", "superseded"])
def test_the_tokens_of_an_attempt_die_with_it(held, house, attempt, end):
    own = held.replica_token(attempt.id, now=NOW)
    users = held.access_token(members.of_email(EMAIL), now=NOW, attempt=attempt.id)
    assert held.caller(house, own, now=NOW) == Caller("", "a1")
    assert held.caller(house, users, now=NOW) == Caller(f"serviceAccount:{EMAIL}", "a1")
    assert not held.caller(house, own, now=NOW).signed_in
    if end == "fenced":
        house.write(lambda tx: attempts.fence(tx, "a1", now=NOW))
    elif end == "finished":
        attempts.finish(house, "a1", Exit(0, ""), now=NOW)
    else:
        work = msgspec.convert(attempt.work, plan.Work)
        house.write(lambda tx: attempts.create(tx, "a2", "job", work, identity=EMAIL, now=NOW))
    for token in (own, users):
        refused(held, house, token, match="attempt a1, which has ended or was superseded")


def test_the_token_of_an_attempt_that_never_was_is_refused(held, house):
    refused(held, house, held.replica_token("unheard-of", now=NOW), match="attempt unheard-of")


# --- the secret ---


def test_the_secret_is_made_once_and_only_its_owner_reads_it(tmp_path):
    made = keys.load(tmp_path / "keys")
    assert len(made.secret) == 32
    assert keys.load(tmp_path / "keys") == made
    assert keys.load(tmp_path / "others") != made
    assert stat.S_IMODE((tmp_path / "keys" / "signing.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert [each.name for each in (tmp_path / "keys").iterdir()] == ["signing.key"]


def test_a_secret_that_could_be_guessed_is_refused(tmp_path):
    (tmp_path / "signing.key").write_bytes(b"")
    with pytest.raises(errors.FailedPrecondition, match=r"damaged.*Remove the file"):
        keys.load(tmp_path)
