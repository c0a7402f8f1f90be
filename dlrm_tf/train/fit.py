"""`fit`: trains a DLRM on prepared data, in a run folder that can be resumed."""

import contextlib
import dataclasses
import functools
import os
import sys
import time
from typing import Any, Optional, Union

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.records import Records
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM, load
from dlrm_tf.model.optimizers import DEFAULT_LEARNING_RATES, make_optimizer
from dlrm_tf.progress import Progress
from dlrm_tf.train import callbacks
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.evaluate import check_fits, evaluate
from dlrm_tf.train.metrics import NonFiniteLogits
from dlrm_tf.train.optimizer_state import continue_with_state, save_with_optimizer_state
from dlrm_tf.train.options import FitOptions
from dlrm_tf.train.placements import PLACEMENTS
from dlrm_tf.train.run_folder import BEST, LAST, TENSORBOARD, end_epoch, open_run, read_history, run_settings
from dlrm_tf.train.schedules import WarmUpThenDecay

tf = tensorflow()


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `fit` made.

    Attributes:
      model: the trained `dlrm_tf.DLRM` (the last weights).
      weights: path of the last weights.
      best_weights: path of the weights with the lowest validation logloss; the last ones when there was no validation.
      history: one dict per epoch: `epoch`, `step`, `loss`, `seconds`, `rows_per_second`, `validation` (see `evaluate`) or None.
    """

    model: DLRM
    weights: str
    best_weights: str
    history: list[dict]


def fit(
    data: Union[str, os.PathLike, Records],
    run_dir: Union[str, os.PathLike],
    *,
    options: Optional[FitOptions] = None,
    **changes: Any,
) -> Trained:
    """Trains on the `train` split and measures on the `test` split after every epoch.

    Args:
      data: a folder made by `prepare`, or opened `Records`.
      run_dir: folder of the run: checkpoints/, tensorboard/, history.json, settings.json, model.weights.h5, best.weights.h5.
      options: how to train; the defaults of `FitOptions` when None.
      **changes: options by name (the attributes of `FitOptions`), in place of those in `options`.

    Returns:
      A `Trained`.

    Raises:
      AscendError: the plugin, its environment or the NPU is not ready.
      CheckpointError: `weights` does not fit the data, or the run folder holds another run.
      DataError: `data` is not prepared data, or has no training rows.
      TrainingError: the loss, a weight of the MLPs or a logit of the test split became NaN or infinite.
      TypeError: an option that does not exist.
      UsageError: an option out of range, or options that exclude each other.
      KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after a checkpoint was written.

    Example:
      trained = dlrm_tf.fit("data", "run", optimizer="sgd", learning_rate=0.15, epochs=2)
    """
    options = dataclasses.replace(options or FitOptions(), **changes)
    if options.learning_rate is None:
        options = dataclasses.replace(options, learning_rate=DEFAULT_LEARNING_RATES[options.optimizer])
    records, run_dir = data if isinstance(data, Records) else Records.open(data), os.fspath(run_dir)
    placement = PLACEMENTS[options.strategy](options, sum(records.sizes) + len(records.sizes))
    chief, rows = placement.is_chief, placement.epoch_rows(records)
    position = callbacks.EpochPosition(rows, options.batch_size)

    total_steps = position.batches * options.epochs
    model = placement.build(lambda: _model(records, options), lambda: _optimizer(options, total_steps))
    checkpoints = RunCheckpoints(run_dir, model, model.optimizer, write=chief)
    if chief:
        open_run(run_dir, checkpoints, options.resume, run_settings(options, model.config, records, rows))
    if placement.allows_optimizer_state and options.weights and not (options.resume and checkpoints.steps()):
        _continue_with_state(model, options)
    step = placement.restore(model, checkpoints)
    history = read_history(run_dir, step) if options.resume and chief else []

    batches = functools.partial(
        records.dataset,
        "train",
        batch_size=options.batch_size,
        shuffle_seed=options.seed,
        repeat=True,
        drop_remainder=placement.needs_whole_batches,
    )
    finite = callbacks.FiniteWeights(model, position, step)
    with contextlib.ExitStack() as stack:
        done = step // position.batches * rows + step % position.batches * options.batch_size
        quiet = options.quiet or not chief
        progress = stack.enter_context(Progress("train", total=rows * options.epochs, unit="rows", quiet=quiet, done=done))
        every_step = [position, callbacks.StopAtNonFiniteLoss(position), callbacks.ProgressLine(position, progress)]
        if chief and options.profile:
            profiler = callbacks.ProfileSteps(position, os.path.join(run_dir, TENSORBOARD), *options.profile)
            stack.callback(profiler.close)
            every_step.append(profiler)
        if chief:
            summaries = callbacks.Summaries(position, os.path.join(run_dir, TENSORBOARD))
            every_step.append(summaries)
        saver = callbacks.SaveRun(position, checkpoints, finite, options.checkpoint_steps, placement.catches_signals)
        stack.enter_context(saver)

        for epoch in range(step // position.batches, options.epochs):
            position.start(step, checkpoints.loss_sum if step % position.batches else 0.0)
            started, rows_before = time.monotonic(), position.rows_until(position.batch)
            placement.run_epoch(model, batches, position, every_step, saver)
            finite.check()
            trained, step, seconds = placement.host_model(model), position.step, time.monotonic() - started
            entry: dict[str, Any] = {"epoch": epoch + 1, "step": step, "loss": position.mean_loss, "seconds": seconds}
            entry["rows_per_second"] = (rows - rows_before) / seconds
            measure = options.validate and chief and records.rows("test") > 0
            entry["validation"] = _validate(records, trained, position) if measure else None
            history = [earlier for earlier in history if earlier["epoch"] != epoch + 1] + [entry]
            if chief:
                end_epoch(run_dir, trained, history, summaries)
                saver.save()
                saver.stop_if_asked()
    return _save(placement.host_model(model), run_dir, history, options, write=chief)


def _model(records: Records, options: FitOptions) -> DLRM:
    """The model to train: read from the weights file, or new."""
    if options.weights is not None:
        model = load(options.weights)
    else:
        config = options.config or dataclasses.replace(DLRMConfig.preset("criteo_kaggle"), **records.config_fields())
        check_fits(config, "", records, "the configuration")
        model = DLRM(config, seed=options.seed)
    check_fits(model.config, model.vocabulary_fingerprint, records, options.weights or "the model")
    model.vocabulary_fingerprint = records.manifest["vocabulary"]["fingerprint"]
    return model


def _optimizer(options: FitOptions, total_steps: int) -> tf.keras.optimizers.Optimizer:
    """The optimizer of a whole training of `total_steps` steps."""

    def scheduled(rate):
        if rate is None or not options.scheduled:
            return rate
        decay_steps = int(total_steps * options.decay)
        return WarmUpThenDecay(rate, total_steps, warmup_steps=options.warmup_steps, decay_steps=decay_steps, power=1.0)

    return make_optimizer(
        options.optimizer,
        learning_rate=scheduled(options.learning_rate),
        momentum=options.momentum,
        dense=options.dense_optimizer,
        dense_learning_rate=scheduled(options.dense_learning_rate),
    )


def _continue_with_state(model: DLRM, options: FitOptions) -> None:
    """Restores the optimizer state of the weights file, unless the options say no; a line on stderr tells the outcome."""
    if options.weights is not None and options.optimizer_state is not False:
        note = continue_with_state(model, options.weights, required=options.optimizer_state is True, scheduled=options.scheduled)
        if not options.quiet:
            print(note, file=sys.stderr)


def _validate(records: Records, model: DLRM, position: callbacks.EpochPosition) -> dict:
    try:
        return evaluate(records, model, quiet=True)
    except NonFiniteLogits as e:
        raise callbacks.TrainingError(
            f"after step {position.step} (epoch {position.epoch + 1}) the test split can't be measured: {e}; lower the learning "
            "rate; nothing of this epoch's end was saved"
        ) from e


def _save(model: DLRM, run_dir: str, history: list[dict], options: FitOptions, *, write: bool) -> Trained:
    """Writes the last weights, if this process writes, and names what the run folder holds."""
    last, best = os.path.join(run_dir, LAST), os.path.join(run_dir, BEST)
    if write and options.save_optimizer_state:
        save_with_optimizer_state(model, model.optimizer, last)
    elif write:
        model.save_weights(last)
    measured = any(entry["validation"] for entry in history) and os.path.exists(best)
    return Trained(model, last, best if measured else last, history)
