"""Answer predictions for one loaded model over a unix socket.

    python serve.py --socket PATH --model DIR --framework tensorflow [--check]
    python serve.py --once --model DIR --framework tensorflow < request

A frame, both ways, is a header ``!IQB`` and a payload: the payload's length in bytes (uint32), the request's number
(uint64, chosen by the asking side and repeated in the reply), the kind (uint8).

    to the runner     1 predict    payload: the body of the HTTP request, as it came
                      2 ping       payload: empty
    from the runner   0 predicted  payload: {"predictions": [...]}
                      4 refused    payload: {"error": "..."}: the caller's fault
                      5 failed     payload: {"error": "..."}: the model's fault, or ours
                      2 pong       payload: empty

Any number of connections, each with any number of requests under way; replies may come in any order.

``--framework`` names ``<framework>_model.py`` beside this file, or is itself the path of a Python file. Such a file has
``load(folder)``, which raises if the model is unusable and otherwise gives an object with

    summary                  a dict for the ready line
    check()                  predicts for one made-up instance: raises if that fails, returns a remark or None
    predict_many(requests)   requests: a list of (instances: list, options: dict); returns, in the same order, a list of
                             (PREDICTED, predictions), (REFUSED, sentence) or (FAILED, sentence)
    read(body)               may be missing: a quicker reading of a request's body, into (instances, options) for its
                             own predict_many, or None for a body that it does not know: that is read as always

When it can serve it prints one line, ``{"ready": {...}}``, on stdout and nothing else there, ever. If the model is
unusable the last line on stderr is ``{"error": "Failed to load model: ... (Error code: 0)"}`` and the exit code is 3;
if the socket is, it is 4. SIGTERM, SIGINT and the end of the parent let it finish what has arrived; the exit code is 0.

With ``--once`` there is no socket and no ready line: the body of one request is read from stdin, and the payload of its
reply is all that is written to stdout. The exit code is 0 for predicted, 5 for refused, 6 for failed.

NaN and infinities are written as ``NaN`` and ``Infinity``, as Python's json writes and reads them: JSON has no word.
"""

# ruff: noqa: B905  (zip() has no strict= before Python 3.10)

import argparse
import collections
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import stat
import struct
import sys
import time
import traceback
import types

HEADER = struct.Struct("!IQB")

PREDICT, PING = 1, 2
PREDICTED, PONG, REFUSED, FAILED = 0, 2, 4, 5

MAX_ROWS = 4096  # a batch is closed once it holds this many instances
MAX_PAYLOAD = 1 << 30  # bytes; a longer frame is a broken or hostile peer, and cannot be skipped
MAX_UNREAD = 64 << 20  # bytes of replies that a slow reader may leave with us before we stop reading from it
READ_SIZE = 1 << 18  # bytes asked of the kernel at once
READ_SHARE = 16 << 20  # bytes taken from one connection before the others have their turn
PARENT_CHECK = 5.0  # seconds; where the kernel cannot tell us that our parent died, we look this often
DRAIN = 10.0  # seconds that slow readers have to take their last replies

EXIT_MODEL, EXIT_SOCKET, EXIT_REFUSED, EXIT_FAILED = 3, 4, 5, 6


def main():
    parent = os.getppid()
    arguments = parse_arguments()
    stop_importing_from_this_folder()
    FAST["loads"], FAST["dumps"] = fast_json()
    ready_line = keep_stdout_for_ourselves()
    parent = arguments.parent or parent
    die_with(parent)
    model, ready = load_and_check(arguments.framework, arguments.model)
    if arguments.check:
        say(ready_line, ready)
        leave(0)
    if arguments.once:
        answer_once(model, ready_line)
    try:
        listener = listen(arguments.socket)
    except OSError as error:
        give_up(EXIT_SOCKET, "Cannot listen on {}: {}".format(arguments.socket, error))
    server = Server(listener, model, arguments.max_rows, parent)
    signal.signal(signal.SIGTERM, server.stop)
    signal.signal(signal.SIGINT, server.stop)
    say(ready_line, ready)
    server.run()
    remove_socket(arguments.socket)
    leave(0)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Answer predictions for one model over a unix socket.")
    parser.add_argument("--socket", help="path of the unix socket to make (needed unless --check or --once)")
    parser.add_argument("--model", required=True, help="folder that holds the model")
    parser.add_argument(
        "--framework", required=True, help="tensorflow, scikit_learn, xgboost, or the path of a Python file"
    )
    parser.add_argument("--check", action="store_true", help="load, predict one made-up instance, print, exit")
    parser.add_argument("--once", action="store_true", help="load, answer the one request on stdin, exit")
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS, help="instances in a batch; 1 never merges requests")
    parser.add_argument("--parent", type=int, help="process whose end ends this one (default: whoever started it)")
    arguments = parser.parse_args()
    if not (arguments.check or arguments.once or arguments.socket):
        parser.error("--socket PATH is needed unless --check or --once is given")
    return arguments


