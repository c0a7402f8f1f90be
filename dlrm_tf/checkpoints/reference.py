"""The network in plain NumPy, from the source's own tensors: what a conversion is checked against. No TensorFlow in it."""

from typing import Callable, Optional

import numpy as np

from dlrm_tf.config import UNUSED_PLACE, DLRMConfig

# (part, number, kind, ids) -> array: how `logits` is given the weights.
WeightOf = Callable[[str, int, str, Optional[np.ndarray]], np.ndarray]


def logits(
    config: DLRMConfig, weight: WeightOf, dense: np.ndarray, categorical: np.ndarray, key_weights: Optional[np.ndarray] = None
) -> np.ndarray:
    """Forward pass of MindSpore's DLRM (MindSpore models, research/recommend/dlrm/src/dlrm.py) and its other heads, in float64.

    Args:
      config: architecture.
      weight: function `(part, number, kind, ids) -> array` that reads a weight. part: one of `DLRMConfig.dense_shapes`, or
        `"embedding"`; number: the layer or categorical feature; kind: `"kernel"` `[in, out]` or `"bias"` `[out]` (ids None), or
        the rows `[len(ids), D]` of a `"table"`.
      dense: `[B, dense_dim]`, already log(max(x, 0) + 1); not looked at without dense features.
      categorical: int `[B, id_columns]`, each id within its feature; -1 in the unused places of a bag.
      key_weights: `[B, id_columns]`, the input `weights` of a weighted model.

    Returns:
      float64 `[B, 1]`; the probability is its sigmoid.
    """
    rows = _pooled(config, weight, np.asarray(categorical), key_weights)  # F times B X D
    if config.dense_dim:
        bottom = _mlp(np.asarray(dense, np.float64), weight, "bottom_mlp", len(config.bottom_mlp), last_relu=True)  # B X D
        rows = [bottom, *rows]
    vectors = np.stack(rows, axis=1)  # B X V X D
    top = vectors.reshape(len(vectors), -1)  # B X V D
    if config.interaction == "cross":
        top = _cross(top, weight, config)  # B X V D
    elif config.interaction == "dot":
        gram = vectors @ vectors.transpose(0, 2, 1)  # B X V X V
        i, j = np.tril_indices(len(rows), 0 if config.self_interaction else -1)
        # B X (D + pairs), or without dense features B X (V D + pairs)
        top = np.concatenate([bottom if config.dense_dim else top, gram[:, i, j]], axis=1)
    return _mlp(top, weight, "top_mlp", len(config.top_mlp), last_relu=False)


def _pooled(config: DLRMConfig, weight: WeightOf, categorical: np.ndarray, key_weights: Optional[np.ndarray]) -> list[np.ndarray]:
    """Per feature `[B, D]`: the rows of its keys, added up one place after the other."""
    vectors, column = [], 0
    for f, (size, pooling) in enumerate(zip(config.bag_sizes, config.poolings)):
        total, counted = np.zeros((len(categorical), config.embedding_dim)), np.zeros((len(categorical), 1))
        for ids in categorical[:, column : column + size].T:
            used = ids != UNUSED_PLACE if config.has_bags else np.ones(len(ids), bool)
            count = used.astype(np.float64)[:, np.newaxis]
            if key_weights is not None:
                count[used, 0] = key_weights[used, column]
            total += count * np.asarray(weight("embedding", f, "table", np.where(used, ids, 0)), np.float64)
            counted += count
            column += 1
        vectors.append(np.divide(total, counted, out=np.zeros_like(total), where=counted != 0) if pooling == "mean" else total)
    return vectors


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
