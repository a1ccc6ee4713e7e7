"""Signed requests by themselves: a signature of Google's own client holds, and nothing that differs from it does."""

from __future__ import annotations

import contextlib
import datetime
from urllib.parse import quote, urlsplit

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.cloud.storage import _signing
from google.oauth2 import service_account
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors
from taxiway.cli import signing
from taxiway.db.tables import service_account_keys, service_accounts
from taxiway.iam import keys, projects, signatures
from taxiway.iam.members import Caller
from taxiway.iam.signatures import Expired, Malformed, Mismatch, Sent, TooEarly, UnknownSigner

EMAIL = "lab@taxi-one.iam.gserviceaccount.com"
BEGAN = 1_800_000_000  # 2027-01-15T08:00:00Z
NOW = float(BEGAN + 1)

# Made by google-cloud-storage 3.17.1 with a key that was thrown away: generate_signed_url_v4 and _v2.
PUBLIC = """-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtvKzIk3ZRPbbPaxqLgFs
0TGtXWInnLIPAYv4w9anUwjGwuOeAwHFp771Uk9kT+4PPuXMV/URcnrcq9B4Xu0n
uWJ/d+tGk7A2bbMBwn9JNARZCgHi285YHyE2QH9QDq3SjHX/e0jQgZuNZVWcU3Te
Ayfi4TLp7QNObLK4utmQ4Bono8OtPlPvTbfV1syiOGNKdChqM4swKXwXby+pTQ4Q
9zB2kIr538PgvsO0TKm5L1OmrI/fAhdPjznU7zwU6ImQ3Lzebpg5JLdOu/U+vVDk
iW4wvpsxMupGn8iebxzk8s5L7zuVlUL3SrNYH9V835zxifiSSe4eJNZVQZIdv0EZ
GQIDAQAB
-----END PUBLIC KEY-----
"""
V4 = (
    "https://storage.googleapis.com/rides/a%20b/%C3%BC.csv?X-Goog-Algorithm=GOOG4-RSA-SHA256"
    "&X-Goog-Credential=lab%40taxi-one.iam.gserviceaccount.com%2F20270115%2Fauto%2Fstorage%2Fgoog4_request"
    "&X-Goog-Date=20270115T080000Z&X-Goog-Expires=600&X-Goog-SignedHeaders=content-type%3Bhost%3Bx-goog-meta-team"
    "&a-b=2&a=1"
    "&X-Goog-Signature=5051eb0ac39c0c95db65fe79c0adf4d0757be3a78edfef977cd4532e3afe71073b03b262f3d1967743d4fcd60120859322"
    "c4c9218408686546b6255c7d552ae5b8006cb570d35ddd971eb9df03e86cec33aee5ee6fcacf5edf033e9323e68c4df3a4d441a48776f7ed77"
    "526dbf170f3691c6ca855bec7649deed970c0937bf5ff94d2fcb1c24225826c59759821656a5f5f3599a2532ffb9b401cc215d2d63015d3658"
    "82da590d42fa02c96742a37249edece8a74445e4a05a5bc42d79b8a6dd38ead52c4a024acb8bf2d0ac939030692fae0592a65f2db058427b1b"
    "7b22e7580a8062be270e32a73d45c61716c993c3b33c4e7476e0e4bce1168081dd71cd4c"
)
V4_HEADERS = {"Host": "storage.googleapis.com", "Content-Type": "text/csv", "x-goog-meta-team": "one two"}
V2 = (
    "https://storage.googleapis.com/rides/a%20b/%C3%BC.csv?Expires=1800000600"
    "&GoogleAccessId=lab%40taxi-one.iam.gserviceaccount.com"
    "&Signature=JKRvVoqCxqJTee3B19DEIkMUJgOdAmDSCb76k5GGw4YqzB8JsLQ1ovZSD%2FkMaBhNUP2NlYOIYmAUFyrik%2FT6Gj44KxbWUOp%2B"
    "okRe4u44gaC7QA1EbaiixeiE1YLzmHa4pp8%2Fmy7Yb1bVgKF3%2B4O0QEd6IenBk6XAbzzO9aPm2BAQUyUkzldE6fg2cs2WsBZFag3N9pGXO7U4HZ"
    "6IpF9OtfNpt%2BStaIh9yodTZlS%2B2ZrjFYF2kv3y86t%2BG0zsYsB%2Fn8hjI7BKejpwMcG%2BgYRpvCzqAp%2BvyeyJqI1tYnTKyDcRBixZbHEq"
    "UonJQKeAs8TetOZWWs4YET8GaJHJ1ILu9A%3D%3D"
)
V2_HEADERS = {
    "Content-MD5": "rL0Y20zC+Fzt72VPzMSk2A==",
    "Content-Type": "text/csv",
    "x-goog-acl": "private",
    "x-goog-meta-team": "one two",
}


