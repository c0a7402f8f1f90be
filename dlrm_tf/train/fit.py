"""`fit`: trains a DLRM on prepared data, in a run folder that can be resumed."""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from typing import Optional

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import load
from dlrm_tf.model.optimizers import DEFAULT_LEARNING_RATES, make_optimizer
from dlrm_tf.progress import Progress
from dlrm_tf.train import callbacks as on
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.evaluate import check_fits, evaluate
from dlrm_tf.train.metrics import NonFiniteLogits
from dlrm_tf.train.optimizer_state import go_on_with_state, save_with_optimizer_state
from dlrm_tf.train.parameter_server import ParameterServerLoop
from dlrm_tf.train.run_folder import BEST, LAST, end_epoch, open_run, read_history
from dlrm_tf.train.schedules import WarmUpThenDecay
from dlrm_tf.train.strategies import distribute, is_chief, make_strategy, serve_task, task
from dlrm_tf.train.tpu import host_copy, on_host, tpu_model

tf = tensorflow()


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
    profile: Optional[tuple] = None,
    strategy: str = "one",
    precision: str = "float32",
    loss_scale=None,
    optimizer_state: Optional[bool] = None,
    save_optimizer_state: bool = False,
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
        check for NaN then come once in so many steps. 1 with `"mirrored"` and `"multi_worker"`.
      validate: measure on the test split after every epoch.
      profile: `(first, last)` step of the run to record TensorFlow's profile of, into tensorboard/; not with parameter servers.
      strategy: which devices and processes train together; `batch_size` is that of all of them, only the chief process writes.
        `"one"`, `"mirrored"`, `"multi_worker"`, `"parameter_server"`, `"tpu"`: see `dlrm_tf.train.strategies.make_strategy`.
        `"ascend"`: one process a Huawei NPU, told by the plugin's environment variables (`dlrm_tf.ascend`); a last batch that is
        not full is left out, and `loss` in the history is that of the chief's own rows.
      precision, loss_scale: with `"ascend"`, see `dlrm_tf.ascend.device.open_device`.
      optimizer_state: whether `weights`' optimizer state is gone on from: None when the file has one that fits, which a line on
        stderr tells; True: it must; False: never. With `warmup_steps` or `decay` steps are counted from 0 again.
      save_optimizer_state: write the optimizer's state into model.weights.h5 too. Both go with strategy `"one"`.
      quiet: show no progress.

    Returns:
      A `Trained`.

    Raises:
      AscendError: the plugin, its environment or the NPU is not ready.
      CheckpointError: `weights` does not fit the data, or the run folder holds another run.
      DataError: `data` is not prepared data, or has no training rows.
      TrainingError: the loss, a weight of the MLPs or a logit of the test split became NaN or infinite.
      KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    records = data if isinstance(data, Records) else Records.open(data)
    rows = records.rows("train")
    if rows == 0:
        raise DataError(f"{records.folder}: there are no training rows")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("steps_per_execution", steps_per_execution)):
        if value < 1:
            raise ValueError(f"{name} must be positive. Received {value}")
    device = _open_device(strategy, precision, loss_scale)
    if strategy == "parameter_server" and task()[0] in ("ps", "worker"):
        serve_task()
    distribution = make_strategy(strategy if device is None else "one", sum(records.sizes) + len(records.sizes))
    chief = is_chief(strategy) if device is None else device.is_chief
    if device is not None:
        device.local_batch_size(batch_size)
    if device is not None or strategy == "tpu":  # these want batches of one shape
        rows -= rows % batch_size
        if rows == 0:
            raise DataError(f"{records.folder}: {records.rows('train')} training rows make no batch of {batch_size}")
    if steps_per_execution > 1 and strategy in ("mirrored", "multi_worker"):
        raise UsageError(
            f"steps_per_execution must be 1 with strategy {strategy!r}: TensorFlow's collectives take no last batch that "
            f"is smaller in a loop. Received {steps_per_execution}"
        )
    if strategy != "one" and (optimizer_state or save_optimizer_state):
        raise UsageError(f"optimizer state in weights files goes with strategy 'one'. Received {strategy!r}")
    if optimizer_state and weights is None:
        raise UsageError("optimizer_state needs weights, the file that holds it")
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

    with distribution.scope():
        model = _model(records, weights, config, seed)
        keras_optimizer = make_optimizer(
            optimizer,
            scheduled(learning_rate),
            momentum=momentum,
            dense=dense_optimizer,
            dense_learning_rate=scheduled(dense_learning_rate),
        )
        if device is not None:
            keras_optimizer = device.distribute(keras_optimizer, model)
        if strategy == "tpu":
            model = tpu_model(model, keras_optimizer)
        model.compile(keras_optimizer, steps_per_execution=steps_per_execution)
    checkpoints = RunCheckpoints(run_dir, model, model.optimizer, write=chief)
    settings = {
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
    }
    if chief:
        open_run(run_dir, checkpoints, resume, settings)
    if weights is not None and strategy == "one" and optimizer_state is not False and not (resume and checkpoints.steps()):
        scheduled_steps = bool(warmup_steps or decay)
        note = go_on_with_state(model, os.fspath(weights), optimizer_state is True, scheduled_steps)
        if not quiet:
            print(note, file=sys.stderr)
    # An NPU process gets the chief's state by broadcast, any other reads it.
    step = checkpoints.restore() if resume and (chief or device is None) else 0
    history = read_history(run_dir, step) if resume and chief else []
    if device is not None:
        device.broadcast(model, [checkpoints.step])
        step = int(checkpoints.step.numpy())

    finite = on.FiniteWeights(model, position, step)
    with contextlib.ExitStack() as stack:
        done = step // position.batches * rows + step % position.batches * batch_size
        progress = stack.enter_context(Progress("train", rows * epochs, "rows", quiet=quiet or not chief, done=done))
        loop = [position, on.StopAtNonFiniteLoss(position), on.ProgressLine(position, progress)]
        if chief:
            summaries = on.Summaries(position, os.path.join(run_dir, "tensorboard"))
            # Of several processes that a signal reaches, none can finish its step: the others may be gone from the all-reduce.
            alone = strategy not in ("multi_worker", "ascend") or (device is not None and device.world_size == 1)
            saver = stack.enter_context(on.SaveRun(position, checkpoints, finite, checkpoint_steps, catch_signals=alone))
            if profile is not None:
                profiler = on.ProfileSteps(position, os.path.join(run_dir, "tensorboard"), *profile)
                stack.callback(profiler.close)
                loop.append(profiler)
            loop += [summaries, saver]
        if device is not None:
            loop.append(device.loop_callback(steps_per_execution))
        batches = functools.partial(
            records.dataset,
            "train",
            batch_size,
            shuffle_seed=seed,
            repeat=True,
            drop_remainder=device is not None or strategy == "tpu",
        )
        if strategy == "parameter_server":
            servers = ParameterServerLoop(distribution, model, lambda first: batches(start_batch=first))
        for epoch in range(step // position.batches, epochs):
            position.start(step, checkpoints.loss_sum if step % position.batches else 0.0)
            start, first_rows = time.monotonic(), position.rows_until(position.batch)
            if strategy == "parameter_server":
                servers.run_epoch(position, loop[:-1], saver, checkpoint_steps)
            else:
                here = functools.partial(batches, start_batch=step)
                if strategy == "tpu":
                    here = functools.partial(on_host, model, here)
                dataset = distribute(distribution, here) if device is None else device.share(here())
                model.fit(dataset, steps_per_epoch=position.batches - position.batch, callbacks=loop, verbose=0)
            finite.check()
            # What is measured and saved is the ordinary model.
            ordinary = host_copy(model) if strategy == "tpu" else model
            step = position.step
            seconds = time.monotonic() - start
            entry = {
                "epoch": epoch + 1,
                "step": step,
                "loss": position.mean_loss,
                "seconds": seconds,
                "rows_per_second": (rows - first_rows) / seconds,
                "validation": _validate(records, ordinary, position) if validate and chief else None,
            }
            history = [e for e in history if e["epoch"] != entry["epoch"]] + [entry]
            if chief:
                end_epoch(run_dir, ordinary, history, summaries)
                saver.save()
                saver.stop_if_asked()
    if strategy == "tpu":
        model = host_copy(model)
    if save_optimizer_state:
        save_with_optimizer_state(model, model.optimizer, os.path.join(run_dir, LAST))
    elif chief:
        model.save_weights(os.path.join(run_dir, LAST))
    measured = any(entry["validation"] for entry in history) and os.path.exists(os.path.join(run_dir, BEST))
    return Trained(model, os.path.join(run_dir, LAST), os.path.join(run_dir, BEST if measured else LAST), history)


def _validate(records: Records, model, position) -> dict:
    try:
        return evaluate(records, model, quiet=True)
    except NonFiniteLogits as e:
        raise on.TrainingError(
            f"after step {position.step} (epoch {position.epoch + 1}) the test split can't be measured: {e}; lower the learning "
            "rate; nothing of this epoch's end was saved"
        ) from e


def _open_device(strategy: str, precision: str, loss_scale):
    """The NPU of this process, or None; it must be opened before anything else of TensorFlow runs."""
    if strategy == "ascend":
        from dlrm_tf.ascend.device import open_device

        return open_device(precision, loss_scale)
    if precision != "float32" or loss_scale is not None:
        raise ValueError(f"precision and loss_scale go with strategy 'ascend'. Received {precision!r}, {loss_scale!r}")
    return None


def _model(records: Records, weights, config, seed):
    """The model to train: read from `weights`, or new."""
    from dlrm_tf.model.dlrm import DLRM

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
