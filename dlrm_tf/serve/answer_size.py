"""How large an answer will be, from the shapes in the graph: gigabytes are refused before they are computed."""

import math
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from dlrm_tf.serving_api.errors import RequestError


class AnswerSize:
    """The least size of one call's outputs, for any number of rows.

    A dimension that the graph does not know counts as 1; the first one counts as the rows of the inputs where those agree on
    them and the graph leaves them open too. A byte string counts as one byte.

    Args:
      inputs: the graph's tensors that are fed.
      outputs: those that are fetched.
      limit: bytes.
    """

    def __init__(self, inputs: Sequence[Any], outputs: Sequence[Any], limit: int):
        self._limit = limit
        self._in_rows = bool(inputs) and all(tensor.shape.rank and tensor.shape[0] is None for tensor in inputs)
        self._fixed_bytes = self._row_bytes = 0
        for tensor in outputs:
            sizes = tensor.shape.as_list() if tensor.shape.rank else []
            known = math.prod(1 if size is None else size for size in sizes) * max(tensor.dtype.size or 1, 1)
            if sizes and sizes[0] is None:
                self._row_bytes += known
            else:
                self._fixed_bytes += known

    def check(self, arrays: Sequence[np.ndarray]) -> None:
        """Raises RequestError, RESOURCE_EXHAUSTED, when the answer to `arrays` would be larger than the limit."""
        size = self._fixed_bytes + self._row_bytes
        if self._in_rows and arrays[0].ndim and all(len(array) == len(arrays[0]) for array in arrays if array.ndim):
            size = self._fixed_bytes + self._row_bytes * len(arrays[0])
        if size > self._limit:
            raise RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The answer would have {size} bytes, more than {self._limit} (--max_answer_bytes); ask for less",
            )
