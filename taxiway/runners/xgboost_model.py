"""An XGBoost model, from model.bst, or from model.joblib or model.pkl: a Booster, or one with scikit-learn's API."""

import numpy as np
import xgboost
from taxiway_runners import pickles


def load(folder):
    """Load the model in `folder`. Raises Unloadable with the reason."""
    path = pickles.sole_file(folder, pickles.PICKLES + ("model.bst",))
    found = booster(path) if path.endswith(".bst") else pickles.unpickled(path)
    if isinstance(found, xgboost.XGBModel):
        return pickles.Model("xgboost", xgboost.__version__, of_arrays(found.predict), found.n_features_in_)
    if not isinstance(found, xgboost.Booster):
        raise pickles.Unloadable("What was pickled is a {}, no Booster of XGBoost.".format(type(found).__name__))

    def predict(rows):
        return found.predict(xgboost.DMatrix(rows, feature_names=found.feature_names))

    return pickles.Model("xgboost", xgboost.__version__, of_arrays(predict), found.num_features())


def booster(path):
    try:
        return xgboost.Booster(model_file=path)
    except xgboost.core.XGBoostError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise pickles.Unloadable("model.bst is no model that this XGBoost reads: {}".format(reason)) from None


def of_arrays(predict):
    """`predict` for lists of numbers; what XGBoost finds wrong with them is the caller's fault."""

    def predict_rows(instances):
        rows = np.array(instances, dtype=np.float32)
        if rows.ndim != 2:
            raise ValueError("each instance must be a list of as many numbers as the model has features")
        try:
            return predict(rows)
        except xgboost.core.XGBoostError as error:
            raise ValueError(str(error).splitlines()[0]) from None

    return predict_rows
