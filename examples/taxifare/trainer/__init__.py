"""The taxi-fare trainer: task.py reads the command line, model.py is the model.

TensorFlow reads these two settings when it is first imported, so they stand here, before any module of the package.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only: the training lines are what a person came to see
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no gain on a network this small, and it announces itself twice
