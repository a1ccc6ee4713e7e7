"""A model that was written as one file of Python's own, by the names that the service knew; it answers row by row.

The instances are the rows: a list for each, in the order of the features that the model was trained with.
"""

# ruff: noqa: B905  (zip() has no strict= before Python 3.10)

import os
import traceback

import joblib
import numpy as np

PREDICTED, REFUSED, FAILED = 0, 4, 5
INVALID_INPUTS = "Invalid inputs: {} (Error code: 1)"
FAILED_TO_RUN = "Failed to run the provided model: {} (Error code: 2)"
INVALID_OUTPUTS = "There was a problem processing the outputs: {} (Error code: 3)"
PICKLES = ("model.joblib", "model.pkl")


class Unloadable(Exception):
    """Why a model cannot be loaded, as a whole sentence for the model's owner."""

    is_a_sentence = True


def sole_file(folder, names):
    """The path of the one file of these names in the folder. Raises Unloadable for none, and for several."""
    there = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    if len(there) == 1:
        return os.path.join(folder, there[0])
    if there:
        raise Unloadable("Multiple model files are found in the model's folder: {}.".format(", ".join(there)))
    raise Unloadable("There is no {} in the model's folder. Deploy the folder that has it.".format(" or ".join(names)))


def unpickled(path):
    """What joblib or pickle wrote. Raises Unloadable with the reason."""
    try:
        return joblib.load(path)
    except Exception as error:  # noqa: BLE001  an edge: a pickle may run anything
        traceback.print_exc()
        name = os.path.basename(path)
        advice = "It must be written by the releases of this runtime"
        raise Unloadable("{} cannot be read: {}: {}. {}.".format(name, type(error).__name__, error, advice)) from None


class Model:
    """A model by its `predict(instances)`, which answers with an array or a list that has a row for each."""

    def __init__(self, framework, version, predict, features):
        self.summary = {"framework": framework, "version": version, "default": None, "signatures": {}}
        self.predict = predict
        self.features = features  # how many a row has; None: nobody knows

    def check(self):
        """Predict for one row of zeros; what cannot take one (a pipeline for words, say) is only loaded, not tried."""
        if self.features is None:
            return "not tried: the model does not tell how many features it takes"
        kind, value = self.predict_alone([[0.0] * self.features])
        return None if kind == PREDICTED else "not tried: it does not take zeros. {}".format(value)

    def predict_many(self, requests):
        """One run for all the requests [(instances, options)]; unless that comes out right each is tried alone."""
        if len(requests) > 1:
            kind, rows = self.predict_alone([row for instances, _ in requests for row in instances])
            if kind == PREDICTED:
                answers = iter(rows)
                return [(PREDICTED, [next(answers) for _ in instances]) for instances, _ in requests]
        return [self.predict_alone(instances) for instances, _ in requests]

    def predict_alone(self, instances):
        """(PREDICTED, one value for each instance), or (REFUSED | FAILED, sentence)."""
        try:
            outputs = self.predict(instances)
        except (ValueError, TypeError, IndexError) as error:  # how these libraries say that the rows do not fit
            return REFUSED, INVALID_INPUTS.format(error)
        except Exception as error:  # noqa: BLE001  an edge: the model may call anything
            traceback.print_exc()
            return FAILED, FAILED_TO_RUN.format("{}: {}".format(type(error).__name__, error))
        rows = outputs.tolist() if isinstance(outputs, np.ndarray) else outputs
        if not isinstance(rows, list):
            return FAILED, INVALID_OUTPUTS.format("predict answered with a {}, no array or list".format(type(rows)))
        if len(rows) != len(instances):
            sizes = "{} rows came of {} instances".format(len(rows), len(instances))
            return FAILED, INVALID_OUTPUTS.format(sizes)
        return PREDICTED, rows
