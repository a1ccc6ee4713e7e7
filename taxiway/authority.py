"""A private certificate authority, so that clients who insist on https reach us by Google's names.

    paths = authority.create(home / "tls", now=time.time())
    context = authority.server_context(paths)          # for our TLS port
    environ["SSL_CERT_FILE"] = str(paths.bundle)       # for the one process that shall trust us

The authority may vouch for the names in `DNS_NAMES` and for loopback only (a critical name constraint), so a stolen
key cannot speak for a bank; its key is readable by its owner alone, and it is never put into the system's store.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from taxiway import errors, files

DNS_NAMES = ("googleapis.com", "accounts.google.com", "metadata.google.internal", "localhost")
"""What the authority may vouch for; a name permits its subdomains (RFC 5280, 4.2.1.10)."""
NETWORKS = ("127.0.0.0/8", "169.254.169.254/32", "::1/128")
SERVER_NAMES = (
    *("googleapis.com", "*.googleapis.com", "*.storage.googleapis.com"),  # a star stands for one part of a name
    *("accounts.google.com", "metadata.google.internal", "localhost"),
)
SERVER_ADDRESS = "127.0.0.1"

AUTHORITY_LIFE = timedelta(days=3650)
# Apple's and Chromium's verifiers refuse a server certificate that lives longer than 398 days.
SERVER_LIFE = timedelta(days=396)
RENEW_BEFORE = timedelta(days=60)
# Clocks differ between machines: a certificate is valid from a little before it was made.
CLOCK_SKEW = timedelta(hours=1)

SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",  # older RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)


@dataclass(frozen=True)
class Paths:
    """The files of one authority, all PEM; the two keys have mode 0600.

    `server_cert` serves clients that come by a name, `address_cert` those that come by 127.0.0.1; both go with
    `server_key`. `bundle` holds the system's authorities and ours, for the variables that replace a client's store.
    """

    folder: Path

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def ca_cert(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def server_key(self) -> Path:
        return self.folder / "server.key"

    @property
    def server_cert(self) -> Path:
        return self.folder / "server.crt"

    @property
    def address_cert(self) -> Path:
        return self.folder / "address.crt"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle.crt"


def create(folder: Path, now: float) -> Paths:
    """Makes what is missing in `folder`, renews what ends within 60 days, and returns where everything lies.

    Safe to call at every start and after a crash at any line: each file appears whole or not at all, and a renewed
    certificate keeps its key, so no moment shows a pair that does not match. `now` is in seconds since 1970. One
    caller at a time. Raises FailedPrecondition for a file that is not what its name says, StorageFull when the
    folder cannot be written.
    """
    paths = Paths(folder)
    today = datetime.fromtimestamp(now, timezone.utc)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for half in folder.glob("*.new"):  # of a start that died
            half.unlink()
        ca_key = _key(paths.ca_key)
        ca_cert = _load_cert(paths.ca_cert)
        if ca_cert is None or not _holds(ca_cert, ca_key, ca_cert, today):
            ca_cert = _authority_cert(ca_key, today)
            _write(paths.ca_cert, _pem(ca_cert))
        server_key = _key(paths.server_key)
        for path, names in ((paths.server_cert, _names()), (paths.address_cert, _names_and_address())):
            cert = _load_cert(path)
            if cert is None or not _holds(cert, server_key, ca_cert, today) or _alternatives(cert) != names:
                _write(path, _pem(_server_cert(names, server_key, ca_key, ca_cert, today)))
        bundle = _system_bundle(own=paths.bundle) + _pem(ca_cert)
        if not paths.bundle.is_file() or paths.bundle.read_bytes() != bundle:
            _write(paths.bundle, bundle)
    except OSError as e:
        raise errors.StorageFull(
            f"The certificates in {folder} could not be written ({e.strerror or e}). "
            "Free some space, or give this folder to the user who runs the server."
        ) from e
    return paths


def server_context(paths: Paths) -> ssl.SSLContext:
    """The TLS context of our port; it answers with the certificate that fits the way the client came.

    A client that comes by an address sends no server name (RFC 6066, 3) and gets `address_cert`. BoringSSL, which is
    inside TensorFlow, refuses any certificate that names an address under an authority with address constraints
    (X509_V_ERR_UNSUPPORTED_CONSTRAINT_TYPE), so whoever sends a name gets one without addresses.
    """
    by_name, by_address = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    by_name.load_cert_chain(paths.server_cert, paths.server_key)
    by_address.load_cert_chain(paths.address_cert, paths.server_key)

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        if name and name != SERVER_ADDRESS:
            connection.context = by_name

    for context in (by_name, by_address):
        context.set_alpn_protocols(["http/1.1"])
    by_address.sni_callback = choose
    return by_address


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in `path`, made first if there is none."""
    if not path.is_file():
        key = ec.generate_private_key(ec.SECP256R1())
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        _write(path, key.private_bytes(encoding, form, serialization.NoEncryption()))
        return key
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as e:
        raise _damaged(path, "an unencrypted private key in PEM") from e
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise _damaged(path, "an elliptic-curve private key")
    return loaded


