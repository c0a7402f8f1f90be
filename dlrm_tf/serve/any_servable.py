"""`AnyServable`: what every loaded version can do."""

from collections.abc import Sequence
from typing import Protocol

import grpc
import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from dlrm_tf.errors import ServingError


class NotThereError(ServingError):
    """A version folder does not have the model wanted: no model, or none of the tags."""

    code = grpc.StatusCode.NOT_FOUND


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
