"""Small SavedModels, built with a runtime's own interpreter: no TensorFlow is needed beside the tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

BUILD = '''
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

class Fare(tf.Module):
    """fare = 2.5 + per_mile * miles: two inputs, one output named "fare"."""
    def __init__(self, per_mile):
        super().__init__()
        self.per_mile = tf.Variable(float(per_mile))

    @tf.function(input_signature=[
        tf.TensorSpec([None], tf.float32, "miles"), tf.TensorSpec([None], tf.int64, "passengers")])
    def predict(self, miles, passengers):
        return {"fare": 2.5 + self.per_mile * miles + 0.0 * tf.cast(passengers, tf.float32)}

for place in sys.argv[1:]:
    folder, _, per_mile = place.partition("=")
    model = Fare(per_mile)
    tf.saved_model.save(model, folder, signatures=model.predict)
'''


def build(python: Path, models: dict[Path, float]) -> None:
    """A model for every folder, with its price of a mile."""
    ended = subprocess.run(
        [python, "-c", BUILD, *(f"{folder}={price}" for folder, price in models.items())],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def upload(call: Callable[..., object], folder: Path, bucket: str, prefix: str) -> str:
    """Put a folder's files into a bucket, through `call(method, path, **)`; answers the gs:// address."""
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = f"{prefix}/{path.relative_to(folder)}"
        put(call, bucket, name, path.read_bytes())
    return f"gs://{bucket}/{prefix}"


def put(call: Callable[..., object], bucket: str, name: str, content: bytes) -> None:
    answer = call(
        "POST", f"/upload/storage/v1/b/{bucket}/o", params={"uploadType": "media", "name": name}, content=content
    )
    assert answer.status_code == 200, answer.text  # type: ignore[attr-defined]


def fares(python: Path, base: Path) -> Path:
    """A folder with two models, `one` and `two`, named by their price of a mile; built once below `base`."""
    folder = base / "fares"
    if not folder.exists():
        build(python, {folder / "one": 1, folder / "two": 2})
    return folder
