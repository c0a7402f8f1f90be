"""What a run's folder holds besides checkpoints: settings, history, weights."""

import json
import os
from typing import Any

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.records import VALIDATION, Records
from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import atomic_file
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.train.callbacks import Summaries
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.options import ResolvedOptions
from dlrm_tf.train.recipe_options import ARCHITECTURE, OFF
from dlrm_tf.train.stopping import best_entry

LAST, BEST, HISTORY, SETTINGS = "model.weights.h5", "best.weights.h5", "history.json", "settings.json"
TEST, TENSORBOARD = "test.json", "tensorboard"
# Options that a resumed run may be given otherwise, or that stand in the settings in another form.
_MAY_CHANGE = {*ARCHITECTURE, "epochs", "patience", "warmup", "decay", "validation_share"}
# What the settings of a run of 0.1.0, which lack it, mean.
_BEFORE: dict[str, Any] = {**OFF, "validation_rows": 0}


def run_settings(options: ResolvedOptions, config: DLRMConfig, records: Records, rows: int) -> dict[str, Any]:
    """What must stay the same when a run is resumed, as settings.json holds it.

    Args:
      options: the run's options.
      config: the model's architecture.
      records: the data.
      rows: rows of an epoch.
    """
    return {
        "config": json.loads(config.to_json()),
        "vocabulary": records.manifest["vocabulary"]["fingerprint"],
        "rows": rows,
        "validation_rows": records.rows(VALIDATION),
        **{name: getattr(options, name) for name in OFF if name not in _MAY_CHANGE},
        # The steps of a decay depend on the number of epochs; without a decay, a run may be given more epochs.
        "decay": [options.decay, options.epochs if options.decay else 0],
        "seed": options.seed,
    }


def open_run(run_dir: str, checkpoints: RunCheckpoints, resume: bool, settings: dict[str, Any]) -> None:
    """Makes the run folder, or checks that the run in it may be resumed.

    Args:
      run_dir: the run's folder.
      checkpoints: the run's checkpoints.
      resume: whether the run in the folder is to be resumed.
      settings: the settings of `run_settings`.

    Raises:
      CheckpointError: the folder holds a run and `resume` is false, or a run with other settings.
    """
    path = os.path.join(run_dir, SETTINGS)
    if not os.path.exists(path):
        if checkpoints.steps():
            raise CheckpointError(f"{run_dir}: has checkpoints but no {SETTINGS}; choose another folder")
        write_json(path, settings)
        return
    if not resume:
        raise CheckpointError(f"{run_dir}: already holds a run; resume it (--resume) or choose another folder")
    try:
        with open(path, encoding="utf-8") as f:
            before = json.load(f)
    except ValueError as e:
        raise CheckpointError(f"{path}: damaged ({e}); this run can't be resumed") from e
    wanted = json.loads(json.dumps(settings))
    was = {name: before.get(name, _BEFORE.get(name)) for name in wanted}
    differ = [f"{name} was {was[name]}, now {wanted[name]}" for name in wanted if was[name] != wanted[name]]
    if differ:
        raise CheckpointError(f"{run_dir}: can't resume with other settings: {'; '.join(differ)}")


def read_history(run_dir: str, step: int) -> list[dict]:
    """The figures of the epochs that were finished at a step.

    Args:
      run_dir: the run's folder.
      step: optimizer steps done.

    Raises:
      CheckpointError: the file is damaged.
    """
    path = os.path.join(run_dir, HISTORY)
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8") as f:
            return [entry for entry in json.load(f) if entry["step"] <= step]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: damaged ({e}); remove it to resume without the earlier epochs' figures") from e


def end_stretch(run_dir: str, model: DLRM, history: list[dict], summaries: Summaries) -> None:
    """Writes the figures of the last stretch, and its weights if their validation logloss is the lowest so far.

    Args:
      run_dir: the run's folder.
      model: the model as it is after the stretch.
      history: the figures of all stretches, the last one included.
      summaries: where TensorBoard's events are written.
    """
    entry = history[-1]
    summaries.write(entry["step"], {"loss": entry["loss"]}, "epoch/")
    summaries.write_histograms(entry["step"], model)
    if entry["validation"]:
        scalars = {name: v for name, v in entry["validation"].items() if not isinstance(v, list)}
        summaries.write(entry["step"], scalars, "validation/")
        if best_entry(history) is entry:
            model.save_weights(os.path.join(run_dir, BEST))
    write_json(os.path.join(run_dir, HISTORY), history)


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file, which appears whole or not at all."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
