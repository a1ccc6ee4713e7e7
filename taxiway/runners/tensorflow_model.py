"""A TensorFlow SavedModel: load(folder) gives a model that answers as Cloud ML Engine's online prediction did.

Every fault is a sentence ``<message>: <detail> (Error code: N)`` with the messages and numbers of the service: 0 the
model cannot be loaded, 1 invalid inputs, 2 the run failed, 3 invalid outputs. The words that old clients look for are
kept; where the service said nothing helpful (a string for a float came back as a failed run, a wrong shape as a dump of
the feed) the input is named.
"""

# ruff: noqa: B905  (zip() has no strict= before Python 3.10)

import itertools
import os
import traceback
import typing

# Set before TensorFlow is imported: its notes about the processor would bury a model's own words.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # other models may live on the same one

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from taxiway_runners import savedmodel  # noqa: E402
from taxiway_runners.columns import Refused, decode_base64  # noqa: E402
from taxiway_runners.savedmodel import Unloadable  # noqa: E402
from taxiway_runners.signatures import FAILED, PREDICTED, REFUSALS, REFUSED, Table  # noqa: E402

try:
    import msgspec
except ImportError:
    msgspec = None

INVALID_INPUTS = "Invalid inputs: {} (Error code: 1)"
FAILED_TO_RUN = "Failed to run the provided model: Exception during running the graph: {} (Error code: 2)"
INVALID_OUTPUTS = "There was a problem processing the outputs: {} (Error code: 3)"

DEFAULT_SIGNATURE = "serving_default"


def load(folder):
    """Load the SavedModel in `folder` and return it as a Model. Raises Unloadable with the reason."""
    return Model(savedmodel.load(folder))


class Model:
    """A loaded SavedModel and its signatures, {name: Signature}."""

    def __init__(self, signatures):
        self.signatures = signatures
        self.only = next(iter(signatures)) if len(signatures) == 1 else None
        self.default = self.only or (DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else None)
        self.decode = quick_decoder(signatures[self.default]) if self.default else None

    @property
    def summary(self):
        described = {name: signature.describe() for name, signature in sorted(self.signatures.items())}
        forms = {name: signature.form.kind for name, signature in sorted(self.signatures.items())}
        return {
            "framework": "tensorflow",
            "version": tf.__version__,
            "default": self.default,
            "signatures": described,
            "forms": forms,
        }

    def check(self):
        """Predict for one instance of zeros and empty strings, default signature. Raises Unloadable if that fails.

        A signature that takes strings often parses them (an image, a tf.Example), so an empty one may rightly be
        refused: then the remark that is returned says that the model was loaded but not tried.
        """
        name = self.default
        if name is None:
            return "not tried: without a signature serving_default each request must name one with signature_name"
        signature = self.signatures[name]
        work = Work(signature, signature.made_up_columns(), 1)
        kind, value = predict_alone(work)
        if kind == REFUSED and signature.takes_strings:
            return "not tried: it does not take empty strings"
        if kind != PREDICTED:
            reason = value.rpartition(" (Error code")[0]
            raise Unloadable("It cannot predict for an instance of zeros with signature {}. {}".format(name, reason))
        return None

    def read(self, body):
        """(instances, options) of a request's body, at half of JSON's cost, or None if it needs a closer look."""
        if self.decode is None:
            return None
        try:
            request = self.decode(body)
        except (ValueError, msgspec.MsgspecError):  # whatever it is, the careful reader takes it or says what is wrong
            return None
        if not request.instances or (request.signature_name and request.signature_name != self.default):
            return None
        columns = zip(*map(msgspec.structs.astuple, request.instances))
        return Table(len(request.instances), dict(zip(self.signatures[self.default].inputs, columns))), {}

    def predict_many(self, requests):
        """Predict for requests [(instances, options)]: each is checked alone, then those of one shape share a run.

        Returns [(PREDICTED, [one dict for each row]) | (REFUSED | FAILED, sentence)] in the order of the requests. Rows
        are dicts of the signature's outputs, also when it has only one (gcloud's `local predict` prints them so).
        """
        outcomes = [self.prepare(instances, options) for instances, options in requests]
        alike = {}
        for index, work in enumerate(outcomes):
            if isinstance(work, Work):
                alike.setdefault(work.likeness(index), []).append((index, work))
        for group in alike.values():
            answers = predict_together([work for _, work in group])
            for (index, _), answer in zip(group, answers):
                outcomes[index] = answer
        return outcomes

    def prepare(self, instances, options):
        """The Work of one request, or the outcome that refuses it."""
        try:
            signature = self.signature(options.get("signature_name"))
            if signature.takes_strings:
                instances = [decode_base64(instance) for instance in instances]
            return Work(signature, signature.columns(instances), len(instances))
        except Refused as refused:
            return REFUSED, INVALID_INPUTS.format(refused)

    def signature(self, name):
        """The signature of that name; without one the only signature, else serving_default."""
        if name is not None and not isinstance(name, str):
            raise Refused("The field signature_name must be a string, got {!r}.".format(name))
        if not name and self.only:
            name = self.only
        found = self.signatures.get(name or DEFAULT_SIGNATURE)
        if found is None:
            raise Refused("No signature found for signature key {}.".format(name))
        return found


