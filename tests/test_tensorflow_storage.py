"""TensorFlow's own gs:// file system through `taxiway run`: what it says, and what the server then holds."""

from __future__ import annotations

import json
import re
import uuid
from urllib.parse import quote

import conftest
import pytest

pytestmark = pytest.mark.runtime

# One process for all of it: to import TensorFlow costs seconds. Each step prints one line of JSON.
STEPS = r"""
import json, os, sys
os.environ.update(TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="")
import tensorflow as tf
gfile, top = tf.io.gfile, sys.argv[1]

def told(step, *values):
    print(json.dumps([step, *values]), flush=True)

def write(name, data, mode="w"):
    with gfile.GFile(f"{top}/{name}", mode) as file:
        file.write(data)

def read(name, mode="r"):
    with gfile.GFile(f"{top}/{name}", mode) as file:
        return file.read()

write("files/one.txt", "one\ntwo\n")
write("files/empty.txt", "")
write("files/ünï code+%2F.txt", "odd")
big = os.urandom(5_000_000)
write("files/big.bin", big, "wb")
told("write", *(read(f"files/{name}") for name in ("one.txt", "empty.txt", "ünï code+%2F.txt")))
told("large", read("files/big.bin", "rb") == big)

write("files/one.txt", "three\n", "a")
told("append", read("files/one.txt"))

with gfile.GFile(f"{top}/files/one.txt") as file:
    file.seek(4)
    rest = file.read(3)
    lines = list(file)
told("seek and iterate", rest, lines)

for name in ("tree/a.csv", "tree/b.csv", "tree/c/d.csv"):
    write(name, name)
told("glob", sorted(gfile.glob(f"{top}/tree/*.csv")))
told("listdir", sorted(gfile.listdir(f"{top}/tree")))
told("walk", sorted((at, sorted(below), sorted(names)) for at, below, names in gfile.walk(f"{top}/tree")))
stat = gfile.stat(f"{top}/tree/a.csv")
told("stat", stat.length, stat.is_directory, gfile.stat(f"{top}/tree").is_directory, stat.mtime_nsec > 1e18)
told("exists", gfile.exists(f"{top}/tree/a.csv"), gfile.exists(f"{top}/none"), gfile.isdir(f"{top}/tree/c"))
try:
    read("none")
except tf.errors.NotFoundError:
    told("missing", True)

gfile.copy(f"{top}/tree/a.csv", f"{top}/tree/copy.csv")
try:
    gfile.copy(f"{top}/tree/a.csv", f"{top}/tree/copy.csv")
except tf.errors.AlreadyExistsError:
    gfile.copy(f"{top}/tree/b.csv", f"{top}/tree/copy.csv", overwrite=True)
told("copy", read("tree/copy.csv"))

gfile.rename(f"{top}/tree/copy.csv", f"{top}/moved/renamed.csv")
write("folder/x/1", "1")
write("folder/y", "2")
gfile.rename(f"{top}/folder", f"{top}/folder2")
told("rename", gfile.exists(f"{top}/tree/copy.csv"), read("moved/renamed.csv"), sorted(gfile.listdir(f"{top}/folder2")))

gfile.makedirs(f"{top}/made/deep")
told("makedirs", gfile.isdir(f"{top}/made/deep"))
gfile.remove(f"{top}/tree/b.csv")
gfile.rmtree(f"{top}/tree/c")
told("remove", sorted(gfile.listdir(f"{top}/tree")))

lines = tf.data.TextLineDataset(gfile.glob(f"{top}/files/one*"))
told("TextLineDataset", [line.numpy().decode() for line in lines])

with tf.io.TFRecordWriter(f"{top}/records.tfrecord") as records:
    for number in range(1000):
        records.write(b"%d" % number * 20)
told("TFRecord", [len(record.numpy()) for record in tf.data.TFRecordDataset(f"{top}/records.tfrecord")] ==
     [len(b"%d" % number * 20) for number in range(1000)])

with tf.summary.create_file_writer(f"{top}/summaries").as_default() as writer:
    for step in range(3):
        tf.summary.scalar("loss", 1.0 / (step + 1), step=step)
        writer.flush()
(events,) = gfile.glob(f"{top}/summaries/events*")
seen = [value.tag for event in tf.compat.v1.train.summary_iterator(events) for value in event.summary.value]
told("tf.summary", seen)

class Doubler(tf.Module):
    def __init__(self):
        self.factor = tf.Variable(2.0)
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def __call__(self, x):
        return x * self.factor

doubler = Doubler()
tf.saved_model.save(doubler, f"{top}/saved")
told("SavedModel", tf.saved_model.load(f"{top}/saved")(tf.constant([1.0, 2.5])).numpy().tolist())

manager = tf.train.CheckpointManager(tf.train.Checkpoint(model=doubler), f"{top}/checkpoints", max_to_keep=2)
for step in range(4):
    doubler.factor.assign(float(step))
    manager.save(checkpoint_number=step)
doubler.factor.assign(99.0)
tf.train.Checkpoint(model=doubler).restore(tf.train.latest_checkpoint(f"{top}/checkpoints")).assert_consumed()
told("CheckpointManager", doubler.factor.numpy().item(), sorted(gfile.listdir(f"{top}/checkpoints")))

model = tf.keras.Sequential([tf.keras.Input([1]), tf.keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(tf.constant([[1.0], [2.0]]), tf.constant([[2.0], [4.0]]), epochs=2, verbose=0,
          callbacks=[tf.keras.callbacks.TensorBoard(f"{top}/keras", write_graph=False)])
model.export(f"{top}/exported", verbose=False)
exported = tf.saved_model.load(f"{top}/exported")
told("Keras", exported.serve(tf.constant([[3.0]])).shape.as_list())
"""


