"""The network in plain NumPy, from the source's own tensors: what a conversion is checked against. No TensorFlow in it."""

from typing import Callable, Optional

import numpy as np

from dlrm_tf.config import DLRMConfig

# (part, number, kind, ids) -> array: how `logits` is given the weights.
WeightOf = Callable[[str, int, str, Optional[np.ndarray]], np.ndarray]


def logits(config: DLRMConfig, weight: WeightOf, dense: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    """Forward pass of MindSpore's DLRM (MindSpore models, research/recommend/dlrm/src/dlrm.py) and its other heads, in float64.

    Args:
      config: architecture.
      weight: function `(part, number, kind, ids) -> array` that reads a weight. part: one of `DLRMConfig.dense_shapes`, or
        `"embedding"`; number: the layer or categorical feature; kind: `"kernel"` `[in, out]` or `"bias"` `[out]` (ids None), or
        the rows `[len(ids), D]` of a `"table"`.
      dense: `[B, dense_dim]`, already log(max(x, 0) + 1).
      categorical: int `[B, F]`, each id within its feature.

    Returns:
      float64 `[B, 1]`; the probability is its sigmoid.
    """
    bottom = _mlp(np.asarray(dense, np.float64), weight, "bottom_mlp", len(config.bottom_mlp), last_relu=True)  # B X D
    rows = [np.asarray(weight("embedding", f, "table", categorical[:, f]), np.float64) for f in range(config.num_categorical)]
    vectors = np.stack([bottom, *rows], axis=1)  # B X (F + 1) X D
    if config.interaction == "cat":
        top = vectors.reshape(len(vectors), -1)  # B X (F + 1) D
    elif config.interaction == "cross":
        top = _cross(vectors.reshape(len(vectors), -1), weight, config)  # B X (F + 1) D
    else:
        gram = vectors @ vectors.transpose(0, 2, 1)  # B X (F + 1) X (F + 1)
        i, j = np.tril_indices(config.num_categorical + 1, 0 if config.self_interaction else -1)
        top = np.concatenate([bottom, gram[:, i, j]], axis=1)  # B X (D + pairs)
    return _mlp(top, weight, "top_mlp", len(config.top_mlp), last_relu=False)


def _cross(x0: np.ndarray, weight: WeightOf, config: DLRMConfig) -> np.ndarray:
    """DCNv2's cross layers (https://arxiv.org/abs/2008.13535, equations 1 and 2)."""
    x = x0
    for i in range(config.cross_layers):
        product = x
        if config.cross_rank is not None:
            product = product @ np.asarray(weight("cross_projection", i, "kernel", None), np.float64)
        product = product @ np.asarray(weight("cross", i, "kernel", None), np.float64)
        x = x0 * (product + np.asarray(weight("cross", i, "bias", None), np.float64)) + x
    return x


def _mlp(x: np.ndarray, weight: WeightOf, mlp: str, layers: int, last_relu: bool) -> np.ndarray:
    for i in range(layers):
        x = x @ np.asarray(weight(mlp, i, "kernel", None), np.float64) + np.asarray(weight(mlp, i, "bias", None), np.float64)
        if last_relu or i < layers - 1:
            x = np.maximum(x, 0)
    return x
