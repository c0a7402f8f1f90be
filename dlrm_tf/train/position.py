"""Where in a run the training loop is: epoch, batch, step, and the stretch between two measurements."""

import math

from dlrm_tf.keras2 import tensorflow

tf = tensorflow()


class EpochPosition(tf.keras.callbacks.Callback):
    """Where in the run the loop is; the other callbacks read it, so it comes first in the list.

    An epoch is trained in stretches, `validations_per_epoch` of them; after each the validation rows are measured, the history
    and a checkpoint are written.

    Args:
      rows: rows of an epoch.
      batch_size: rows of a whole batch.
      stretches: stretches of an epoch, of the same number of batches to a difference of one; not more than there are batches.

    Attributes:
      step: optimizer steps done since the run began.
      saved: step of the run's last checkpoint, 0 when there is none.
      epoch: index of the epoch.
      batch: batches done in the epoch.
      begin, stop: batches of the epoch done at the begin and at the end of the stretch.
      loss_sum: sum of the row losses in the stretch so far.
      last_rows, last_loss: rows of the last step, and their mean loss.
    """

    def __init__(self, rows: int, batch_size: int, stretches: int = 1):
        super().__init__()
        self.rows, self.batch_size = rows, batch_size
        self.batches = -(-rows // batch_size)
        stretches = min(stretches, self.batches)
        self._stops = [self.batches * (i + 1) // stretches for i in range(stretches)]
        self.step = self.saved = self.epoch = self.batch = self.begin = 0
        self.stop = self._stops[0]
        self.loss_sum = 0.0
        self.last_rows, self.last_loss = 0, math.nan

    def start(self, step: int, loss_sum: float) -> None:
        """Sets the position at the beginning of one `model.fit`: at a checkpoint, or at step 0.

        Args:
          step: optimizer steps done.
          loss_sum: sum of the row losses in the unfinished stretch so far; without meaning at the beginning of one.
        """
        self.step = self.saved = step
        self.epoch, self.batch = divmod(step, self.batches)
        self.begin = max([stop for stop in self._stops if stop <= self.batch], default=0)
        self.stop = min(stop for stop in self._stops if stop > self.batch)
        # Keras reports the mean since fit began, hence the sum of what came before is kept apart.
        self._before, self._first = loss_sum if self.batch > self.begin else 0.0, self.batch
        self.loss_sum = self._before

    def rows_until(self, batch: int) -> int:
        """Rows in the first `batch` batches of an epoch."""
        return min(batch * self.batch_size, self.rows)

    @property
    def rows_of_run(self) -> int:
        """Rows that the run has trained on, of all epochs."""
        return self.epoch * self.rows + self.rows_until(self.batch)

    def on_train_batch_end(self, batch, logs=None):
        done = self._first + batch + 1
        self.last_rows = self.rows_until(done) - self.rows_until(self.batch)
        loss_sum = self._before + float(logs["loss"]) * (self.rows_until(done) - self.rows_until(self._first))
        self.last_loss = (loss_sum - self.loss_sum) / self.last_rows
        self.step += done - self.batch
        self.batch, self.loss_sum = done, loss_sum

    @property
    def mean_loss(self) -> float:
        """Mean loss of the stretch's rows so far."""
        return self.loss_sum / max(self.rows_until(self.batch) - self.rows_until(self.begin), 1)

    @property
    def what_is_saved(self) -> str:
        """The end of a message that says why training stopped."""
        return f"the checkpoint of step {self.saved} was written before that" if self.saved else "nothing was saved"
