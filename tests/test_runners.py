"""What runs beside a model: the loop, the frames and the batching, with a model that needs no framework."""

from __future__ import annotations

import ast
import json
import os
import selectors
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from taxiway.environments import pythons, runtimes

RUNNERS = Path(__file__).parents[1] / "taxiway" / "runners"
FILES = sorted(RUNNERS.rglob("*.py"))
HEADER = struct.Struct("!IQB")
PREDICT, PING = 1, 2
PREDICTED, PONG, REFUSED, FAILED = 0, 2, 4, 5

# A model whose instances say what is to happen. "wait" names a FIFO: the model tells by a second one that it stands
# there, and stands until somebody opens the first.
TOY = """
print("this must not reach the ready line")

def load(folder):
    if folder == "broken":
        raise RuntimeError("the weights are torn")
    return Toy(folder)

class Toy:
    summary = {"framework": "toy", "default": None, "signatures": {}}

    def __init__(self, folder):
        self.folder = folder

    def check(self):
        if self.folder == "useless":
            raise ValueError("it answers nothing")
        return "not tried" if self.folder == "untried" else None

    def read(self, body):
        return ([{"value": "read quickly"}], {}) if body == b"quickly" else None

    def predict_many(self, requests):
        return [self.predict(instances, options, len(requests)) for instances, options in requests]

    def predict(self, instances, options, batch):
        rows = []
        for instance in instances:
            if "wait" in instance:
                open(instance["wait"] + ".reached", "w").close()
                open(instance["wait"]).close()
            if "explode" in instance:
                raise RuntimeError("boom")
            if "refuse" in instance:
                return 4, "no thank you"
            row = {"value": instance.get("value"), "batch": batch, "options": options}
            if "size" in instance:
                row["text"] = "x" * instance["size"]
            if "nan" in instance:
                row["value"] = float("nan")
            if "odd" in instance:
                row["value"] = object()
            rows.append(row)
        return 0, rows
"""


