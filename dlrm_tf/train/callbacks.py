"""Keras callbacks of the training loop: what is shown, checked and saved after a step."""

import math
import signal
import threading
import time
from typing import Any, Optional

import numpy as np

from dlrm_tf.errors import DLRMError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.progress import Progress
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.position import EpochPosition

tf = tensorflow()

# Steps between two points of TensorBoard's curves.
_SUMMARY_STEPS = 50


class TrainingError(DLRMError):
    """Training can't continue: a number is NaN or infinite."""


class StopAtNonFiniteLoss(tf.keras.callbacks.Callback):
    """Raises `TrainingError` when the loss is NaN or infinite, before the weights are saved.

    Args:
      position: the run's position.
    """

    def __init__(self, position: EpochPosition):
        super().__init__()
        self._position = position

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(self._position.loss_sum):
            p = self._position
            raise TrainingError(
                f"the loss is {p.last_loss} at step {p.step} (epoch {p.epoch + 1}, batch {p.batch} of {p.batches}): "
                f"lower the learning rate, or look for non-finite values in the data; {p.what_is_saved}"
            )


class FiniteWeights:
    """Looks for NaN and infinity in the MLPs' weights before anything is saved.

    The loss may stay finite when a weight is NaN. A NaN among a record's dense values makes the first kernel NaN; `relu(NaN)` is
    NaN with some of TensorFlow's kernels, but 0 with others (oneDNN's on a CPU with AVX-512), and then the loss is finite.

    Args:
      model: the model.
      position: the run's position.
      step: steps done when training begins.
    """

    def __init__(self, model: DLRM, position: EpochPosition, step: int):
        self._model, self._position, self._good = model, position, step

    def check(self) -> None:
        """Raises `TrainingError`, which names the steps since the last check and their batches, when a weight is not finite."""
        p = self._position
        for mlp, i, _, _ in self._model.config.dense_shapes():
            layer = self._model.dense_layer(mlp, i)
            for kind in ("kernel", "bias"):
                wrong = int((~np.isfinite(getattr(layer, kind).numpy())).sum())
                if wrong:
                    first = max(self._good - p.epoch * p.batches, 0) + 1
                    raise TrainingError(
                        f"{wrong} weights of {mlp} layer {i} ({kind}) are not finite at step {p.step} (epoch {p.epoch + 1}, "
                        f"batches {first} to {p.batch} of {p.batches}, trained since step {self._good}): look for non-finite "
                        f"values in the data's dense features, or lower the learning rate; {p.what_is_saved}"
                    )
        self._good = p.step


class ProgressLine(tf.keras.callbacks.Callback):
    """Shows rows per second, loss and time left.

    Args:
      position: the run's position.
      progress: the run's progress bar, in rows.
    """

    def __init__(self, position: EpochPosition, progress: Progress):
        super().__init__()
        self._position, self._progress = position, progress

    def on_train_batch_end(self, batch, logs=None):
        self._progress.update(self._position.last_rows, f"loss {self._position.mean_loss:.4f}")


