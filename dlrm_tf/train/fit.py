"""`fit`: trains a DLRM on prepared data, in a run folder that can be resumed."""

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Optional, Union

from dlrm_tf.data.records import VALIDATION, Records
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM, load
from dlrm_tf.model.optimizers import make_optimizer
from dlrm_tf.model.regularization import Regularization
from dlrm_tf.progress import Progress
from dlrm_tf.train import callbacks
from dlrm_tf.train.advice import advice
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.evaluate import check_fits, evaluate
from dlrm_tf.train.metrics import NonFiniteLogits
from dlrm_tf.train.optimizer_state import continue_with_state, save_with_optimizer_state
from dlrm_tf.train.options import FitOptions, ResolvedOptions
from dlrm_tf.train.placements import PLACEMENTS
from dlrm_tf.train.placements.base import Placement
from dlrm_tf.train.position import EpochPosition
from dlrm_tf.train.reset_table import reset_table
from dlrm_tf.train.resolve import new_config, resolve
from dlrm_tf.train.run_folder import BEST, LAST, TENSORBOARD, TEST, end_stretch, open_run, read_history, run_settings, write_json
from dlrm_tf.train.schedules import WarmUpThenDecay
from dlrm_tf.train.stopping import best_entry
from dlrm_tf.train.watch import Watch