class Peer:
    """The gateway's end of one connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.buffer = bytearray()

    def send(self, number: int, body: bytes | dict, kind: int = PREDICT) -> None:
        payload = json.dumps(body).encode() if isinstance(body, dict) else body
        self.socket.sendall(HEADER.pack(len(payload), number, kind) + payload)

    def receive(self) -> tuple[int, int, bytes]:
        """The next reply: its number, kind and payload. Raises EOFError when the runner has closed."""
        while True:
            if len(self.buffer) >= HEADER.size:
                length, number, kind = HEADER.unpack_from(self.buffer)
                end = HEADER.size + length
                if len(self.buffer) >= end:
                    payload = bytes(self.buffer[HEADER.size : end])
                    del self.buffer[:end]
                    return number, kind, payload
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise EOFError
            self.buffer += piece

    def ask(self, body: bytes | dict) -> tuple[int, dict]:
        """Send one request and wait for its reply: the kind and the parsed payload."""
        self.send(7, body)
        number, kind, payload = self.receive()
        assert number == 7
        return kind, json.loads(payload)

    def close(self) -> None:
        self.socket.close()


class Runner:
    """A serve.py of our own, ready to be asked."""

    def __init__(self, folder: Path, python: str, model: str, framework: str, *options: str) -> None:
        self.path = folder / "s"
        self.peers: list[Peer] = []
        self.log = (folder / "log").open("w+")
        command = [python, str(RUNNERS / "serve.py"), "--socket", str(self.path), "--model", model]
        self.process = subprocess.Popen(
            [*command, "--framework", framework, *options], stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise AssertionError(Path(self.log.name).read_text())
        self.ready = json.loads(line)["ready"]

    def peer(self) -> Peer:
        peer = Peer(self.path)
        self.peers.append(peer)
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name: a unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        (Path(folder) / "toy.py").write_text(TOY)
        os.mkfifo(Path(folder) / "gate")
        os.mkfifo(Path(folder) / "gate.reached")
        yield Path(folder)


@pytest.fixture
def runner(place: Path) -> Iterator[Runner]:
    runner = Runner(place, sys.executable, "anything", str(place / "toy.py"))
    yield runner
    runner.close()


def instances(*rows: dict) -> dict:
    return {"instances": list(rows)}


def hold(peer: Peer, place: Path, number: int = 0) -> None:
    """Make the model stand still until let_go(), and return once it does: what is sent meanwhile is the next batch."""
    peer.send(number, instances({"wait": str(place / "gate")}))
    (place / "gate.reached").read_bytes()


def let_go(place: Path) -> None:
    """Opening the FIFO waits for the model to stand at it."""
    with (place / "gate").open("w"):
        pass


OLDEST = 6
# Every Python that a runtime offers, and those in between.
PYTHONS = [f"3.{minor}" for minor in range(OLDEST, 1 + max(sys.version_info.minor, 13))]


@pytest.fixture(params=PYTHONS)
def python(request: pytest.FixtureRequest) -> str:
    found = pythons.find(request.param)
    if found is None:
        pytest.skip(f"Python {request.param} is not on this machine")
    return str(found)


def test_every_python_that_a_runtime_offers_is_tried_here():
    assert {each for runtime in runtimes.table().values() for each in runtime.pythons} <= set(PYTHONS)


def test_every_runner_compiles_on_every_interpreter(python):
    code = "import sys\nfor path in sys.argv[1:]: compile(open(path, encoding='utf-8').read(), path, 'exec')"
    done = subprocess.run([python, "-c", code, *map(str, FILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_loop_answers_on_every_interpreter(python, place):
    runner = Runner(place, python, "anything", str(place / "toy.py"))
    try:
        kind, body = runner.peer().ask(instances({"value": 1}))
        assert (kind, body["predictions"][0]["value"]) == (PREDICTED, 1)
    finally:
        runner.close()


def test_every_interpreter_tells_the_line_that_it_cannot_read(python, tmp_path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/__init__.py").write_text("")
    (tmp_path / "trainer/task.py").write_text("from .model import Model\n")
    (tmp_path / "trainer/model.py").write_text("import numpy\nprint 'old'\n")
    ask = [python, "-I", str(RUNNERS / "sources.py"), str(tmp_path)]
    told = json.loads(subprocess.run([*ask, "trainer.task"], capture_output=True, text=True, check=True).stdout)
    assert (told["file"], told["line"], told["text"]) == ("trainer/model.py", 2, "print 'old'")
    assert "print" in told["reason"]
    assert subprocess.run([*ask, "json.tool"], capture_output=True, text=True, check=True).stdout == "null\n"


def test_the_sitecustomize_of_tensorflow_1_starts_on_every_interpreter(python, tmp_path):
    (tmp_path / "tensorflow.py").write_text("__version__ = '1.8.0'\n")
    path = {"PYTHONPATH": f"{RUNNERS / 'tensorflow1'}:{tmp_path}"}
    code = "import sitecustomize, tensorflow; print(tensorflow.__version__, hasattr(sitecustomize, 'Finder'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=path)
    assert (done.stdout, done.returncode) == ("1.8.0 True\n", 0), done.stderr


def test_every_runner_parses_as_python_3_6():
    for path in FILES:
        ast.parse(path.read_text(), feature_version=(3, 6))


OTHERS = {
    "numpy",
    "tensorflow",
    "msgspec",
    "sklearn",
    "xgboost",
    "joblib",
}  # what the runners of a framework find in its runtime


def test_the_runners_import_the_standard_library_their_neighbours_and_their_framework_only():
    for path in FILES:
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        allowed = set(sys.stdlib_module_names) | {"taxiway_runners"}
        if path.stem not in ("serve", "sources", "sitecustomize"):
            allowed |= OTHERS
        assert {name.split(".")[0] for name in names} <= allowed, path


def test_no_runner_is_named_like_a_module_that_it_could_shadow():
    taken = set(sys.stdlib_module_names) | {"tensorflow", "numpy", "sklearn", "xgboost", "joblib", "keras", "torch"}
    assert not {path.stem for path in FILES} & taken


def test_the_ready_line_is_alone_on_stdout_and_the_socket_is_the_owners(runner):
    assert runner.ready["framework"] == "toy"
    assert runner.ready["pid"] == runner.process.pid
    assert stat.S_IMODE(runner.path.stat().st_mode) == 0o600
    assert "this must not reach the ready line" in Path(runner.log.name).read_text()


def test_options_beside_the_instances_reach_the_model(runner):
    kind, body = runner.peer().ask({"instances": [{"value": 5}], "signature_name": "s", "other": [1]})
    assert kind == PREDICTED
    assert body == {
        "predictions": [{"value": 5, "batch": 1, "options": {"signature_name": "s", "other": [1]}}],
    }


def test_a_model_may_read_bodies_that_it_knows_itself(runner):
    kind, body = runner.peer().ask(b"quickly")
    assert (kind, body["predictions"][0]["value"]) == (PREDICTED, "read quickly")


def test_a_ping_is_answered(runner):
    peer = runner.peer()
    peer.send(41, b"", PING)
    assert peer.receive() == (41, PONG, b"")


def test_a_frame_of_an_unknown_kind_is_refused(runner):
    peer = runner.peer()
    peer.send(3, b"", 99)
    number, kind, payload = peer.receive()
    assert (number, kind) == (3, REFUSED)
    assert "kind 99 is unknown" in json.loads(payload)["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The request body is empty; expected a JSON object"),
        (b"{", "The request body is not JSON: "),
        (b'{"instances": [1,]}', "The request body is not JSON: "),
        (b"\xff\xfe\xfa", "The request body is not JSON: "),
        (b"[" * 100_000, "The request body is n"),
        (b"[1]", "The request body is a list; expected"),
        (b'"x"', "The request body is a string; expected"),
        (b"{}", 'lacks the field "instances" (it has no field)'),
        (b'{"b": 1, "a": 2}', 'lacks the field "instances" (it has a, b)'),
        (b'{"instances": null}', 'The field "instances" must be a list, got null.'),
        (b'{"instances": {"a": 1}}', 'The field "instances" must be a list, got an object.'),
        (b'{"instances": true}', 'The field "instances" must be a list, got a boolean.'),
        (b'{"instances": []}', 'The field "instances" is empty'),
    ],
)
def test_a_malformed_body_is_refused_by_name(runner, body, words):
    kind, reply = runner.peer().ask(body)
    assert kind == REFUSED
    assert words in reply["error"]
    assert reply["error"].startswith("Invalid inputs: ")
    assert reply["error"].endswith(" (Error code: 1)")


def test_nan_comes_in_and_goes_out_as_pythons_json_writes_it(runner):
    peer = runner.peer()
    peer.send(1, b'{"instances": [{"value": NaN}, {"nan": 1}, {"value": "null"}]}')
    _, kind, payload = peer.receive()
    assert kind == PREDICTED
    rows = json.loads(payload)["predictions"]
    assert payload.count(b"NaN") == 2
    assert rows[2]["value"] == "null"


def test_what_arrives_while_a_batch_is_predicted_is_the_next_batch(runner, place):
    first, second = runner.peer(), runner.peer()
    hold(first, place)
    for number in range(1, 11):
        (first if number % 2 else second).send(number, instances({"value": number}))
    let_go(place)
    assert first.receive()[0] == 0
    replies = [first.receive() for _ in range(5)] + [second.receive() for _ in range(5)]
    for number, kind, payload in replies:
        (row,) = json.loads(payload)["predictions"]
        assert (kind, row["value"], row["batch"]) == (PREDICTED, number, 10)


def test_a_batch_is_closed_when_it_has_its_rows(place):
    runner = Runner(place, sys.executable, "anything", str(place / "toy.py"), "--max-rows", "4")
    try:
        peer = runner.peer()
        hold(peer, place)
        for number in range(1, 6):
            peer.send(number, instances({"value": 1}, {"value": 2}))
        let_go(place)
        peer.receive()
        sizes = [json.loads(peer.receive()[2])["predictions"][0]["batch"] for _ in range(5)]
        assert sizes == [2, 2, 2, 2, 1]
    finally:
        runner.close()


def test_a_bad_request_does_not_fail_its_neighbours(runner, place):
    peer = runner.peer()
    hold(peer, place)
    bodies = {n: instances({"value": n}) for n in range(1, 9)}
    bodies.update({3: instances({"explode": 1}), 4: b"{", 5: instances({"refuse": 1}), 6: instances({"odd": 1})})
    for number, body in bodies.items():
        peer.send(number, body)
    let_go(place)
    replies = {number: (kind, json.loads(body)) for number, kind, body in (peer.receive() for _ in range(9))}
    for number in (1, 2, 7, 8):
        assert replies[number][0] == PREDICTED
        assert replies[number][1]["predictions"][0]["value"] == number
    assert replies[3] == (
        FAILED,
        {"error": "Failed to run the provided model: RuntimeError: boom (Error code: 2)"},
    )
    assert replies[4][0] == REFUSED
    assert replies[5] == (REFUSED, {"error": "no thank you"})
    assert replies[6][0] == FAILED
    assert replies[6][1]["error"].startswith("There was a problem processing the outputs: ")
    assert replies[6][1]["error"].endswith(" (Error code: 3)")


def test_a_client_that_goes_away_in_the_middle_of_its_reply_disturbs_nobody(runner, place):
    leaver, stayer = runner.peer(), runner.peer()
    leaver.send(1, instances({"size": 20_000_000}))
    assert leaver.socket.recv(1000)
    hold(stayer, place)
    leaver.send(2, instances({"value": 1}))
    leaver.close()
    stayer.send(1, instances({"value": 1}))
    let_go(place)
    assert [stayer.receive()[:2] for _ in range(2)] == [(0, PREDICTED), (1, PREDICTED)]
    assert runner.peer().ask(instances({"value": 2}))[0] == PREDICTED


def test_a_slow_reader_gets_its_whole_reply_and_holds_up_nobody(runner):
    slow, quick = runner.peer(), runner.peer()
    slow.send(1, instances({"size": 30_000_000}))
    assert slow.socket.recv(1, socket.MSG_PEEK)
    assert quick.ask(instances({"value": 1}))[0] == PREDICTED
    number, kind, payload = slow.receive()
    assert (number, kind) == (1, PREDICTED)
    assert len(payload) > 30_000_000


def test_a_request_that_comes_in_pieces_is_put_together(runner):
    peer = runner.peer()
    payload = json.dumps(instances({"value": "x" * 3_000_000})).encode()
    frame = HEADER.pack(len(payload), 9, PREDICT) + payload
    for start, end in ((0, 5), (5, 14), (14, 1_000_000), (1_000_000, len(frame))):
        peer.socket.sendall(frame[start:end])
    assert peer.receive()[:2] == (9, PREDICTED)


def test_an_announced_frame_beyond_all_measure_ends_only_that_connection(runner):
    hostile, honest = runner.peer(), runner.peer()
    hostile.socket.sendall(HEADER.pack(0xFFFFFFFF, 1, PREDICT))
    with pytest.raises(EOFError):
        hostile.receive()
    assert honest.ask(instances({"value": 1}))[0] == PREDICTED


def test_two_hundred_requests_at_once_over_four_connections_each_get_their_own_answer(runner):
    peers = [runner.peer() for _ in range(4)]
    selector = selectors.DefaultSelector()
    for index, peer in enumerate(peers):
        selector.register(peer.socket, selectors.EVENT_READ, peer)
        for number in range(index, 200, 4):
            peer.send(number, instances({"value": f"v{number}"}, {"value": number}))
    answers = {}
    while len(answers) < 200:
        for key, _ in selector.select(60):
            number, kind, payload = key.data.receive()
            while True:
                answers[number] = (kind, [row["value"] for row in json.loads(payload)["predictions"]])
                if len(key.data.buffer) < HEADER.size:
                    break
                number, kind, payload = key.data.receive()
    selector.close()
    assert answers == {number: (PREDICTED, [f"v{number}", number]) for number in range(200)}


def test_sigterm_lets_it_finish_what_has_arrived(runner, place):
    first, second = runner.peer(), runner.peer()
    second.ask(instances({"value": 1}))
    hold(first, place, number=100)
    for number in range(20):
        (first if number % 2 else second).send(number, instances({"value": number}))
    runner.process.send_signal(signal.SIGTERM)
    let_go(place)
    numbers = {first.receive()[0] for _ in range(11)} | {second.receive()[0] for _ in range(10)}
    assert numbers == {100, *range(20)}
    with pytest.raises(EOFError):
        first.receive()
    assert runner.process.wait(timeout=30) == 0
    assert not runner.path.exists()


def test_sigterm_ends_an_idle_runner(runner):
    runner.process.send_signal(signal.SIGTERM)
    assert runner.process.wait(timeout=30) == 0


def test_it_ends_with_its_parent(place):
    code = "import subprocess, sys\nchild = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\n"
    code += "child.stdout.readline()\nprint('ready', flush=True)\nsys.stdin.read()\n"
    command = [sys.executable, str(RUNNERS / "serve.py"), "--socket", str(place / "s"), "--model", "m"]
    command += ["--framework", str(place / "toy.py")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        peer = Peer(place / "s")
        peer.send(1, b"", PING)
        assert peer.receive()[1] == PONG
        parent.kill()
        with pytest.raises(EOFError):
            peer.receive()
        peer.close()


def test_it_outlives_the_thread_that_started_it(place):
    started: list[Runner] = []
    thread = threading.Thread(target=lambda: started.append(Runner(place, sys.executable, "m", str(place / "toy.py"))))
    thread.start()
    thread.join()
    (runner,) = started
    try:
        for _ in range(3):
            assert runner.peer().ask(instances({"value": 1}))[0] == PREDICTED
    finally:
        runner.close()


@pytest.mark.parametrize(
    ("model", "detail"),
    [("broken", "RuntimeError: the weights are torn"), ("useless", "ValueError: it answers nothing")],
)
def test_an_unusable_model_ends_it_with_the_reason_as_the_last_line(place, model, detail):
    done = serve(place, model)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "Traceback" in done.stderr
    error = {"error": f"Failed to load model: {detail} (Error code: 0)"}
    assert json.loads(done.stderr.splitlines()[-1]) == error


def test_a_check_prints_the_ready_line_and_ends(place):
    done = serve(place, "untried", "--check")
    assert done.returncode == 0
    assert json.loads(done.stdout)["ready"]["remark"] == "not tried"
    assert not (place / "s").exists()


@pytest.mark.parametrize(
    ("body", "code", "payload"),
    [
        (b'{"instances": [{"value": 5}], "x": 1}', 0, {"predictions": [{"value": 5, "batch": 1, "options": {"x": 1}}]}),
        (b"quickly", 0, {"predictions": [{"value": "read quickly", "batch": 1, "options": {}}]}),
        (b'{"instances": [{"refuse": 1}]}', 5, {"error": "no thank you"}),
        (b"", 5, {"error": "Invalid inputs: The request body is empty; expected"}),
        (b'{"instances": [{"explode": 1}]}', 6, {"error": "Failed to run the provided model: RuntimeError: boom"}),
        (b'{"instances": [{"odd": 1}]}', 6, {"error": "There was a problem processing the outputs"}),
    ],
)
def test_one_request_is_answered_from_stdin_to_stdout(place, body, code, payload):
    done = serve(place, "m", "--once", input=body.decode())
    assert done.returncode == code
    told = json.loads(done.stdout)
    if "error" in payload:
        assert told.keys() == {"error"}
        assert told["error"].startswith(payload["error"])
    else:
        assert told == payload
    assert "this must not reach the ready line" in done.stderr
    assert not (place / "s").exists()


def test_an_unusable_model_answers_no_request(place):
    done = serve(place, "broken", "--once", input="{}")
    assert (done.returncode, done.stdout) == (3, "")
    assert "the weights are torn" in json.loads(done.stderr.splitlines()[-1])["error"]


def test_a_stale_socket_is_replaced_and_any_other_file_is_left_alone(place):
    (place / "s").write_text("precious")
    done = serve(place, "m")
    assert done.returncode == 4
    assert "Cannot listen on" in json.loads(done.stderr.splitlines()[-1])["error"]
    assert (place / "s").read_text() == "precious"
    (place / "s").unlink()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(place / "s"))
    stale.close()
    runner = Runner(place, sys.executable, "m", str(place / "toy.py"))
    try:
        assert runner.peer().ask(instances({"value": 1}))[0] == PREDICTED
    finally:
        runner.close()


def serve(place: Path, model: str, *options: str, input: str = "") -> subprocess.CompletedProcess[str]:
    """Run serve.py to its end."""
    command = [sys.executable, str(RUNNERS / "serve.py"), "--socket", str(place / "s"), "--model", model]
    command += ["--framework", str(place / "toy.py"), *options]
    return subprocess.run(command, input=input, capture_output=True, text=True, timeout=60)
