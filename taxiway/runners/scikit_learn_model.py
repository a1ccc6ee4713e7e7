"""A scikit-learn model, from model.joblib or model.pkl: its `predict` gets the instances as they came."""

import sklearn
from taxiway_runners import pickles


def load(folder):
    """Load the model in `folder`. Raises Unloadable with the reason."""
    found = pickles.unpickled(pickles.sole_file(folder, pickles.PICKLES))
    if not callable(getattr(found, "predict", None)):
        raise pickles.Unloadable("What was pickled is a {}, which has no predict().".format(type(found).__name__))
    features = getattr(found, "n_features_in_", None)
    return pickles.Model("scikit_learn", sklearn.__version__, found.predict, features)