def _load_cert(path: Path) -> x509.Certificate | None:
    if not path.is_file():
        return None
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as e:
        raise _damaged(path, "a certificate in PEM") from e


def _damaged(path: Path, expected: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        f"{path} is not {expected}. Move the folder {path.parent} away and start again: a new authority is made, "
        "and programs that were pointed at the old one must be started anew."
    )


def _holds(cert: x509.Certificate, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate, today: datetime) -> bool:
    """Whether `cert` is for `key`, signed by `issuer`, already valid, and far enough from its end."""
    if cert.public_key() != key.public_key() or today < cert.not_valid_before_utc:
        return False
    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return cert.not_valid_after_utc - today >= RENEW_BEFORE


def _authority_cert(key: ec.EllipticCurvePrivateKey, today: datetime) -> x509.Certificate:
    # Verifiers look issuers up by name: each authority has its own, and keeps it when it is renewed with the same key.
    digest = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    subject = _subject(f"Taxiway local authority {digest[:4].hex()}")
    networks = [x509.IPAddress(ipaddress.ip_network(network)) for network in NETWORKS]
    permitted: list[x509.GeneralName] = [*(x509.DNSName(name) for name in DNS_NAMES), *networks]
    builder = _builder(subject, subject, key.public_key(), today, AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
    return builder.sign(key, hashes.SHA256())


def _server_cert(
    names: x509.SubjectAlternativeName,
    key: ec.EllipticCurvePrivateKey,
    ca_key: ec.EllipticCurvePrivateKey,
    ca_cert: x509.Certificate,
    today: datetime,
) -> x509.Certificate:
    subject = _subject(SERVER_NAMES[0])
    builder = _builder(subject, ca_cert.subject, key.public_key(), today, SERVER_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(names, critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return builder.add_extension(issuer, critical=False).sign(ca_key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    today: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=today - CLOCK_SKEW,
        not_valid_after=today + life,
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _subject(common_name: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Taxiway")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names() -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in SERVER_NAMES])


def _names_and_address() -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([*_names(), x509.IPAddress(ipaddress.ip_address(SERVER_ADDRESS))])


def _alternatives(cert: x509.Certificate) -> x509.SubjectAlternativeName:
    return cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def _system_bundle(own: Path) -> bytes:
    """The authorities that this machine trusts, in PEM, ending in a newline; empty if it trusts nobody."""
    for path in _system_candidates():
        # Inside `taxiway run` the variable names our own bundle, which would grow by one authority at each start.
        if path.is_file() and path.resolve() != own.resolve():
            return path.read_bytes().rstrip() + b"\n"
    return b""


def _system_candidates() -> Iterator[Path]:
    """The system's own file first: a variable may have been set for one program only, certifi is nobody's choice."""
    defaults = ssl.get_default_verify_paths()
    yield from (Path(path) for path in (defaults.openssl_cafile, *SYSTEM_BUNDLES))
    if defaults.cafile:
        yield Path(defaults.cafile)
    certifi = importlib.util.find_spec("certifi")
    if certifi is not None and certifi.origin is not None:
        yield Path(certifi.origin).with_name("cacert.pem")


def _write(path: Path, content: bytes) -> None:
    files.replace(path, content, 0o600 if path.suffix == ".key" else 0o644)
