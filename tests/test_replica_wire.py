"""The replica's calls, made to real listeners: what is final, what is tried again, and who is not our server."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager

import pytest
from trainers import until

from taxiway import errors, handles
from taxiway.handles import Order
from taxiway.replica.wire import Wire

ATTEMPT = "a1b2"
OURS = b'{"error": {"code": 401, "message": "The token belonged to attempt a1b2, which has ended or was superseded."}}'
ANOTHERS = b'{"error": {"code": 401, "message": "The access token is not one of this server."}}'
MISSING = b'{"error": {"code": 404, "message": "The object gs://b/o does not exist."}}'


@contextmanager
def listening(status, body):
    """A server that answers all alike; yields its URL and the paths that it was asked for."""
    asked = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def order(folder, url):
    handles.save(folder / "order.json", Order(ATTEMPT, "token", url, 1, ""))


@pytest.mark.parametrize(("status", "body"), [(401, OURS), (404, MISSING), (400, MISSING)])
def test_what_our_server_refuses_is_final(tmp_path, status, body):
    with listening(status, body) as (url, asked):
        order(tmp_path, url)
        with pytest.raises(errors.Error):
            Wire(tmp_path).heartbeat("RUNNING")
    assert len(asked) == 1


@pytest.mark.parametrize(("status", "body"), [(401, ANOTHERS), (404, b"<html>nothing here"), (405, b""), (403, b"[]")])
def test_who_listens_where_our_server_did_is_not_believed_and_ours_is_found_again(tmp_path, status, body):
    with listening(status, body) as (strange, asked), listening(200, b"{}") as (ours, heard):
        order(tmp_path, strange)
        calling = threading.Thread(target=Wire(tmp_path).heartbeat, args=("RUNNING",))
        calling.start()
        until(lambda: len(asked) > 1)
        order(tmp_path, ours)
        calling.join(30)
    assert heard == [f"/taxiway/v1/attempts/{ATTEMPT}:heartbeat"]