class Summaries(tf.keras.callbacks.Callback):
    """TensorBoard scalars: loss of the last steps and rows per second, every `_SUMMARY_STEPS` steps.

    Args:
      position: the run's position.
      folder: where the event files go.
    """

    def __init__(self, position: EpochPosition, folder: str):
        super().__init__()
        self._position = position
        self._writer = tf.summary.create_file_writer(folder)
        self._reset()

    def _reset(self):
        self._rows, self._loss_sum, self._since = 0, 0.0, time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        p = self._position
        self._rows += p.last_rows
        self._loss_sum += p.last_loss * p.last_rows
        if p.step % _SUMMARY_STEPS == 0:
            seconds = max(time.monotonic() - self._since, 1e-9)
            self.write(p.step, {"loss": self._loss_sum / self._rows, "rows_per_second": self._rows / seconds}, "train/")
            self._reset()

    def write_histograms(self, step: int, model: DLRM) -> None:
        """Writes the distribution of every MLP weight, and of up to 10,000 rows spread evenly over the table.

        Args:
          step: optimizer steps done.
          model: the `DLRM`.
        """
        with self._writer.as_default():
            for mlp, i, _, _ in model.config.dense_shapes():
                layer = model.dense_layer(mlp, i)
                tf.summary.histogram(f"{mlp}/{i}/kernel", layer.kernel, step=step)
                tf.summary.histogram(f"{mlp}/{i}/bias", layer.bias, step=step)
            rows = range(0, model.config.table_rows, -(-model.config.table_rows // 10_000))
            tf.summary.histogram("embedding/table", tf.gather(model.embedding.table, tf.constant(rows)), step=step)
        self._writer.flush()

    def write(self, step: int, values: dict, prefix: str) -> None:
        """Writes scalars.

        Args:
          step: optimizer steps done.
          values: name -> value; None (undefined) is left out.
          prefix: put before every name.
        """
        with self._writer.as_default():
            for name, value in values.items():
                if value is not None:
                    tf.summary.scalar(prefix + name, value, step=step)
        self._writer.flush()


class ProfileSteps(tf.keras.callbacks.Callback):
    """Records TensorFlow's profile of some steps, for TensorBoard's Profile page.

    Args:
      position: the run's position.
      folder: where the profile goes.
      first: first step of the run to record, counted from 1.
      last: last step to record.
    """

    def __init__(self, position: EpochPosition, folder: str, first: int, last: int):
        super().__init__()
        self._position, self._folder, self._first, self._last = position, folder, first, last
        self._running = False

    def on_train_batch_end(self, batch, logs=None):
        # Called after a step: the profile begins when the step before the first one is done.
        if self._running and self._position.step >= self._last:
            self.close()
        elif not self._running and self._first - 1 <= self._position.step < self._last:
            tf.profiler.experimental.start(self._folder)
            self._running = True

    def close(self) -> None:
        """Ends the recording, if it has begun."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()


class SaveRun(tf.keras.callbacks.Callback):
    """Writes a checkpoint every `every` steps, and when the process is told to stop (Ctrl-C, SIGTERM).

    The step that runs when a signal comes is finished first, so that weights and position belong together. A second signal
    stops at once.

    Args:
      position: the run's position.
      checkpoints: the run's `RunCheckpoints`.
      finite: the run's `FiniteWeights`.
      every: steps between two checkpoints, or None.
      catch_signals: whether signals are caught; otherwise the process's own handlers stay in place.
    """

    def __init__(
        self,
        position: EpochPosition,
        checkpoints: RunCheckpoints,
        finite: FiniteWeights,
        every: Optional[int] = None,
        catch_signals: bool = True,
    ):
        super().__init__()
        self._catch_signals = catch_signals
        self._position, self._checkpoints, self._finite, self._every = position, checkpoints, finite, every
        self._asked = None
        self._handlers: dict[int, Any] = {}
        self._seen = 0

    def __enter__(self):
        if self._catch_signals and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self._asked is not None:
            raise KeyboardInterrupt
        self._asked = number

    def save(self) -> None:
        """Writes a checkpoint; at the end of a stretch, call it after the stretch's figures are in the history."""
        p = self._position
        self._finite.check()
        self._checkpoints.save(p.step, 0.0 if p.batch == p.stop else p.loss_sum)
        p.saved = p.step

    @property
    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self._asked is not None

    def stop_if_asked(self) -> None:
        """Raises KeyboardInterrupt when a signal has come."""
        if self.stopping:
            raise KeyboardInterrupt(f"stopped at step {self._position.step}; continue with --resume")

    def on_train_batch_end(self, batch, logs=None):
        if self._position.batch == self._position.stop:
            return  # the loop validates, writes the history and saves
        due = self._every and self._position.step // self._every > self._seen // self._every
        if due or self.stopping:
            self.save()
        self._seen = self._position.step
        self.stop_if_asked()
