"""`AnyServable`: what every loaded version can do."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef


class AnyServable(Protocol):
    """A loaded version: `Servable`, `LiteServable`, or one of them behind `BatchedServable`.

    Attributes:
      path: its folder.
      signatures: `SignatureDef` by name.
      check_method_names: whether a call must be of the kind that the signature's method name says.
    """

    path: str
    signatures: dict[str, SignatureDef]
    check_method_names: bool

    def run(self, feeds: tuple[str, ...], arrays: Sequence[np.ndarray], fetches: tuple[str, ...]) -> list[np.ndarray]:
        """Values of the tensors named `fetches`, with `arrays` for the tensors named `feeds`; raises RequestError."""

    def close(self) -> None:
        """Frees the model's memory; no call may be under way."""
