import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys

import pytest

from taxiway import errors, metadata

EMAIL = "job@proj-a.iam.gserviceaccount.com"
SCOPES = ("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/devstorage.read_write")
V1 = "/computeMetadata/v1"
FLAVOR = {"Metadata-Flavor": "Google"}


@contextlib.contextmanager
def serving(token=lambda: ("secret-token", 3599)):
    server = metadata.Metadata("proj-a", 1234, EMAIL, SCOPES, token)
    port = server.start()
    try:
        yield port
    finally:
        server.close()


@pytest.fixture(scope="module")
def port():
    with serving() as listening:
        yield listening


def ask(port, path, headers=FLAVOR, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    assert reply.headers["Metadata-Flavor"] == "Google"
    return reply.status, reply.headers["Content-Type"], body


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "computeMetadata/\n"),
        ("/computeMetadata/", "v1/\n"),
        (f"{V1}/", "instance/\nproject/\nuniverse/\n"),
        (f"{V1}/project/project-id", "proj-a"),
        (f"{V1}/project/numeric-project-id", "1234"),
        (f"{V1}/project/attributes/", ""),
        (f"{V1}/instance/attributes/", ""),
        (f"{V1}/instance/zone", "projects/1234/zones/local-a"),
        (f"{V1}/universe/universe-domain", "googleapis.com"),
        (f"{V1}/instance/service-accounts", f"default/\n{EMAIL}/\n"),
        (f"{V1}/instance/service-accounts/default/", "aliases\nemail\nidentity\nscopes\ntoken\n"),
        (f"{V1}/instance/service-accounts/default/aliases", "default\n"),
        (f"{V1}/instance/service-accounts/default/email", EMAIL),
        (f"{V1}/instance/service-accounts/{EMAIL}/email", EMAIL),
        (f"{V1}/instance/service-accounts/default/scopes", "".join(f"{scope}\n" for scope in SCOPES)),
    ],
)
def test_a_value_is_told_as_text(port, path, text):
    assert ask(port, path) == (200, "application/text", text)


@pytest.mark.parametrize("recursive", ["true", "True"])
@pytest.mark.parametrize("account", ["default", EMAIL, EMAIL.replace("@", "%40")])
def test_an_account_is_told_as_json(port, account, recursive):
    status, content_type, body = ask(port, f"{V1}/instance/service-accounts/{account}/?recursive={recursive}")
    assert (status, content_type) == (200, "application/json")
    assert json.loads(body) == {"aliases": ["default"], "email": EMAIL, "scopes": list(SCOPES)}


def test_the_whole_tree_is_told_in_googles_json_names_and_without_a_token(port):
    told = json.loads(ask(port, f"{V1}/?recursive=true")[2])
    assert told["project"] == {"attributes": {}, "numericProjectId": 1234, "projectId": "proj-a"}
    assert told["instance"]["serviceAccounts"].keys() == {"default", EMAIL}
    assert "secret-token" not in json.dumps(told)


@pytest.mark.parametrize("account", ["default", EMAIL])
def test_a_token_is_given_with_the_seconds_it_is_good_for(port, account):
    status, content_type, body = ask(port, f"{V1}/instance/service-accounts/{account}/token?scopes=a,b")
    assert (status, content_type) == (200, "application/json")
    assert json.loads(body) == {"access_token": "secret-token", "expires_in": 3599, "token_type": "Bearer"}


def test_a_server_that_is_away_is_unavailable():
    def token():
        raise errors.Unavailable("The server is restarting.")

    with serving(token) as port:
        status, _, body = ask(port, f"{V1}/instance/service-accounts/default/token")
        assert (status, body) == (503, "The server is restarting.\n")


def test_an_identity_token_is_refused_with_a_sentence(port):
    status, _, body = ask(port, f"{V1}/instance/service-accounts/default/identity?audience=x")
    assert status == 404
    assert "identity tokens" in body


@pytest.mark.parametrize("path", [f"{V1}/instance/gpu", "/other", "/computeMetadata/v2/", f"{V1}/project/project-id/x"])
def test_an_unknown_value_is_not_found(port, path):
    assert ask(port, path)[0] == 404


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({}, "Metadata-Flavor"),
        ({"Metadata-Flavor": "google"}, "Metadata-Flavor"),
        (FLAVOR | {"X-Forwarded-For": "10.0.0.1"}, "relayed"),
        (FLAVOR | {"Host": "evil.example"}, "evil.example"),
        (FLAVOR | {"Host": "127.0.0.1.evil.example:80"}, "evil.example"),
    ],
)
def test_a_caller_who_may_have_been_tricked_gets_no_token(port, headers, sentence):
    status, _, body = ask(port, f"{V1}/instance/service-accounts/default/token", headers)
    assert status == 403
    assert sentence in body
    assert "secret-token" not in body


@pytest.mark.parametrize("host", ["metadata", "METADATA.google.internal", "169.254.169.254", "localhost:8080"])
def test_the_names_that_clients_know_it_by_are_its_own(port, host):
    assert ask(port, "/", {"Host": host})[0] == 200


def test_the_first_ping_needs_no_header(port):
    assert ask(port, "/", {})[0] == 200


def test_another_method_is_refused_with_the_flavor_too(port):
    assert ask(port, f"{V1}/project/project-id", method="POST")[0] == 501
    assert ask(port, f"{V1}/project/project-id", method="HEAD") == (200, "application/text", "")


def test_google_auth_finds_its_credentials_here(port):
    program = (
        "import google.auth, google.auth.transport.requests as transport\n"
        "credentials, project = google.auth.default(scopes=['https://www.googleapis.com/auth/cloud-platform'])\n"
        "credentials.refresh(transport.Request())\n"
        "print(type(credentials).__module__, project, credentials.token, credentials.service_account_email)\n"
        "print(credentials.universe_domain, credentials.valid)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(port), capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"google.auth.compute_engine.credentials proj-a secret-token {EMAIL}",
        "googleapis.com True",
    ], done.stderr


def test_oauth2client_finds_its_credentials_here(port):
    pytest.importorskip("oauth2client")
    program = (
        "import httplib2\n"
        "from oauth2client.client import GoogleCredentials\n"
        "credentials = GoogleCredentials.get_application_default()\n"
        "credentials.refresh(httplib2.Http(proxy_info=None))\n"
        "print(credentials.access_token)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(port), capture_output=True, text=True)
    assert done.stdout.split() == ["secret-token"], done.stderr


def environment(port):
    address = f"127.0.0.1:{port}"
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("GOOGLE_", "CLOUDSDK_"))}
    return kept | {
        "GCE_METADATA_HOST": address,
        "GCE_METADATA_IP": address,
        "GCE_METADATA_ROOT": address,
        "HOME": "/nonexistent",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


def test_a_taken_port_is_refused_with_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = metadata.Metadata("proj-a", 1234, EMAIL, SCOPES, lambda: ("t", 1))
        with pytest.raises(errors.FailedPrecondition, match=f"could not listen on 127.0.0.1:{port}"):
            server.start("127.0.0.1", port)
