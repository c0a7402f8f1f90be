"""Checkpoints of a run: model, optimizer slots and position; training resumed from one continues as if never interrupted.

`<run>/checkpoints/step-0000001200/` appears whole or not at all. The newest two are kept, so that damage to one
costs only the steps between them.
"""

import os
import re
import shutil

import numpy as np

from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import atomic_dir
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM

tf = tensorflow()

_NAME = re.compile(r"step-(\d{10})")
_KEEP = 2


class RunCheckpoints:
    """Saves and restores the state of one run.

    Args:
      run_dir: the run's folder.
      model: the model.
      optimizer: its optimizer.
      write: whether this process writes; the others of a cluster only restore.

    Attributes:
      step: optimizer steps done, an int64 variable.
    """

    def __init__(self, run_dir: str, model: DLRM, optimizer: tf.keras.optimizers.Optimizer, *, write: bool = True):
        self._write = write
        self._folder = os.path.join(run_dir, "checkpoints")
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        # The bits of a float64, a type that an NPU does not have.
        self._loss_bits = tf.Variable(0, dtype=tf.int64, trainable=False, name="loss_bits")
        # The layers, not the model: its metrics are sums over replicas, which only all processes together can write.
        self._checkpoint = tf.train.Checkpoint(
            embedding=model.embedding,
            optimizer=optimizer,
            **{name: getattr(model, name) for name in ("bottom_mlp", "cross", "top_mlp") if hasattr(model, name)},
            step=self.step,
            loss_bits=self._loss_bits,
        )

    @property
    def loss_sum(self) -> float:
        """Sum of the row losses of the unfinished epoch, as of the last save or restore."""
        return float(self._loss_bits.numpy().view(np.float64))

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint, ascending."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(int(m.group(1)) for m in map(_NAME.fullmatch, names) if m)

    def save(self, step: int, loss_sum: float) -> None:
        """Writes a checkpoint of the current state, then removes all but the newest two.

        Args:
          step: optimizer steps done.
          loss_sum: sum of the row losses of the unfinished epoch; 0 at the end of an epoch.

        Raises:
          CheckpointError: it could not be written (disk full); earlier checkpoints are untouched.
        """
        path = self._path(step)
        if not self._write or os.path.exists(path):
            return
        self.step.assign(step)
        self._loss_bits.assign(np.float64(loss_sum).view(np.int64))
        try:
            with atomic_dir(path) as temporary:
                self._checkpoint.write(os.path.join(temporary, "state"))
        except (OSError, tf.errors.OpError) as e:
            kept = self.steps()
            have = f"the checkpoint of step {kept[-1]} is intact" if kept else "there is no earlier one"
            reason = " ".join(str(getattr(e, "message", None) or e).split())[:300]
            raise CheckpointError(f"{path}: could not write the checkpoint ({reason}); {have}; continue with --resume") from e
        for old in self.steps()[:-_KEEP]:
            shutil.rmtree(self._path(old))

    def restore(self) -> int:
        """Reads the newest checkpoint that is not damaged.

        Newer, damaged ones are renamed to `damaged-step-N`, so that they are written again and do not displace a good one.

        Returns:
          The checkpoint's step; 0 when there is no checkpoint at all.

        Raises:
          CheckpointError: there are checkpoints, but none can be read.
        """
        if self._write and os.path.isdir(self._folder):
            for name in os.listdir(self._folder):
                # Left behind by a process that was killed while it wrote.
                if name.startswith(".step-") and name.endswith(".part"):
                    shutil.rmtree(os.path.join(self._folder, name))
        reasons: list[str] = []
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                # Slots are restored when the optimizer makes them in its first step; a run that is finished makes none.
                status = self._checkpoint.read(os.path.join(self._path(step), "state")).assert_existing_objects_matched()
                status.expect_partial()
                for newer in damaged:
                    self._put_aside(newer)
                return int(self.step.numpy())
            except (AssertionError, ValueError, tf.errors.OpError) as e:
                damaged.append(step)
                reasons.append(f"{self._path(step)}: {' '.join(str(e).split())[:200]}")
        if reasons:
            raise CheckpointError(f"no checkpoint of this run can be read: {'; '.join(reasons)}")
        return 0

    def _put_aside(self, step: int) -> None:
        if self._write:
            aside = os.path.join(self._folder, f"damaged-step-{step:010d}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self._path(step), aside)

    def _path(self, step: int) -> str:
        return os.path.join(self._folder, f"step-{step:010d}")
