"""The taxi-fare trainer: task.py reads the command line, rides.py the files, and model.py learns from them.

replicas.py is for several that do so together.
"""

import contextlib
import os
import sys
import tempfile
import time

BEGAN = time.monotonic()  # the first line that says how fast it goes also says what came before


class BadInput(Exception):
    """The data, the output folder or the cluster cannot be used; the message says which, and what to try."""


@contextlib.contextmanager
def quiet():
    """Keeps what is written to stderr to itself, unless the block fails.

    TensorFlow greets whoever imports it with lines that no setting of its own turns off.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(stderr, said.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only: the training lines are what a person came to see