def stop_importing_from_this_folder():
    """A script's folder comes first on sys.path; a file of ours must never stand in for a module of the user's."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.getcwd()) != here]


def keep_stdout_for_ourselves():
    """Send whatever the model's code prints to stderr, and return the real stdout's descriptor."""
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # one buffer for both: what was printed first stands first
    return kept


def say(descriptor, message):
    os.write(descriptor, (json.dumps(message) + "\n").encode("utf-8"))


def die_with(parent):
    """Ask the kernel to tell us when our parent ends; where it cannot, Server looks now and then.

    The kernel also calls when only the *thread* that started us has ended, so the signal is not SIGTERM but one whose
    handler looks whether the process is still there.
    """

    def look(signal_number, frame):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, look)
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGUSR1), 0, 0, 0)  # 1 is PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass
    look(signal.SIGUSR1, None)


def load_and_check(framework, folder):
    """Load the model, predict one made-up instance; returns the model and the ready line, or ends the process."""
    began = time.time()
    try:
        model = framework_file(framework).load(folder)
        remark = model.check()
    except (Exception, SystemExit) as error:  # noqa: BLE001  an edge: user code may raise anything, and its owner must see what
        detail = str(error) if getattr(error, "is_a_sentence", False) else "{}: {}".format(type(error).__name__, error)
        give_up(EXIT_MODEL, "Failed to load model: {} (Error code: 0)".format(detail))
    gc.collect()
    gc.set_threshold(
        50000, 20, 50
    )  # a thousand instances are thousands of dicts, none of them garbage that needs a search
    if hasattr(gc, "freeze"):
        gc.freeze()  # a full collection over a framework's heap would hold up a prediction for tens of milliseconds
    ready = dict(model.summary, pid=os.getpid(), seconds=round(time.time() - began, 3))
    if remark:
        ready["remark"] = remark
    return model, {"ready": ready}


def answer_once(model, descriptor):
    """Answer the request on stdin as the loop would, and end the process with the outcome's exit code."""
    try:
        requests = [understood(getattr(model, "read", None), sys.stdin.buffer.read())]
    except Malformed as error:
        kind, payload = write_reply(REFUSED, MALFORMED.format(error))
    else:
        kind, payload = write_reply(*predict_each(model, requests)[0])
    with open(descriptor, "wb") as output:
        output.write(payload)
    leave({PREDICTED: 0, REFUSED: EXIT_REFUSED}.get(kind, EXIT_FAILED))


def framework_file(framework):
    """Import the framework's file, so that sys.path stays the user's.

    Ours come as modules of a package that stands for this folder, and so find each other by a name that nobody has.
    """
    if not framework.endswith(".py"):
        package = types.ModuleType("taxiway_runners")
        package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
        sys.modules["taxiway_runners"] = package
        return importlib.import_module("taxiway_runners.{}_model".format(framework))
    spec = importlib.util.spec_from_file_location("taxiway_framework", framework)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def give_up(code, sentence):
    """Print the traceback and, as the last line, the sentence that the model's owner gets to read."""
    traceback.print_exc()
    print(json.dumps({"error": sentence}), file=sys.stderr)
    leave(code)


