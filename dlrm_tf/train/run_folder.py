"""What a run's folder holds besides checkpoints: settings, history, weights."""

import json
import os

from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import atomic_file
from dlrm_tf.train.checkpoints import RunCheckpoints

LAST, BEST, HISTORY, SETTINGS = "model.weights.h5", "best.weights.h5", "history.json", "settings.json"


def open_run(run_dir: str, checkpoints: RunCheckpoints, resume: bool, settings: dict) -> None:
    """Makes the run folder, or checks that the run in it is the one to go on with."""
    path = os.path.join(run_dir, SETTINGS)
    if not os.path.exists(path):
        if checkpoints.steps():
            raise CheckpointError(f"{run_dir}: has checkpoints but no {SETTINGS}; choose another folder")
        with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
            json.dump(settings, f, indent=1)
        return
    if not resume:
        raise CheckpointError(f"{run_dir}: already holds a run; go on with it (--resume) or choose another folder")
    try:
        with open(path, encoding="utf-8") as f:
            before = json.load(f)
    except ValueError as e:
        raise CheckpointError(f"{path}: damaged ({e}); this run can't be resumed") from e
    wanted = json.loads(json.dumps(settings))
    differ = [f"{name} was {before.get(name)}, now {wanted[name]}" for name in wanted if before.get(name) != wanted[name]]
    if differ:
        raise CheckpointError(f"{run_dir}: can't resume with other settings: {'; '.join(differ)}")


def read_history(run_dir: str, step: int) -> list:
    """The epochs finished before `step`."""
    path = os.path.join(run_dir, HISTORY)
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8") as f:
            return [entry for entry in json.load(f) if entry["step"] <= step]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: damaged ({e}); remove it to resume without the earlier epochs' figures") from e


def end_epoch(run_dir: str, model, history: list, summaries) -> None:
    """Writes the epoch's figures, and its weights when they are the best so far."""
    entry = history[-1]
    summaries.write(entry["step"], {"loss": entry["loss"]}, "epoch/")
    summaries.write_histograms(entry["step"], model)
    if entry["validation"]:
        scalars = {name: v for name, v in entry["validation"].items() if not isinstance(v, list)}
        summaries.write(entry["step"], scalars, "validation/")
        if entry["validation"]["logloss"] <= min(e["validation"]["logloss"] for e in history if e["validation"]):
            model.save_weights(os.path.join(run_dir, BEST))
    with atomic_file(os.path.join(run_dir, HISTORY)) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(history, f, indent=1)
