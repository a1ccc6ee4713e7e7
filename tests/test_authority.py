import contextlib
import datetime
import ipaddress
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from taxiway import authority, errors

DAY = 86400.0
curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture
def paths(tmp_path):
    return authority.create(tmp_path / "tls", time.time())


@pytest.fixture
def https(paths):
    """A TLS server that answers every request with `fine`; yields its port."""
    context = authority.server_context(paths)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_answer, args=(listening, context), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def _answer(listening, context):
    while True:
        try:
            plain, _ = listening.accept()
        except OSError:
            return
        try:
            with context.wrap_socket(plain, server_side=True) as connection:
                while b"\r\n\r\n" not in connection.recv(65536):
                    pass
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine")
        except OSError:  # the client did not trust us
            plain.close()


def strict(cafile):
    context = ssl.create_default_context(cafile=str(cafile))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def shake_hands(server, client, name):
    """The names in the certificate that `client` accepts from `server`, over memory; raises what the client raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(4):
        for side in (theirs, ours):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return {value for _, value in theirs.getpeercert()["subjectAltName"]}


@pytest.mark.parametrize(
    "name",
    [
        "googleapis.com",
        "storage.googleapis.com",
        "us-central1-ml.googleapis.com",
        "accounts.google.com",
        "metadata.google.internal",
        "localhost",
    ],
)
def test_a_strict_client_trusts_our_server_under_each_name_and_sees_no_address(paths, name):
    names = shake_hands(authority.server_context(paths), strict(paths.ca_cert), name)
    assert "*.googleapis.com" in names
    assert "127.0.0.1" not in names  # BoringSSL would refuse it


def test_a_strict_client_that_comes_by_the_address_is_shown_a_certificate_with_it(paths):
    assert "127.0.0.1" in shake_hands(authority.server_context(paths), strict(paths.bundle), "127.0.0.1")


def test_a_name_that_is_not_ours_is_not_trusted(paths):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(authority.server_context(paths), strict(paths.ca_cert), "example.com")


@pytest.mark.parametrize("name", ["example.com", "google.com", "googleapis.com.example.com", "10.0.0.1"])
def test_a_stolen_key_cannot_speak_for_a_name_outside_the_constraints(paths, tmp_path, name):
    forged, key = forge(paths, name)
    (tmp_path / "forged.crt").write_bytes(forged.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "forged.key").write_bytes(key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "forged.crt", tmp_path / "forged.key")
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shake_hands(server, strict(paths.ca_cert), name)


def forge(paths, name):
    ca_key = serialization.load_pem_private_key(paths.ca_key.read_bytes(), password=None)
    ca_cert = x509.load_pem_x509_certificate(paths.ca_cert.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    alternative = x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca_cert.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return cert, key.private_bytes(encoding, form, serialization.NoEncryption())


@curl
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "storage.googleapis.com"])
def test_curl_trusts_the_bundle(paths, https, host):
    command = ["curl", "-sS", "--noproxy", "*", "--cacert", paths.bundle]
    command += ["--resolve", f"storage.googleapis.com:{https}:127.0.0.1", f"https://{host}:{https}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fine", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_requests_trusts_the_bundle(paths, https, host):
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(f"https://{host}:{https}/", verify=str(paths.bundle), timeout=10).text == "fine"


def test_the_bundle_holds_the_systems_authorities_and_ours_last(paths):
    bundle, ours = paths.bundle.read_bytes(), paths.ca_cert.read_bytes()
    assert bundle.endswith(b"\n" + ours)
    assert bundle.count(b"BEGIN CERTIFICATE") > 1


def test_a_bundle_named_by_the_environment_does_not_grow(paths, monkeypatch):
    before = paths.bundle.read_bytes()
    monkeypatch.setenv("SSL_CERT_FILE", str(paths.bundle))
    authority.create(paths.folder, time.time())
    assert paths.bundle.read_bytes() == before


def test_keys_are_their_owners_alone_and_nothing_temporary_stays(paths):
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths.folder.iterdir()}
    assert names.keys() == {"ca.key", "ca.crt", "server.key", "server.crt", "address.crt", "bundle.crt"}
    assert names["ca.key"] == names["server.key"] == 0o600


def test_creating_again_changes_nothing(paths):
    before = contents(paths)
    authority.create(paths.folder, time.time() + 300 * DAY)
    assert contents(paths) == before


def test_server_certificates_live_at_most_397_days_and_are_renewed_60_days_before_their_end(paths):
    first = x509.load_pem_x509_certificate(paths.server_cert.read_bytes())
    assert first.not_valid_after_utc - first.not_valid_before_utc <= datetime.timedelta(days=397)
    before = contents(paths)
    authority.create(paths.folder, time.time() + 350 * DAY)
    after = contents(paths)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"server.crt", "address.crt"}


def test_a_renewed_authority_is_trusted_by_clients_that_know_the_old_one(tmp_path):
    tls, old = tmp_path / "long ago", tmp_path / "old.crt"
    paths = authority.create(tls, time.time() - 3600 * DAY)
    shutil.copy(paths.ca_cert, old)
    authority.create(tls, time.time())
    assert paths.ca_cert.read_bytes() != old.read_bytes()
    assert "*.googleapis.com" in shake_hands(authority.server_context(paths), strict(old), "storage.googleapis.com")
    assert "*.googleapis.com" in shake_hands(authority.server_context(paths), strict(paths.ca_cert), "localhost")


@pytest.mark.parametrize("lost", ["ca.key", "ca.crt", "server.key", "server.crt", "address.crt", "bundle.crt"])
def test_a_crash_between_any_two_files_is_mended_by_the_next_start(paths, lost):
    (paths.folder / lost).unlink()
    (paths.folder / f"{lost}.new").write_bytes(b"half a fi")
    authority.create(paths.folder, time.time())
    assert len(list(paths.folder.iterdir())) == 6
    shake_hands(authority.server_context(paths), strict(paths.bundle), "storage.googleapis.com")
    shake_hands(authority.server_context(paths), strict(paths.bundle), "127.0.0.1")


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.crt"])
def test_a_damaged_file_is_named_and_not_overwritten(paths, name):
    (paths.folder / name).write_text("nonsense")
    with pytest.raises(errors.FailedPrecondition, match=f"{name} is not a"):
        authority.create(paths.folder, time.time())
    assert (paths.folder / name).read_text() == "nonsense"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StorageFull, match="could not be written"):
        authority.create(tmp_path / "file" / "tls", time.time())


def contents(paths):
    return {path.name: path.read_bytes() for path in paths.folder.iterdir()}
