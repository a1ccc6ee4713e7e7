"""TensorFlow 1 on a TensorFlow 2: with this folder on PYTHONPATH ``import tensorflow`` gives tensorflow.compat.v1.

Python imports this file by its name when it starts, before the user's code, and in every Python that it starts. The
module stays the real one with all its submodules: it takes the names of compat.v1 over its own, and the behaviour of
TensorFlow 2 (eager execution first) is switched off. What TensorFlow 2 dropped (tf.contrib) stays missing, and whoever
asks for it is told so. A TensorFlow 1 is left as it is, and who imports no TensorFlow notices nothing.
"""

import importlib
import importlib.util
import os
import sys


class Finder:
    """Lets the real TensorFlow be found, once, and changes what it does when it is loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                become_one(module)

            spec.loader.exec_module = exec_module
        return spec


def become_one(tensorflow):
    """Give a TensorFlow 2 the names and the behaviour of TensorFlow 1; a TensorFlow 1 is left as it is."""
    if tensorflow.__version__.startswith("1."):
        return
    v1 = importlib.import_module("tensorflow.compat.v1")
    v1.disable_v2_behavior()
    names = vars(tensorflow)
    names.update({name: value for name, value in vars(v1).items() if not name.startswith("_")})
    other = names.get("__getattr__")

    def missing(name):
        if name == "contrib":
            raise AttributeError(
                "tf.contrib is not there: this is TensorFlow %s in the place of a TensorFlow 1, and no TensorFlow 2 "
                "has it. Most of it lives on under other names (tf.estimator, tf.keras, tf.feature_column)."
                % names["__version__"]
            )
        if other is not None:
            return other(name)
        raise AttributeError("module 'tensorflow' has no attribute %r" % name)

    names["__getattr__"] = missing


def hand_on():
    """Import the sitecustomize that stands behind this one, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    path, sys.path = sys.path, [each for each in sys.path if os.path.abspath(each) != here]
    own = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ImportError:
        sys.modules["sitecustomize"] = own
    finally:
        sys.path = path


sys.meta_path.insert(0, Finder())
hand_on()
