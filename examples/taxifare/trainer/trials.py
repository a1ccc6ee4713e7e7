"""A trial of a tuning job: it writes into a folder of its own, and reports how good it is.

The service says by variables which trial this is and what its figure is called; without them this is no trial.
"""

import importlib
import os


def folder(output_dir, variables=os.environ):
    """Where this run writes: a trial into a folder with its number below the one that all trials were given."""
    trial = variables.get("CLOUD_ML_TRIAL_ID")
    return f"{output_dir.rstrip('/')}/{trial}" if trial else output_dir


def report(step, rmse, variables=os.environ):
    """Tell the service the best error so far. What it was told last is what counts."""
    if tag := variables.get("CLOUD_ML_HP_METRIC_TAG"):
        hypertune = importlib.import_module("hypertune")  # cloudml-hypertune, which every runtime has
        hypertune.HyperTune().report_hyperparameter_tuning_metric(tag, metric_value=rmse, global_step=step)
