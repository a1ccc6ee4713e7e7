"""DNS rebinding: a request must be for a name that means this server."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors, settings
from taxiway.hosts import Hosts, name_in

LOOPBACK = "127.0.0.1"
OURS = [
    "127.0.0.1",
    "127.0.0.1:8080",
    "localhost:8080",
    "LOCALHOST",
    "[::1]:8080",
    "127.0.0.2",
    "storage.googleapis.com",
    "us-central1-ml.googleapis.com:443",
    "my-rides.storage.googleapis.com",
    "accounts.google.com",
    "",
]
NOT_OURS = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evilgoogleapis.com",
    "googleapis.com.evil.example",
    "192.0.2.1",
    "[2001:db8::1]",
    "127.0.0.1@evil.example",
    "0x7f.1",
]


@pytest.mark.parametrize("header", OURS)
def test_the_names_that_mean_us_are_ours(header):
    assert Hosts(LOOPBACK).named(header.encode(), LOOPBACK) == name_in(header)


@pytest.mark.parametrize("header", NOT_OURS)
def test_other_names_are_not(header):
    assert Hosts(LOOPBACK).named(header.encode(), LOOPBACK) is None


@given(st.binary(max_size=60))
def test_any_header_is_judged_twice_alike(header):
    hosts = Hosts(LOOPBACK)
    assert hosts.named(header, LOOPBACK) == hosts.named(header, LOOPBACK)


def test_what_it_listens_on_is_its_name():
    hosts = Hosts("train.example.com")
    assert hosts.named(b"Train.Example.com:80", LOOPBACK) == "train.example.com"
    assert hosts.named(socket.gethostname().encode(), LOOPBACK)


def test_the_address_that_a_connection_came_in_on_is_its_name():
    hosts = Hosts("0.0.0.0")
    assert hosts.named(b"192.0.2.1:8080", "192.0.2.1") == "192.0.2.1"
    assert hosts.named(b"192.0.2.2:8080", "192.0.2.1") is None
    assert hosts.named(b"[2001:DB8::1]:8080", "2001:db8:0::1") == "2001:db8::1"


def test_further_names_can_be_set():
    hosts = Hosts(LOOPBACK, "train.example.com, *.lan.example.com,.tail.example.net")
    for name in ("train.example.com", "a.lan.example.com", "b.c.tail.example.net"):
        assert hosts.named(name.encode(), LOOPBACK) == name
    for name in ("x.train.example.com", "lan.example.com", "tail.example.net.evil.example"):
        assert hosts.named(name.encode(), LOOPBACK) is None


def test_a_setting_that_is_no_list_of_names_is_refused():
    assert settings.read({"TAXIWAY_HOSTS": "a.example.com, *.b.example.com"}).hosts == "a.example.com, *.b.example.com"
    with pytest.raises(errors.InvalidArgument, match="TAXIWAY_HOSTS"):
        settings.read({"TAXIWAY_HOSTS": "http://a.example.com/"})


# --- on the wire ---


def test_a_request_for_somebody_elses_name_is_refused_before_anything_else(server):
    mine = {"Authorization": f"Bearer {server.token}", "Host": "evil.example:8080"}
    for method, path in (
        ("GET", "/healthz"),
        ("GET", f"/v1/projects/{server.project}"),
        ("POST", f"/v1/projects/{server.project}/models/m:predict"),
        ("POST", "/token"),
        ("GET", "/storage/v1/b/x/o/y"),
        ("GET", "/no/such/path"),
    ):
        answer = server.http.request(method, path, headers=mine)
        assert answer.status_code == 421, (path, answer.text)
        message = answer.json()["error"]["message"]
        assert "'evil.example'" in message
        assert "TAXIWAY_HOSTS=evil.example" in message


def test_the_names_that_clients_use_are_answered(server):
    for host in ("localhost", "127.0.0.1:1", "ml.googleapis.com", "[::1]"):
        assert server.http.get("/healthz", headers={"Host": host}).status_code == 200, host


def test_a_setting_adds_names(start_server):
    running = start_server(TAXIWAY_HOSTS="train.example.com,*.lan")
    for host, code in (("train.example.com:8080", 200), ("box.lan", 200), ("evil.example", 421)):
        assert running.http.get("/healthz", headers={"Host": host}).status_code == code, host