def sent(url: str, method: str = "PUT", headers: dict[str, str] | None = None) -> Sent:
    split = urlsplit(url)
    told = V4_HEADERS if headers is None else headers
    pairs = [(name.lower(), value) for name, value in told.items()]
    return Sent(method, split.path, split.query, pairs, split.path)


def holds(request: Sent, now: float = NOW, public: str = PUBLIC) -> bool:
    try:
        claim = signatures.read(request, now=now)
    except errors.Error:
        return False
    return claim is not None and signatures.verify(claim, [public])


@pytest.fixture(scope="module")
def signer() -> service_account.Credentials:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    info = {"client_email": EMAIL, "private_key": pem, "token_uri": "http://127.0.0.1:1/token"}
    made = service_account.Credentials.from_service_account_info(info)
    made.pem = pem
    made.public = (
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
    return made


# ---- what Google's client signed ------------------------------------------------------------------------------------


def test_a_v4_url_of_googles_client_holds_for_its_time():
    claim = signatures.read(sent(V4), now=NOW)
    assert claim.email == EMAIL
    assert signatures.verify(claim, [PUBLIC])
    assert holds(sent(V4), BEGAN + 600)
    assert holds(sent(V4), BEGAN - keys.LEEWAY_S)
    with pytest.raises(Expired, match=r"expired: its signature held until 2027-01-15T08:10:00Z, 1 seconds ago"):
        signatures.read(sent(V4), now=BEGAN + 601)
    with pytest.raises(TooEarly, match="valid from 20270115T080000Z on, which is 61 seconds from now"):
        signatures.read(sent(V4), now=BEGAN - 61)


def test_a_v2_url_of_googles_client_holds_for_its_time():
    assert holds(sent(V2, headers=V2_HEADERS), BEGAN + 600)
    with pytest.raises(Expired, match="2027-01-15T08:10:00Z"):
        signatures.read(sent(V2, headers=V2_HEADERS), now=BEGAN + 601)
    for header in V2_HEADERS:
        assert not holds(sent(V2, headers={**V2_HEADERS, header: "other"})), header
        assert not holds(sent(V2, headers={name: value for name, value in V2_HEADERS.items() if name != header}))
    assert not holds(sent(V2, headers={**V2_HEADERS, "x-goog-storage-class": "NEARLINE"})), "a header more"
    assert not holds(sent(V2, "GET", V2_HEADERS))


def test_another_method_or_key_does_not_hold(signer):
    assert not holds(sent(V4, "GET"))
    assert not holds(sent(V4, "DELETE"))
    assert not holds(sent(V4), public=signer.public)


@given(
    place=st.integers(len("https://storage.googleapis.com/"), len(V4) - 1),
    letter=st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"),
)
def test_a_v4_url_with_any_letter_changed_is_refused(place, letter):
    if V4[place] == letter:
        return
    if V4[place].lower() == letter.lower() and place > V4.index("&X-Goog-Signature="):
        return  # the same word, or the same hexadecimal digit
    assert not holds(sent(V4[:place] + letter + V4[place + 1 :]))


@given(
    name=st.sampled_from(sorted(V4_HEADERS)),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
)
def test_a_signed_header_with_any_other_value_is_refused(name, value):
    if value.split() == V4_HEADERS[name].split():
        return  # runs of spaces count as one
    assert not holds(sent(V4, headers={**V4_HEADERS, name: value}))


@given(
    name=st.text(min_size=1, max_size=60),
    query=st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=4),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20).map(str.strip),
    method=st.sampled_from(["GET", "PUT", "DELETE", "HEAD"]),
)
def test_whatever_googles_client_signs_holds(signer, name, query, value, method):
    asked = {each: text for each, text in query.items() if not each.lower().startswith("x-goog-")}
    url = _signing.generate_signed_url_v4(
        signer,
        f"/rides/{quote(name, safe='/~', errors='replace')}" if name.isprintable() else "/rides/x",
        expiration=600,
        method=method,
        headers={"x-goog-meta-v": value},
        query_parameters={each: text for each, text in asked.items() if (each + text).isprintable()},
        _request_timestamp="20270115T080000Z",
    )
    assert holds(sent(url, method, {"Host": "storage.googleapis.com", "x-goog-meta-v": value}), public=signer.public)


