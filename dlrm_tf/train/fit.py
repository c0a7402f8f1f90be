"""`fit`: trains a DLRM on prepared data, in a run folder that can be resumed."""

import dataclasses
import json
import os
import time
from typing import Optional

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.records import Records
from dlrm_tf.errors import CheckpointError, DataError
from dlrm_tf.files import atomic_file
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.progress import Progress
from dlrm_tf.train import callbacks as on
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.evaluate import check_fits, evaluate
from dlrm_tf.train.optimizers import DEFAULT_LEARNING_RATES, make_optimizer
from dlrm_tf.train.schedules import WarmUpThenDecay

tf = tensorflow()

LAST, BEST, HISTORY, SETTINGS = "model.weights.h5", "best.weights.h5", "history.json", "settings.json"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `fit` made.

    Attributes:
      model: the trained `dlrm_tf.DLRM` (the last weights).
      weights: path of the last weights.
      best_weights: path of the weights with the lowest validation logloss; the last ones when there was no validation.
      history: one dict an epoch: `epoch`, `step`, `loss`, `seconds`, `rows_per_second`, `validation` (see `evaluate`) or None.
    """

    model: object
    weights: str
    best_weights: str
    history: list


def fit(
    data,
    run_dir,
    weights=None,
    config: Optional[DLRMConfig] = None,
    optimizer: str = "adagrad",
    learning_rate: Optional[float] = None,
    momentum: float = 0.0,
    dense_optimizer: Optional[str] = None,
    dense_learning_rate: Optional[float] = None,
    warmup_steps: int = 0,
    decay: float = 0.0,
    epochs: int = 1,
    batch_size: int = 2048,
    seed: int = 0,
    resume: bool = False,
    checkpoint_steps: Optional[int] = None,
    steps_per_execution: int = 1,
    validate: bool = True,
    quiet: bool = False,
) -> Trained:
    """Trains on the `train` split and measures on the `test` split after every epoch.

    Args:
      data: a folder made by `prepare`, or opened `Records`.
      run_dir: folder of the run: checkpoints/, tensorboard/, history.json, settings.json, model.weights.h5, best.weights.h5.
      weights: a `.weights.h5` to start from; it must be for this data.
      config: architecture of a new model; by default Criteo Kaggle's MLPs at the data's vocabulary sizes.
      optimizer: a name of `make_optimizer`.
      learning_rate: the optimizer's default when None.
      momentum, dense_optimizer, dense_learning_rate: of the MLPs, see `make_optimizer`.
      warmup_steps: steps over which the learning rates rise to their value.
      decay: last part of all steps, 0 to 1, over which the learning rates fall linearly to 0.
      epochs: passes over the data, those before a resume included.
      batch_size: rows a step.
      seed: of the initial weights and the order of the rows.
      resume: go on from the run's newest checkpoint; starts from the beginning when there is none.
      checkpoint_steps: steps between two checkpoints; one is always written at the end of an epoch.
      steps_per_execution: steps run without returning to Python; saves time with small batches. Progress, checkpoints and the
        check for NaN then come once in so many steps.
      validate: measure on the test split after every epoch.
      quiet: show no progress.

    Returns:
      A `Trained`.

    Raises:
      CheckpointError: `weights` does not fit the data, or the run folder holds another run.
      DataError: `data` is not prepared data, or has no training rows.
      TrainingError: the loss became NaN or infinite.
      KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    records = data if isinstance(data, Records) else Records.open(data)
    rows = records.rows("train")
    if rows == 0:
        raise DataError(f"{records.folder}: there are no training rows")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("steps_per_execution", steps_per_execution)):
        if value < 1:
            raise ValueError(f"{name} must be positive. Received {value}")
    validate = validate and records.rows("test") > 0
    run_dir = os.fspath(run_dir)
    if learning_rate is None:
        learning_rate = DEFAULT_LEARNING_RATES.get(optimizer)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be between 0 and 1. Received {decay}")
    position = on.EpochPosition(rows, batch_size)

    def scheduled(rate):
        if rate is None or not (warmup_steps or decay):
            return rate
        steps = position.batches * epochs
        return WarmUpThenDecay(rate, steps, warmup_steps, int(steps * decay), power=1.0)

    model = _model(records, weights, config, seed)
    model.compile(
        make_optimizer(
            optimizer,
            scheduled(learning_rate),
            momentum,
            dense=dense_optimizer,
            dense_learning_rate=scheduled(dense_learning_rate),
        ),
        steps_per_execution=steps_per_execution,
    )
    checkpoints = RunCheckpoints(run_dir, model, model.optimizer)
    _open_run(
        run_dir,
        checkpoints,
        resume,
        {
            "config": json.loads(model.config.to_json()),
            "vocabulary": records.manifest["vocabulary"]["fingerprint"],
            "rows": rows,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "momentum": momentum,
            "dense_optimizer": dense_optimizer,
            "dense_learning_rate": dense_learning_rate,
            "warmup_steps": warmup_steps,
            # The end of a decay hangs on the number of epochs; without one a run may be given more.
            "decay": [decay, epochs if decay else 0],
            "batch_size": batch_size,
            "seed": seed,
        },
    )
    step = checkpoints.restore() if resume else 0
    history = _read_history(run_dir, step) if resume else []

    summaries = on.Summaries(position, os.path.join(run_dir, "tensorboard"))
    with (
        Progress("train", rows * epochs, "rows", quiet=quiet) as progress,
        on.SaveRun(position, checkpoints, checkpoint_steps) as saver,
    ):
        loop = [position, on.StopAtNonFiniteLoss(position), on.ProgressLine(position, progress), summaries, saver]
        for epoch in range(step // position.batches, epochs):
            position.start(step, float(checkpoints.loss_sum.numpy()) if step % position.batches else 0.0)
            start, first_rows = time.monotonic(), min(position.batch * batch_size, rows)
            dataset = records.dataset("train", batch_size, shuffle_seed=seed, repeat=True, start_batch=step)
            model.fit(dataset, steps_per_epoch=position.batches - position.batch, callbacks=loop, verbose=0)
            step = position.step
            seconds = time.monotonic() - start
            entry = {
                "epoch": epoch + 1,
                "step": step,
                "loss": position.mean_loss,
                "seconds": seconds,
                "rows_per_second": (rows - first_rows) / seconds,
                "validation": evaluate(records, model, quiet=True) if validate else None,
            }
            history = [e for e in history if e["epoch"] != entry["epoch"]] + [entry]
            _end_epoch(run_dir, model, history, summaries)
            saver.save()
            saver.stop_if_asked()
    model.save_weights(os.path.join(run_dir, LAST))
    best = os.path.join(run_dir, BEST if validate else LAST)
    return Trained(model, os.path.join(run_dir, LAST), best, history)


def _model(records: Records, weights, config, seed):
    """The model to train: read from `weights`, or new."""
    from dlrm_tf.model.dlrm import DLRM
    from dlrm_tf.model.weights import load

    if weights is not None:
        if config is not None:
            raise ValueError("weights carry their own configuration: give weights or config, not both")
        model = load(weights)
    else:
        if config is None:
            config = dataclasses.replace(
                DLRMConfig.preset("criteo_kaggle"),
                categorical_feature_sizes=records.sizes,
                dense_dim=len(records.spec.dense_columns),
            )
        check_fits(config, "", records, "the configuration")
        model = DLRM(config, seed=seed)
    check_fits(model.config, model.vocabulary_fingerprint, records, os.fspath(weights) if weights else "the model")
    model.vocabulary_fingerprint = records.manifest["vocabulary"]["fingerprint"]
    return model


def _open_run(run_dir: str, checkpoints: RunCheckpoints, resume: bool, settings: dict) -> None:
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


def _read_history(run_dir: str, step: int) -> list:
    """The epochs finished before `step`."""
    path = os.path.join(run_dir, HISTORY)
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8") as f:
            return [entry for entry in json.load(f) if entry["step"] <= step]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: damaged ({e}); remove it to resume without the earlier epochs' figures") from e


def _end_epoch(run_dir: str, model, history: list, summaries) -> None:
    """Writes the epoch's figures, and its weights when they are the best so far."""
    entry = history[-1]
    summaries.write(entry["step"], {"loss": entry["loss"]}, "epoch/")
    if entry["validation"]:
        scalars = {name: v for name, v in entry["validation"].items() if not isinstance(v, list)}
        summaries.write(entry["step"], scalars, "validation/")
        if entry["validation"]["logloss"] <= min(e["validation"]["logloss"] for e in history if e["validation"]):
            model.save_weights(os.path.join(run_dir, BEST))
    with atomic_file(os.path.join(run_dir, HISTORY)) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(history, f, indent=1)