def leave(code):
    """End at once: a framework's own teardown takes seconds and may print behind our last line."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def listen(path):
    """Make the unix socket, for its owner alone. A stale one is replaced; any other file is left alone."""
    remove_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(128)
    listener.setblocking(False)
    return listener


def remove_socket(path):
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass


class Connection:
    """One peer: what it has sent and we have not read, what we have answered and it has not taken."""

    def __init__(self, peer):
        self.peer = peer
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.events = selectors.EVENT_READ
        self.gone = False


class Server:
    """One thread. Whatever has arrived while the last batch was predicted is the next batch, so no timer is needed."""

    def __init__(self, listener, model, max_rows, parent):
        self.listener = listener
        self.model = model
        self.read_quickly = getattr(model, "read", None)
        self.max_rows = max_rows
        self.parent = parent
        self.waiting = collections.deque()  # (connection, request number, body)
        self.connections = set()
        self.stopping = False
        self.scratch = memoryview(bytearray(READ_SIZE))
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.wake, bell = socket.socketpair()  # a signal that comes just before select() must still end it
        self.wake.setblocking(False)
        bell.setblocking(False)
        self.bell = bell
        self.selector.register(self.wake, selectors.EVENT_READ)
        signal.set_wakeup_fd(bell.fileno())

    def stop(self, signal_number=None, frame=None):
        """Finish what has arrived, then let run() return."""
        self.stopping = True

    def run(self):
        while not self.stopping:
            self.attend(0 if self.waiting else PARENT_CHECK)
            self.answer_a_batch()
            if os.getppid() != self.parent:
                self.stop()
        self.drain()

    def attend(self, timeout):
        """Accept, read and write whatever is possible now; wait up to `timeout` seconds for the first such thing."""
        for key, events in self.selector.select(timeout):
            connection = key.data
            if key.fileobj is self.listener:
                self.accept()
            elif connection is None:
                self.hear_the_bell()
            else:
                if events & selectors.EVENT_READ:
                    self.receive(connection)
                if events & selectors.EVENT_WRITE and not connection.gone:
                    self.send(connection)

    def drain(self):
        """Answer all that had reached us, and give slow readers a while to take it."""
        self.selector.unregister(self.listener)
        self.listener.close()
        for connection in list(self.connections):
            self.receive(connection)
        while self.waiting:
            self.answer_a_batch()
        deadline = time.time() + DRAIN
        while any(connection.outgoing for connection in self.connections) and time.time() < deadline:
            self.attend(0.1)
        for connection in list(self.connections):
            self.drop(connection)

    def hear_the_bell(self):
        try:
            self.wake.recv(4096)
        except BlockingIOError:
            pass

    def accept(self):
        try:
            peer, _ = self.listener.accept()
        except OSError:  # it went away before we looked, or we are out of descriptors: the others go on
            return
        peer.setblocking(False)
        connection = Connection(peer)
        self.connections.add(connection)
        self.selector.register(peer, selectors.EVENT_READ, connection)

    def receive(self, connection):
        """Read what has arrived, up to a fair share, and queue every frame that is complete."""
        share = READ_SHARE
        while share > 0:
            try:
                size = connection.peer.recv_into(self.scratch)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                size = 0
            if not size:
                self.drop(connection)
                return
            connection.incoming += self.scratch[:size]
            share -= size
            if size < READ_SIZE:
                break
        self.take_frames(connection)

    def take_frames(self, connection):
        buffer = connection.incoming
        start = 0
        while len(buffer) - start >= HEADER.size:
            length, number, kind = HEADER.unpack_from(buffer, start)
            if length > MAX_PAYLOAD:
                print("A peer announced a frame of {} bytes and was cut off.".format(length), file=sys.stderr)
                self.drop(connection)
                return
            body = start + HEADER.size
            if len(buffer) < body + length:
                break
            with memoryview(buffer) as view:
                payload = bytes(view[body : body + length])
            self.take(connection, number, kind, payload)
            start = body + length
        if start:
            del buffer[:start]
        if connection.outgoing:
            self.send(connection)

    def take(self, connection, number, kind, payload):
        if kind == PREDICT:
            self.waiting.append((connection, number, payload))
        elif kind == PING:
            connection.outgoing += HEADER.pack(0, number, PONG)
        else:
            sentence = "A frame of kind {} is unknown: send 1 (predict) or 2 (ping).".format(kind)
            self.reply(connection, number, REFUSED, sentence)

    def answer_a_batch(self):
        """Predict for the oldest requests, up to max_rows instances of them, and send the replies."""
        asking, requests, rows = [], [], 0
        answered = set()
        while self.waiting and rows < self.max_rows:
            connection, number, body = self.waiting.popleft()
            if connection.gone:
                continue
            try:
                request = understood(self.read_quickly, body)
            except Malformed as error:
                self.reply(connection, number, REFUSED, MALFORMED.format(error))
                answered.add(connection)
                continue
            asking.append((connection, number))
            requests.append(request)
            rows += len(request[0])
        for (connection, number), (kind, value) in zip(asking, predict_each(self.model, requests)):
            self.reply(connection, number, kind, value)
            answered.add(connection)
        for connection in answered:
            self.send(connection)

    def reply(self, connection, number, kind, value):
        kind, payload = write_reply(kind, value)
        connection.outgoing += HEADER.pack(len(payload), number, kind)
        connection.outgoing += payload

    def send(self, connection):
        """Write as much as the peer takes; a peer that has gone is forgotten, and nobody else notices."""
        if connection.gone:
            return
        try:
            while connection.outgoing:
                sent = connection.peer.send(connection.outgoing)
                del connection.outgoing[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.drop(connection)
            return
        self.watch(connection)

    def watch(self, connection):
        events = selectors.EVENT_WRITE if connection.outgoing else 0
        if len(connection.outgoing) <= MAX_UNREAD:
            events |= selectors.EVENT_READ
        if events != connection.events:
            connection.events = events
            self.selector.modify(connection.peer, events, connection)

    def drop(self, connection):
        if connection.gone:
            return
        connection.gone = True
        self.connections.discard(connection)
        self.selector.unregister(connection.peer)
        connection.peer.close()


class Malformed(Exception):
    """A request's body is not {"instances": [...]}."""


