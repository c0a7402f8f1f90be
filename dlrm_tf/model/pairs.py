"""Which pairs of vectors the dot interaction keeps. Needs NumPy only: the Keras 3 twin runs on other backends than TensorFlow."""

import numpy as np


def pair_positions(vectors: int, self_interaction: bool) -> np.ndarray:
    """Positions of the kept dot products in the flattened matrix `T T^t` of all of them.

    Args:
      vectors: number n of interacting vectors (`DLRMConfig.num_vectors`).
      self_interaction: whether a vector's product with itself is kept.

    Returns:
      int32 `[pairs]` in `[0, n * n)`: the lower triangle row by row, as upstream has it (MindSpore models,
      research/recommend/dlrm), strictly below the diagonal unless `self_interaction`.
    """
    rows, columns = np.tril_indices(vectors, 0 if self_interaction else -1)
    return (rows * vectors + columns).astype(np.int32)