def test_our_own_signing_makes_the_very_url_that_googles_makes(signer):
    theirs = _signing.generate_signed_url_v4(
        signer,
        f"/rides/{quote('a b/ü+%~.csv', safe='/~')}",
        expiration=600,
        api_access_endpoint="http://127.0.0.1:8080",
        method="PUT",
        content_type="text/csv",
        headers={"X-Goog-Meta-Team": "a  b"},
        query_parameters={"generation": "7"},
        _request_timestamp="20270115T080000Z",
    )
    key = serialization.load_pem_private_key(signer.pem.encode(), None)
    ours = signing.url(
        signing.Signer(EMAIL, key),
        "PUT",
        "http://127.0.0.1:8080",
        "/rides/a b/ü+%~.csv",
        seconds=600,
        now=BEGAN,
        headers={"content-type": "text/csv", "X-Goog-Meta-Team": "a  b"},
        query={"generation": "7"},
    )
    assert ours == theirs


def test_gclouds_spelling_holds(signer):
    """Small letters in the parameters' names, a plus for a space, the signature first: as `gcloud storage sign-url`."""
    headers = {"host": "127.0.0.1:8080", "x-goog-meta-v": "1"}
    query = (
        f"response-content-disposition=attachment%3B+filename%3Da&x-goog-algorithm=GOOG4-RSA-SHA256&x-goog-credential="
        f"{quote(EMAIL, safe='')}%2F20270115%2Fus-central1%2Fstorage%2Fgoog4_request&x-goog-date=20270115T080000Z"
        "&x-goog-expires=600&x-goog-signedheaders=host%3Bx-goog-meta-v"
    )
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = f"GET\n/rides/a\n{query}\n{lines}\nhost;x-goog-meta-v\nUNSIGNED-PAYLOAD"
    digest = hashes.Hash(hashes.SHA256())
    digest.update(canonical.encode())
    scope = "20270115/us-central1/storage/goog4_request"
    text = f"GOOG4-RSA-SHA256\n20270115T080000Z\n{scope}\n{digest.finalize().hex()}"
    signature = signer.sign_bytes(text.encode()).hex()
    url = f"http://127.0.0.1:8080/rides/a?x-goog-signature={signature}&{query}"
    assert holds(sent(url, "GET", headers), public=signer.public)
    assert not holds(sent(url.replace("us-central1", "us-central2"), "GET", headers), public=signer.public)


# ---- what is refused, and how ---------------------------------------------------------------------------------------


def without(url: str, name: str) -> str:
    base, _, query = url.partition("?")
    return f"{base}?{'&'.join(pair for pair in query.split('&') if not pair.startswith(name + '='))}"


@pytest.mark.parametrize("name", ["Credential", "Date", "Expires", "SignedHeaders", "Signature"])
def test_a_missing_part_of_a_v4_url_is_named(name):
    with pytest.raises(Malformed, match="missing") as told:
        signatures.read(sent(without(V4, f"X-Goog-{name}")), now=NOW)
    assert told.value.parameter == f"X-Goog-{name}"
    with pytest.raises(Malformed, match="twice"):
        signatures.read(sent(f"{V4}&x-goog-{name.lower()}=1"), now=NOW)


@pytest.mark.parametrize("name", ["Expires", "Signature"])
def test_a_missing_part_of_a_v2_url_is_named(name):
    with pytest.raises(Malformed, match=f"{name}: .* missing"):
        signatures.read(sent(without(V2, name), headers=V2_HEADERS), now=NOW)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("GOOG4-RSA-SHA256", "GOOG4-HMAC-SHA256", "expected GOOG4-RSA-SHA256"),
        ("X-Goog-Expires=600", "X-Goog-Expires=0", "1 to 604800 seconds"),
        ("X-Goog-Expires=600", "X-Goog-Expires=604801", "seven days"),
        ("X-Goog-Expires=600", "X-Goog-Expires=-1", "seven days"),
        ("X-Goog-Expires=600", "X-Goog-Expires=%D9%A6", "seven days"),
        ("X-Goog-Date=20270115T080000Z", "X-Goog-Date=yesterday", "expected a time such as"),
        ("X-Goog-Date=20270115T080000Z", "X-Goog-Date=20270115T990000Z", "no time that there is"),
        ("%2F20270115%2F", "%2F20270114%2F", "X-Goog-Credential: it is of '20270114'"),
        ("%2Fgoog4_request", "%2Faws4_request", r"expected EMAIL/20270115/LOCATION/storage/goog4_request"),
        ("%2Fstorage%2F", "%2Fcompute%2F", r"expected EMAIL/20270115"),
        ("%2Fauto%2F", "%2F%C3%BC%2F", "letters beyond ASCII"),
        ("%3Bhost%3B", "%3B", "host must be among"),
        ("%3Bx-goog-meta-team", "", "'x-goog-meta-team', which was not signed"),
        ("%3Bx-goog-meta-team", "%3Bx-goog-meta-team%3Bx-other", "signed with the header 'x-other'"),
        ("X-Goog-Signature=50", "X-Goog-Signature=5g", "hexadecimal"),
        ("X-Goog-Signature=50", "X-Goog-Signature=5", "hexadecimal"),
    ],
)
def test_a_malformed_v4_url_says_what_is_wrong(old, new, match):
    assert old in V4
    with pytest.raises(Malformed, match=match):
        signatures.read(sent(V4.replace(old, new)), now=NOW)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("Expires=1800000600", "Expires=soon", "seconds since 1970"),
        ("Signature=JKRv", "Signature=J+Rv", "not base64"),
        ("Signature=", "Expires=1&Signature=", "twice"),
    ],
)
def test_a_malformed_v2_url_says_what_is_wrong(old, new, match):
    with pytest.raises(Malformed, match=match):
        signatures.read(sent(V2.replace(old, new), headers=V2_HEADERS), now=NOW)