def quick_decoder(signature):
    """A function from a request's body to .instances and .signature_name, or None.

    The instances are Structs of one field for each input. It raises an error of msgspec's for everything that is not
    plain floats under exactly the inputs' names. None: msgspec is missing, or an input is not made of floats.
    """
    kinds = {1: float, 2: typing.List[float]}
    fields, names = [], {}
    for number, given in enumerate(signature.inputs.values()):
        if not (given.dtype.is_floating and given.shape and len(given.shape) in kinds):
            return None
        field = "input_{}".format(number)
        fields.append((field, kinds[len(given.shape)]))
        names[field] = given.name
    if not fields or not hasattr(msgspec, "structs"):  # it is missing, or old
        return None
    try:
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
        both = [("instances", typing.List[row]), ("signature_name", typing.Optional[str], None)]
        return msgspec.json.Decoder(msgspec.defstruct("Request", both, forbid_unknown_fields=True)).decode
    except (TypeError, ValueError):  # a name that it cannot take
        return None


class Work:
    """One request, ready to run: a signature, and an array with a row for each instance for each input that is fed."""

    def __init__(self, signature, columns, rows):
        self.signature = signature
        self.columns = columns  # {input's name: array}
        self.rows = rows

    def likeness(self, index):
        """Equal for requests that one run may answer together; the index keeps those apart that must run alone."""
        if not self.signature.row_by_row:
            return index
        return (id(self.signature),) + tuple([(name, column.shape[1:]) for name, column in self.columns.items()])


def predict_together(works):
    """One run for all the works, of one likeness; unless that comes out right each is tried alone."""
    if len(works) == 1:
        return [predict_alone(works[0])]
    signature = works[0].signature
    merged = {name: np.concatenate([work.columns[name] for work in works]) for name in works[0].columns}
    try:
        outputs = signature.run(merged)
        rows = signature.rows(outputs)
    except Exception:  # noqa: BLE001  an edge: each will tell its own reason below
        rows = None
    if rows is None or len(rows) != sum(work.rows for work in works):
        return [predict_alone(work) for work in works]
    answers = iter(rows)
    return [(PREDICTED, list(itertools.islice(answers, work.rows))) for work in works]


def predict_alone(work):
    try:
        outputs = work.signature.run(work.columns)
    except REFUSALS as error:
        return REFUSED, FAILED_TO_RUN.format(error.message)
    except Exception as error:  # noqa: BLE001  an edge: a graph may call anything
        traceback.print_exc()
        return FAILED, FAILED_TO_RUN.format(error)
    try:
        return PREDICTED, work.signature.rows(outputs)
    except (ValueError, TypeError) as error:
        return FAILED, INVALID_OUTPUTS.format(error)