@pytest.fixture(scope="module")
def ran(server, runtime_python, tmp_path_factory):
    """(the bucket, what each step said)."""
    bucket = f"tensorflow-{uuid.uuid4().hex[:10]}"
    made = server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": bucket})
    assert made.status_code == 200, made.text
    script = tmp_path_factory.mktemp("tensorflow") / "steps.py"
    script.write_text(STEPS)
    ended = conftest.run_cli(server, "run", "--", str(runtime_python), str(script), f"gs://{bucket}/top")
    assert ended.returncode == 0, ended.stderr[-4000:]
    return bucket, {step: values for step, *values in map(json.loads, ended.stdout.splitlines())}


@pytest.fixture
def held(server, ran):
    """What the server holds: name -> size, and a reader of one object's bytes."""
    bucket, _ = ran
    listed = server.call("GET", f"/storage/v1/b/{bucket}/o?prefix=top/&fields=items(name,size)").json()["items"]

    def read(name):
        path = f"/storage/v1/b/{bucket}/o/{quote(f'top/{name}', safe='')}"
        return server.call("GET", path, params={"alt": "media"}).content

    return {each["name"].removeprefix("top/"): int(each["size"]) for each in listed}, read


def test_files_are_written_read_and_appended_to(ran, held):
    (_, said), (sizes, read) = ran, held
    assert said["write"] == ["one\ntwo\n", "", "odd"]
    assert said["large"] == [True]
    assert said["append"] == ["one\ntwo\nthree\n"]
    assert said["seek and iterate"] == ["two", ["\n", "three\n"]]
    assert read("files/one.txt") == b"one\ntwo\nthree\n"
    assert (sizes["files/big.bin"], sizes["files/empty.txt"], sizes["files/ünï code+%2F.txt"]) == (5_000_000, 0, 3)


def test_folders_are_listed_walked_and_asked_about(ran):
    bucket, said = ran
    top = f"gs://{bucket}/top/tree"
    assert said["glob"] == [[f"{top}/a.csv", f"{top}/b.csv"]]
    assert said["listdir"] == [["a.csv", "b.csv", "c/"]]
    walked = [[at.rstrip("/"), [each.rstrip("/") for each in below], names] for at, below, names in said["walk"][0]]
    assert walked == [[top, ["c"], ["a.csv", "b.csv"]], [f"{top}/c", [], ["d.csv"]]]
    assert said["stat"] == [10, False, True, True]
    assert said["exists"] == [True, False, True]
    assert said["missing"] == [True]


def test_objects_are_copied_renamed_and_removed(ran, held):
    (_, said), (sizes, read) = ran, held
    assert said["copy"] == ["tree/b.csv"]
    assert said["rename"] == [False, "tree/b.csv", ["x/", "y"]]
    assert read("folder2/x/1") == b"1"
    assert not [name for name in sizes if name.startswith("folder/")]
    assert said["makedirs"] == [True]
    assert said["remove"] == [["a.csv"]]
    assert [name for name in sizes if name.startswith("tree/") and not name.endswith("/")] == ["tree/a.csv"]


def test_datasets_and_records_are_read(ran, held):
    (_, said), (sizes, _) = ran, held
    assert said["TextLineDataset"] == [["one", "two", "three"]]
    assert said["TFRecord"] == [True]
    assert sizes["records.tfrecord"] == sum(16 + 20 * len(str(number)) for number in range(1000))


def test_summaries_models_and_checkpoints_are_there(ran, held):
    (_, said), (sizes, read) = ran, held
    assert said["tf.summary"] == [["loss"] * 3]
    assert any(re.match(r"summaries/events\.out\.tfevents\.", name) for name in sizes)
    assert said["SavedModel"] == [[2.0, 5.0]]
    assert {"saved/saved_model.pb", "saved/variables/variables.index"} <= set(sizes)
    assert said["CheckpointManager"][0] == 3.0
    kept = {name.partition("/")[2].partition(".")[0] for name in sizes if name.startswith("checkpoints/ckpt")}
    assert kept == {"ckpt-2", "ckpt-3"}
    assert b'model_checkpoint_path: "ckpt-3"' in read("checkpoints/checkpoint")
    assert said["Keras"] == [[1, 1]]
    assert any(re.match(r"keras/train/events\.out\.tfevents\.", name) for name in sizes)
    assert "exported/saved_model.pb" in sizes