tf = tensorflow()


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `fit` made.

    Attributes:
      model: the trained `dlrm_tf.DLRM` with the best weights; its optimizer's state is that of the last ones.
      weights: path of the last weights.
      best_weights: path of the weights with the lowest validation logloss; the last ones when there was no validation.
      history: one dict per measurement, which is one an epoch unless `validations_per_epoch` says more: `epoch`, `step`, `loss`
        (of the rows since the one before), `seconds`, `rows_per_second`, `validation` (see `evaluate`) or None.
      test: figures of the best weights on the test split (see `evaluate`); None without validation or without test rows.
      options: the run's options, with the recipe's values in place.
      advice: what the figures say went wrong and what to do about it, a line each.
    """

    model: DLRM
    weights: str
    best_weights: str
    history: list[dict]
    test: Optional[dict]
    options: ResolvedOptions
    advice: tuple[str, ...]


def fit(
    data: Union[str, os.PathLike, Records],
    run_dir: Union[str, os.PathLike],
    *,
    options: Optional[FitOptions] = None,
    **changes: Any,
) -> Trained:
    """Trains on the `train` split without its last rows, which choose the best weights; measures these on the `test` split.

    Args:
      data: a folder made by `prepare`, or opened `Records`.
      run_dir: folder of the run: checkpoints/, tensorboard/, history.json, settings.json, test.json, model.weights.h5,
        best.weights.h5.
      options: how to train; the defaults of `FitOptions` when None.
      **changes: options by name (the attributes of `FitOptions`), in place of those in `options`.

    Returns:
      A `Trained`.

    Raises:
      AscendError: the plugin, its environment or the NPU is not ready.
      CheckpointError: `weights` does not fit the data, or the run folder holds another run.
      DataError: `data` is not prepared data, or has no training rows.
      TrainingError: the loss, a weight of the MLPs or a logit of the validation rows became NaN or infinite.
      TypeError: an option that does not exist.
      UsageError: an option out of range, or options that exclude each other.
      KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after a checkpoint was written.

    Example:
      trained = dlrm_tf.fit("data", "run", optimizer="sgd", learning_rate=0.15, epochs=2)
    """
    given = dataclasses.replace(options or FitOptions(), **changes)
    plan = resolve(given, Records.open(data))
    options, records, run_dir = plan.options, plan.records, os.fspath(run_dir)
    placement = PLACEMENTS[options.strategy](options, new_config(options, records).table_rows)
    chief, rows = placement.is_chief, placement.epoch_rows(records)
    position = EpochPosition(rows, options.batch_size, options.validations_per_epoch)
    _say(plan.line, options, chief)

    total_steps = position.batches * options.epochs
    watch = Watch(options)
    model = _build(placement, records, options, total_steps, watch)
    checkpoints = RunCheckpoints(run_dir, model, model.optimizer, write=chief)
    if chief:
        open_run(run_dir, checkpoints, options.resume, run_settings(options, model.config, records, rows))
    if placement.allows_optimizer_state and options.weights and not (options.resume and checkpoints.steps()):
        _continue_with_state(model, options)
    position.start(placement.restore(model, checkpoints), checkpoints.loss_sum)
    history = read_history(run_dir, position.step) if options.resume and chief else []

    finite = callbacks.FiniteWeights(model, position, position.step)
    with contextlib.ExitStack() as stack:
        quiet = options.quiet or not chief
        total = rows * options.epochs
        progress = stack.enter_context(Progress("train", total=total, unit="rows", quiet=quiet, done=position.rows_of_run))
        every_step = [position, callbacks.StopAtNonFiniteLoss(position), callbacks.ProgressLine(position, progress)]
        summaries = _record(every_step, position, run_dir, options, stack) if chief else None
        saver = callbacks.SaveRun(position, checkpoints, finite, options.checkpoint_steps, placement.catches_signals)
        stack.enter_context(saver)

        while position.step < total_steps and not watch.stops(history, placement):
            if options.reset_table_each_epoch and position.batch == 0 and position.epoch > 0:
                reset_table(model, seed=options.seed + position.epoch)
            started, rows_before = time.monotonic(), position.rows_of_run
            placement.run_stretch(model, _batches(placement, records, options), position, every_step, saver)
            finite.check()
            trained, entry = placement.host_model(model), _entry(position, rows_before, time.monotonic() - started)
            if chief and options.validate and records.rows(VALIDATION):
                entry["validation"] = _validate(records, trained, position)
            history = [*history, entry]
            if summaries is not None:
                end_stretch(run_dir, trained, history, summaries)
                saver.save()
                saver.stop_if_asked()
            position.start(position.step, 0.0)
    return _finish(placement, model, run_dir, history, options, records)


def _record(
    every_step: list, position: EpochPosition, run_dir: str, options: ResolvedOptions, stack: contextlib.ExitStack
) -> callbacks.Summaries:
    """Adds what writes for TensorBoard to the callbacks; returns the summaries."""
    folder = os.path.join(run_dir, TENSORBOARD)
    if options.profile:
        profiler = callbacks.ProfileSteps(position, folder, *options.profile)
        stack.callback(profiler.close)
        every_step.append(profiler)
    summaries = callbacks.Summaries(position, folder)
    every_step.append(summaries)
    return summaries


def _say(line: str, options: ResolvedOptions, chief: bool = True) -> None:
    if chief and not options.quiet:
        print(line, file=sys.stderr)


def _build(placement: Placement, records: Records, options: ResolvedOptions, total_steps: int, watch: Watch) -> DLRM:
    """The model to train with its optimizer, where the placement puts them."""
    model = placement.build(lambda: _model(records, options), lambda: _optimizer(options, total_steps, watch))
    model.regularization = Regularization(options.dropout, options.label_smoothing, options.clip_norm, options.seed)
    return model


def _batches(placement: Placement, records: Records, options: ResolvedOptions) -> Callable[..., tf.data.Dataset]:
    """`Records.dataset` of the training rows, with what the options say of it in place."""
    return functools.partial(
        records.dataset,
        "train",
        batch_size=options.batch_size,
        shuffle_seed=options.seed,
        repeat=True,
        drop_remainder=placement.needs_whole_batches,
    )


def _model(records: Records, options: ResolvedOptions) -> DLRM:
    """The model to train: read from the weights file, or new."""
    if options.weights is not None:
        model = load(options.weights)
    else:
        config = new_config(options, records)
        check_fits(config, "", records, "the configuration")
        model = DLRM(config, table_init_scale=options.table_init_scale, seed=options.seed)
    check_fits(model.config, model.vocabulary_fingerprint, records, options.weights or "the model")
    # Records made from ids do not know it.
    model.vocabulary_fingerprint = records.manifest["vocabulary"]["fingerprint"] or model.vocabulary_fingerprint
    return model


def _optimizer(options: ResolvedOptions, total_steps: int, watch: Watch) -> tf.keras.optimizers.Optimizer:
    """The optimizer of a whole training of `total_steps` steps."""
    factor = watch.make_rate_factor()

    def scheduled(rate):
        if rate is None or not (options.scheduled or factor is not None):
            return rate
        decay_steps = int(total_steps * options.decay)
        return WarmUpThenDecay(
            rate, total_steps, warmup_steps=options.warmup_steps, decay_steps=decay_steps, power=1.0, factor=factor
        )

    return make_optimizer(
        options.optimizer,
        learning_rate=scheduled(options.learning_rate),
        momentum=options.momentum,
        dense=options.dense_optimizer,
        dense_learning_rate=scheduled(options.dense_learning_rate),
        l2=options.l2,
    )


def _continue_with_state(model: DLRM, options: ResolvedOptions) -> None:
    """Restores the optimizer state of the weights file, unless the options say no; a line on stderr tells the outcome."""
    if options.weights is not None and options.optimizer_state is not False:
        required = options.optimizer_state is True
        _say(continue_with_state(model, options.weights, required=required, scheduled=options.scheduled), options)


def _entry(position: EpochPosition, rows_before: int, seconds: float) -> dict[str, Any]:
    """What the history says of a stretch that began at row `rows_before` of the run; not measured yet."""
    return {
        "epoch": position.epoch + 1,
        "step": position.step,
        "loss": position.mean_loss,
        "seconds": seconds,
        "rows_per_second": (position.rows_of_run - rows_before) / seconds,
        "validation": None,
    }


def _validate(records: Records, model: DLRM, position: EpochPosition) -> dict:
    try:
        return evaluate(records, model, split=VALIDATION, quiet=True)
    except NonFiniteLogits as e:
        raise callbacks.TrainingError(
            f"after step {position.step} (epoch {position.epoch + 1}) the validation rows can't be measured: {e}; lower the "
            "learning rate; nothing of this epoch's end was saved"
        ) from e


def _finish(
    placement: Placement, model: DLRM, run_dir: str, history: list[dict], options: ResolvedOptions, records: Records
) -> Trained:
    """Writes the last weights, measures the best ones on the test split, and says what the run folder holds."""
    last, best, host, test = os.path.join(run_dir, LAST), os.path.join(run_dir, BEST), placement.host_model(model), None
    entry = best_entry(history)
    if placement.is_chief:
        if options.save_optimizer_state:
            save_with_optimizer_state(host, host.optimizer, last)
        else:
            host.save_weights(last)
        if entry and entry is not history[-1]:
            host.load_weights(best)
        if options.validate and records.rows("test"):
            test = evaluate(records, host, quiet=True)
            write_json(os.path.join(run_dir, TEST), {"step": (entry or history[-1])["step"], **test})
    said = tuple(advice(history, test, options, records))
    for line in said:
        _say(line, options, placement.is_chief)
    return Trained(host, last, best if entry else last, history, test, options, said)
