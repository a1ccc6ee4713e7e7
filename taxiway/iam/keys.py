"""Tokens: who a bearer is, and the keys that prove it."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from taxiway import errors
from taxiway.db.database import Database, Prepared
from taxiway.db.tables import attempts, refresh_tokens, service_account_keys, service_accounts, users
from taxiway.iam import members, scopes
from taxiway.iam.members import Caller

ISSUER = "taxiway"
HOUR = 3600
SECRET_BYTES = 32  # as long as HS256's hash (RFC 7518, 3.2)
LEEWAY_S = 60  # how far a client's clock may be off
JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
LIVE_ATTEMPTS = ("STARTED", "PREPARING", "RUNNING")

ID: sa.BindParameter[str] = sa.bindparam("id")
OF_ATTEMPT = Prepared(sa.select(attempts.c.state).where(attempts.c.id == ID))
OF_ACCOUNT = Prepared(
    sa.select(service_accounts.c.disabled, service_accounts.c.deleted).where(service_accounts.c.email == ID)
)
OF_USER = Prepared(sa.select(users.c.disabled).where(users.c.email == ID))
OF_KEY = Prepared(sa.select(service_account_keys.c.disabled).where(service_account_keys.c.id == ID))
OF_LOGIN = Prepared(sa.select(refresh_tokens.c.id).where(refresh_tokens.c.id == ID))


@dataclass(frozen=True, slots=True)
class Source:
    """What a token was made from, and dies with: a service account's key, or a login (a refresh token's id)."""

    key: str = ""
    login: str = ""


@dataclass(frozen=True, slots=True)
class Assertion:
    """What a service account signed."""

    email: str
    key: str  # the id of the key that it signed with
    scopes: str


@dataclass(frozen=True, slots=True)
class Token:
    """What an access token says, and whether it still holds was checked."""

    caller: Caller
    expires: float
    login: str


@dataclass(frozen=True, slots=True)
class Keys:
    """The secret that signs this home's access tokens (HS256), and the rules by which a bearer is believed."""

    secret: bytes

    def access_token(
        self,
        member: str,
        *,
        now: float,
        seconds: int = HOUR,
        attempt: str = "",
        scope: str = scopes.ALL,
        source: Source | None = None,
    ) -> str:
        """A token that says `member` until `now + seconds`; one that names an attempt or a source dies with it."""
        # Not a whole second: a server that starts again within one gives out a token of its own.
        claims: dict[str, Any] = {"iss": ISSUER, "sub": member, "iat": now, "exp": int(now) + seconds}
        source = source or Source()
        said = {"att": attempt, "key": source.key, "log": source.login, "scp": "" if scope == scopes.ALL else scope}
        claims |= {name: value for name, value in said.items() if value}
        return jwt.encode(claims, self.secret, algorithm="HS256")

    def replica_token(self, attempt: str, *, now: float) -> str:
        """The token of the replica itself: good for reports on its own attempt and nothing else, while that lives."""
        return self.access_token("", now=now, seconds=400 * 24 * HOUR, attempt=attempt)

    def caller(self, db: Database, bearer: str, *, now: float) -> Caller:
        """Who a bearer token stands for.

        Takes this home's access tokens and a service account's self-signed JWT (google.auth and oauth2client send
        those as they are). Raises Unauthenticated with the reason.
        """
        return self.token(db, bearer, now=now).caller

    def token(self, db: Database, bearer: str, *, now: float) -> Token:
        """As `caller`, and until when."""
        try:
            header = jwt.get_unverified_header(bearer)
        except jwt.InvalidTokenError as error:
            raise errors.Unauthenticated(
                "The access token is not one of this server's. Get a fresh one: taxiway auth print-access-token"
            ) from error
        if header.get("alg") == "RS256":
            return _self_signed(db, bearer, now)
        try:
            claims = jwt.decode(
                bearer,
                self.secret,
                algorithms=["HS256"],
                issuer=ISSUER,
                options={"require": ["exp", "sub", "iss"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError as error:
            raise errors.Unauthenticated(
                f"The access token does not hold ({error}). Get a fresh one: taxiway auth print-access-token"
            ) from error
        if claims["exp"] < now:
            raise errors.Unauthenticated(
                "The access token has expired. Get a fresh one: taxiway auth print-access-token"
            )
        attempt, login = claims.get("att", ""), claims.get("log", "")
        if attempt and not _lives(db, attempt):
            raise errors.Unauthenticated(f"The token belonged to attempt {attempt}, which has ended or was superseded.")
        _must_stand(db, claims["sub"], Source(claims.get("key", ""), login))
        return Token(Caller(claims["sub"], attempt, claims.get("scp", scopes.ALL)), claims["exp"], login)


def load(folder: Path) -> Keys:
    """The home's secret; made on first use, readable by its owner only."""
    path = folder / "signing.key"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = folder / f"signing.key.{os.getpid()}"
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    secret = path.read_bytes()
    if len(secret) < SECRET_BYTES:
        raise errors.FailedPrecondition(
            f"{path} is damaged: a secret of {len(secret)} bytes could be guessed. Remove the file: the "
            "next start makes a new one, and tokens that were given out do not hold any more."
        )
    return Keys(secret)


def asserted(db: Database, assertion: str, *, now: float) -> Assertion:
    """The service account that signed a JWT with one of its keys, and the scopes that it asks for (none: all).

    The audience is not checked: Google's clients write their own token endpoint's whatever token_uri says. Raises
    Unauthenticated for what is no JWT, an unknown or disabled key, a disabled account, a signature that does not
    match, a JWT in somebody else's name, or one that is too old or too long-lived.
    """
    return _asserted(db, assertion, now)[0]


def _self_signed(db: Database, bearer: str, now: float) -> Token:
    made, expires = _asserted(db, bearer, now)
    return Token(Caller(members.of_email(made.email), scopes=made.scopes), expires, login="")


def _asserted(db: Database, assertion: str, now: float) -> tuple[Assertion, float]:
    try:
        header = jwt.get_unverified_header(assertion)
    except jwt.InvalidTokenError as error:
        raise errors.Unauthenticated(f"The assertion is no JWT: {error}.") from error
    with db.read() as rows:
        key = rows.execute(
            sa.select(service_account_keys).where(service_account_keys.c.id == str(header.get("kid", "")))
        ).first()
    if key is None:
        raise errors.Unauthenticated(f"No service account here has the key {header.get('kid')!r} that signed the JWT.")
    try:
        claims = jwt.decode(
            assertion,
            key.public_key,
            algorithms=["RS256"],
            options={"verify_aud": False, "verify_exp": False, "verify_iat": False, "require": ["iss", "exp", "iat"]},
        )
    except jwt.InvalidTokenError as error:
        raise errors.Unauthenticated(f"The JWT of {key.email} does not hold: {error}.") from error
    if claims["iss"] != key.email:
        raise errors.Unauthenticated(f"The JWT says it is by {claims['iss']!r}, and its key belongs to {key.email}.")
    ends, made = claims["exp"], claims["iat"]
    if not isinstance(ends, int | float) or not isinstance(made, int | float):
        raise errors.Unauthenticated(f"The JWT of {key.email} must have exp and iat as seconds since 1970.")
    if not now - LEEWAY_S <= ends <= now + HOUR + LEEWAY_S or made > now + LEEWAY_S:
        raise errors.Unauthenticated(f"The JWT of {key.email} has expired, or lives for more than an hour.")
    if claims.get("sub") not in (None, "", key.email):
        raise errors.Unauthenticated(f"The JWT of {key.email} speaks for itself, and not for {claims['sub']!r}.")
    _must_stand(db, members.of_email(key.email), Source(key=key.id))
    try:
        scope = scopes.parse(str(claims.get("scope") or ""))
    except errors.InvalidArgument as error:
        raise errors.Unauthenticated(f"The JWT of {key.email} does not hold: {error}") from error
    return Assertion(key.email, key.id, scope), ends


def fresh_private() -> rsa.RSAPrivateKey:
    """A new RSA key. It takes a tenth of a second and more: made before the transaction that keeps its public half."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def create_key(
    tx: sa.Connection, email: str, *, token_uri: str, now: float, private: rsa.RSAPrivateKey | None = None
) -> dict[str, str]:
    """A new RSA key of a service account, as the JSON file that Google's libraries read; its private half is not kept.

    Raises NotFound if there is no such account.
    """
    account = tx.execute(sa.select(service_accounts).where(service_accounts.c.email == email)).first()
    if account is None or account.deleted is not None:
        raise errors.NotFound(f"The service account {email} does not exist.")
    private = private or fresh_private()
    key_id = secrets.token_hex(20)
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    tx.execute(
        service_account_keys.insert().values(id=key_id, email=email, public_key=public_pem.decode(), created=now)
    )
    return {
        "type": "service_account",
        "project_id": account.project,
        "private_key_id": key_id,
        "private_key": private_pem.decode(),
        "client_email": email,
        "client_id": account.unique_id,
        "auth_uri": f"{token_uri.removesuffix('/token')}/auth",
        "token_uri": token_uri,
        "universe_domain": "googleapis.com",
    }


def has_key(db: Database, key: str) -> bool:
    """Whether a key of this id is one of ours."""
    with db.read() as rows:
        return (
            rows.execute(sa.select(service_account_keys.c.id).where(service_account_keys.c.id == key)).first()
            is not None
        )


def _must_stand(db: Database, member: str, source: Source) -> None:
    """Raise Unauthenticated if the member, or what its token was made from, was disabled, revoked or deleted.

    A user without a row is somebody whom only this home's own secret can have named.
    """
    kind, _, email = member.partition(":")
    if kind == "serviceAccount":
        held = db.rows(OF_ACCOUNT, {"id": email})
        if not held or held[0][1] is not None:
            raise _ended(f"The service account {email} is deleted")
        if held[0][0]:
            raise _ended(f"The service account {email} is disabled")
    elif kind == "user" and any(disabled for (disabled,) in db.rows(OF_USER, {"id": email})):
        raise _ended(f"The user {email} is disabled")
    if source.key and not any(not disabled for (disabled,) in db.rows(OF_KEY, {"id": source.key})):
        raise _ended(f"The key {source.key} of {email} is disabled or deleted")
    if source.login and not db.rows(OF_LOGIN, {"id": source.login}):
        raise _ended(f"The login of {email} was revoked")


def _ended(what: str) -> errors.Unauthenticated:
    return errors.Unauthenticated(f"{what}, and so its tokens do not hold any more.")


def _lives(db: Database, attempt: str) -> bool:
    return any(state in LIVE_ATTEMPTS for (state,) in db.rows(OF_ATTEMPT, {"id": attempt}))