def test_a_v2_url_of_the_year_33658_is_no_trouble():
    far = V2.replace("Expires=1800000600", "Expires=99999999999")
    assert not holds(sent(far, headers=V2_HEADERS))


@given(
    start=st.sampled_from(["X-Goog-Algorithm=GOOG4-RSA-SHA256&", "GoogleAccessId=x&", ""]),
    query=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=80),
)
def test_whatever_a_query_says_is_read_or_refused_by_name(start, query):
    request = Sent("GET", "/b/o", start + query, [("host", "h")], "/b/o")
    with contextlib.suppress(Malformed, Expired, TooEarly):
        claim = signatures.read(request, now=NOW)
        assert claim is None or not signatures.verify(claim, [PUBLIC])


def test_only_a_query_that_is_signed_looks_so():
    assert signatures.hinted(b"X-Goog-Algorithm=")
    assert signatures.hinted(b"a=b&x-goog-algorithm=GOOG4-RSA-SHA256")
    assert signatures.hinted(b"GoogleAccessId=x")
    for query in (b"", b"prefix=X-Goog-Algorithm=1", b"q=GoogleAccessId", b"alt=media", b"X-Goog-Date=1"):
        assert not signatures.hinted(query), query


# ---- whose key it is ------------------------------------------------------------------------------------------------


@pytest.fixture
def house(db):
    def make(tx):
        projects.create(tx, "taxi-one", owners=["user:ann@x.y"], now=NOW)
        projects.create_account(tx, "taxi-one", EMAIL, "The lab", now=NOW)
        keys.create_key(tx, EMAIL, token_uri="http://127.0.0.1:1/token", now=NOW)
        theirs = {"id": "theirs", "email": EMAIL, "public_key": PUBLIC, "created": NOW}
        tx.execute(service_account_keys.insert().values(theirs))

    db.write(make)
    return db


def changed(house, table, **values):
    house.write(lambda tx: tx.execute(table.update().values(**values)).rowcount)


def test_any_enabled_key_of_the_account_will_do(house):
    assert signatures.caller(house, sent(V4), now=NOW) == Caller(f"serviceAccount:{EMAIL}")
    assert signatures.caller(house, sent(V2, headers=V2_HEADERS), now=NOW) == Caller(f"serviceAccount:{EMAIL}")
    assert signatures.caller(house, Sent("GET", "/b/o", "alt=media", [("host", "h")]), now=NOW) is None


def test_a_disabled_key_signs_nothing(house):
    changed(house, service_account_keys, disabled=True)
    with pytest.raises(Mismatch, match=f"none of the 0 enabled keys of {EMAIL}") as told:
        signatures.caller(house, sent(V4), now=NOW)
    lines = told.value.string_to_sign.split("\n")
    assert lines[:3] == ["GOOG4-RSA-SHA256", "20270115T080000Z", "20270115/auto/storage/goog4_request"]
    assert told.value.canonical.startswith("PUT\n/rides/a%20b/%C3%BC.csv\n")
    assert "\ncontent-type:text/csv\nhost:storage.googleapis.com\n" in told.value.canonical


def test_a_deleted_key_signs_nothing(house):
    house.write(
        lambda tx: tx.execute(service_account_keys.delete().where(service_account_keys.c.id == "theirs")).rowcount
    )
    with pytest.raises(Mismatch, match="none of the 1 enabled keys"):
        signatures.caller(house, sent(V2, headers=V2_HEADERS), now=NOW)