MALFORMED = "Invalid inputs: {} (Error code: 1)"


def understood(read_quickly, body):
    """(instances, options) of a request's body: by the model's own quick reader, if it has one and knows the body."""
    return (read_quickly and read_quickly(body)) or read_request(body)


def read_request(body):
    """Return (instances, every other field) of a request's body. Raises Malformed with the fault."""
    example = 'expected a JSON object like {"instances": [...]}'
    if not body.strip():
        raise Malformed("The request body is empty; {}.".format(example))
    try:
        request = read_json(body)
    except RecursionError:
        raise Malformed("The request body is nested too deeply.") from None
    except ValueError as error:
        raise Malformed("The request body is not JSON: {}.".format(error)) from None
    if not isinstance(request, dict):
        raise Malformed("The request body is {}; {}.".format(json_kind(request), example))
    if "instances" not in request:
        fields = ", ".join(sorted(request)) or "no field"
        raise Malformed('The request body lacks the field "instances" (it has {}); {}.'.format(fields, example))
    instances = request.pop("instances")
    if not isinstance(instances, list):
        raise Malformed('The field "instances" must be a list, got {}.'.format(json_kind(instances)))
    if not instances:
        raise Malformed('The field "instances" is empty: send at least one instance.')
    return instances, request


def json_kind(value):
    if isinstance(value, bool):
        return "a boolean"
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def predict_each(model, requests):
    """One outcome for each request; if the batch fails, each is tried alone, so none fails for its neighbour."""
    if not requests:
        return []
    try:
        return model.predict_many(requests)
    except Exception as error:  # noqa: BLE001  an edge: a model may raise anything, and the server must live on
        traceback.print_exc()
        if len(requests) > 1:
            return [predict_each(model, [request])[0] for request in requests]
        detail = "{}: {}".format(type(error).__name__, error)
        return [(FAILED, "Failed to run the provided model: {} (Error code: 2)".format(detail))]


def write_reply(kind, value):
    """Return the reply's kind and payload; predictions that JSON cannot hold make it a failure that says so."""
    if kind != PREDICTED:
        return kind, json.dumps({"error": value}).encode("ascii")
    try:
        return kind, write_json({"predictions": value})
    except (TypeError, ValueError, RecursionError) as error:
        sentence = "There was a problem processing the outputs: {} (Error code: 3)".format(error)
        return FAILED, json.dumps({"error": sentence}).encode("ascii")


def fast_json():
    """The quickest JSON in the user's environment as (loads, dumps) over bytes, or (None, None)."""
    try:
        orjson = importlib.import_module("orjson")
        return orjson.loads, orjson.dumps
    except ImportError:
        pass
    try:
        msgspec = importlib.import_module("msgspec")
        return msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    except (ImportError, AttributeError):
        return None, None


FAST = {"loads": None, "dumps": None}  # filled by main(), once sys.path is the user's


def read_json(body):
    if FAST["loads"] is not None:
        try:
            return FAST["loads"](body)
        except ValueError:  # also what json accepts and they do not: NaN, a byte order mark, UTF-16
            pass
    return json.loads(body)


def write_json(message):
    if FAST["dumps"] is not None:
        try:
            payload = FAST["dumps"](message)
        except (TypeError, ValueError):
            pass
        else:
            if b"null" not in payload:  # they write null where Python's json writes NaN
                return payload
    return json.dumps(message, separators=(",", ":")).encode("ascii")


if __name__ == "__main__":
    main()
