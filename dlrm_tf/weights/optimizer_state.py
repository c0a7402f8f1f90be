"""Optimizer state inside a weights file: group `optimizer_state/<path of the weight>/<slot>`, beside the weights.

Each slot has its weight's shape and is float32. The values are those of the program that trained; the group's attributes say of
which optimizer they are: `optimizer` (`"sgd"`, `"momentum"`, `"adagrad"`) and others. Keras's `load_weights` ignores the group.
"""

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from dlrm_tf.errors import CheckpointError
from dlrm_tf.weights.layout import weight_shapes
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter

GROUP = "optimizer_state"


class OptimizerStateWriter:
    """Adds optimizer state to a weights file that is being written.

    Args:
      writer: the open `WeightsWriter`.
      attributes: what to note of the optimizer: its name as `optimizer`, and NumPy scalars such as `learning_rate`.
    """

    def __init__(self, writer: WeightsWriter, attributes: Mapping[str, Any]) -> None:
        self._shapes = weight_shapes(writer.config)
        self._group = writer.create_group(GROUP)
        self._group.attrs.update(attributes)

    def create(self, slot: str, constant: Optional[np.float32] = None) -> None:
        """Makes a slot for every weight.

        Args:
          slot: its name, for example `"accum"`.
          constant: the value of elements that are never written; a slot without any written takes no room on the disk.
        """
        for path, shape in self._shapes.items():
            self._group.create_dataset(f"{path}/{slot}", shape, np.float32, fillvalue=constant)

    def write(self, slot: str, path: str, start: int, values: np.ndarray) -> None:
        """Writes one weight's slot.

        Args:
          slot: its name.
          path: path of the weight.
          start: the first row to write.
          values: float32 rows.
        """
        self._group[f"{path}/{slot}"][start : start + len(values)] = values


class OptimizerStateReader:
    """The optimizer state in an open weights file.

    Args:
      reader: the open `WeightsReader`.

    Attributes:
      attributes: what was noted of the optimizer; empty when the file holds no optimizer state.
      slots: names of the slots.
      paths: paths of the weights.

    Raises:
      CheckpointError: a slot is missing, misshaped or not float32; all are named.
    """

    def __init__(self, reader: WeightsReader) -> None:
        self._file = reader.file
        self._shapes = weight_shapes(reader.config)
        self.paths = tuple(self._shapes)
        self.attributes = reader.file.group_attributes.get(GROUP, {})
        first = f"{GROUP}/{self.paths[0]}/"
        self.slots = tuple(sorted(path[len(first) :] for path in reader.file.datasets if path.startswith(first)))
        shapes = {f"{GROUP}/{path}/{slot}": shape for path, shape in self._shapes.items() for slot in self.slots}
        faults = reader.file.faults(shapes)
        if faults:
            raise CheckpointError(f"{reader.path}: {'; '.join(faults[:8])}")

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of the weight at `path` and of each of its slots."""
        return self._shapes[path]

    def read(self, slot: str, path: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of one slot of the weight at `path`, float32."""
        return self._file.read(f"{GROUP}/{path}/{slot}", start, stop)