def test_a_disabled_deleted_or_unknown_account_signs_nothing(house):
    changed(house, service_accounts, disabled=True)
    with pytest.raises(UnknownSigner, match=f"{EMAIL} is disabled"):
        signatures.caller(house, sent(V4), now=NOW)
    changed(house, service_accounts, disabled=False, deleted=NOW)
    with pytest.raises(UnknownSigner, match="no such service account"):
        signatures.caller(house, sent(V4), now=NOW)
    with pytest.raises(UnknownSigner, match=r"'bob@x\.y'"):
        signatures.caller(house, sent(V4.replace(quote(EMAIL, safe=""), "bob%40x.y")), now=NOW)


# ---- in a header ----------------------------------------------------------------------------------------------------


def in_a_header(signer, date="20270115T080000Z", **changes) -> Sent:
    names = "host;x-goog-content-sha256;x-goog-date"
    headers = {"host": "h", "x-goog-content-sha256": "ab12", "x-goog-date": date}
    canonical = "GET\n/b/o\nx=1\n" + "".join(f"{name}:{headers[name]}\n" for name in headers) + f"\n{names}\nab12"
    digest = hashes.Hash(hashes.SHA256())
    digest.update(canonical.encode())
    scope = f"{date[:8]}/auto/storage/goog4_request"
    key = serialization.load_pem_private_key(signer.pem.encode(), None)
    text = f"GOOG4-RSA-SHA256\n{date}\n{scope}\n{digest.finalize().hex()}"
    signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()).hex()
    told = f"GOOG4-RSA-SHA256 Credential={EMAIL}/{scope}, SignedHeaders={names}, Signature={signature}"
    headers |= {"authorization": told, **changes}
    return Sent("GET", "/b/o", "x=1", list(headers.items()), "/b/o")


def test_a_signature_in_the_authorization_header_holds_for_a_quarter_of_an_hour(signer):
    request = in_a_header(signer)
    assert holds(request, NOW, signer.public)
    assert holds(request, BEGAN + 900, signer.public)
    with pytest.raises(Expired):
        signatures.read(request, now=BEGAN + 901)
    assert not holds(in_a_header(signer, **{"x-goog-content-sha256": "ab13"}), NOW, signer.public)
    assert not holds(in_a_header(signer, host="i"), NOW, signer.public)


def test_a_header_that_is_no_signature_says_why(signer):
    for told, match in (
        ("GOOG4-HMAC-SHA256 Credential=x", "expected GOOG4-RSA-SHA256"),
        ("GOOG1 x:y", "expected GOOG4-RSA-SHA256"),
        ("GOOG4-RSA-SHA256 Credential=x", "SignedHeaders: .* missing"),
        ("GOOG4-RSA-SHA256", "Credential: .* missing"),
    ):
        with pytest.raises(Malformed, match=match):
            signatures.read(in_a_header(signer, authorization=told), now=NOW)
    unsigned = [each for each in in_a_header(signer).headers if each[0] != "x-goog-date"]
    with pytest.raises(Malformed, match="X-Goog-Date"):
        signatures.read(Sent("GET", "/b/o", "x=1", unsigned, "/b/o"), now=NOW)


# ---- the command's own half -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3600), ("90", 90), ("1d2h3m4s", 93784), ("10m", 600)])
def test_a_duration_is_read_as_gcloud_does(text, seconds):
    assert signing.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1w", "-1h", "1h ", "1m1h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(errors.InvalidArgument, match="10m, 1h30m or 7d"):
        signing.duration(text)


def test_a_url_cannot_be_signed_for_longer_than_a_week_or_for_no_method(signer):
    key = serialization.load_pem_private_key(signer.pem.encode(), None)
    rest = {"now": datetime.datetime(2027, 1, 15).timestamp()}
    with pytest.raises(errors.InvalidArgument, match="seven days"):
        signing.url(signing.Signer(EMAIL, key), "GET", "http://h", "/b/o", seconds=604_801, **rest)
    with pytest.raises(errors.InvalidArgument, match="'PATCH'"):
        signing.url(signing.Signer(EMAIL, key), "PATCH", "http://h", "/b/o", seconds=1, **rest)


def test_what_is_no_key_file_is_refused(tmp_path):
    for content in ("", "{}", "[]", '{"client_email": "a", "private_key": "b"}', '{"client_email": "a"}'):
        path = tmp_path / "key.json"
        path.write_text(content)
        with pytest.raises(errors.InvalidArgument, match=r"key\.json is no service account's key file"):
            signing.signer(path)
