"""A `DLRMConfig` from the shapes of a checkpoint's tensors."""

from dlrm_tf.checkpoints.names import Weight
from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError

# (interaction, self_interaction) -> width of the top MLP's input for n vectors of width d.
_INTERACTIONS = {
    ("dot", False): lambda n, d: d + n * (n - 1) // 2,
    ("dot", True): lambda n, d: d + n * (n + 1) // 2,
    ("cat", False): lambda n, d: n * d,
}


def infer_config(shapes: dict, path: str) -> DLRMConfig:
    """The configuration whose weights have these shapes.

    Args:
      shapes: `Weight` -> shape, kernels `[in, out]`.
      path: the file, for errors.

    Raises:
      CheckpointError: layers or tables are missing, shapes do not fit each other, or two interactions would fit.
    """
    bottom, top = (_widths(shapes, mlp, path) for mlp in ("bottom_mlp", "top_mlp"))
    count = 1 + max((w.index for w in shapes if w.part == "embedding"), default=-1)
    if not count:
        raise CheckpointError(f"{path}: has no embedding table")
    tables = [_matrix(shapes, Weight("embedding", f, "table"), path) for f in range(count)]
    width = bottom[-1]
    fitting = [kind for kind, dim in _INTERACTIONS.items() if dim(count + 1, width) == top[0]]
    if len(fitting) != 1:
        wanted = ", ".join(
            f"{kind}{' with self' if own else ''} {dim(count + 1, width)}" for (kind, own), dim in _INTERACTIONS.items()
        )
        which = "no interaction fits" if not fitting else "more than one interaction fits: give the configuration (--config)"
        raise CheckpointError(
            f"{path}: {which}: top_mlp's first kernel takes {top[0]} values, {count} tables of width {width} give {wanted}"
        )
    try:
        return DLRMConfig(
            categorical_feature_sizes=[rows for rows, _ in tables],
            dense_dim=bottom[0],
            embedding_dim=tables[0][1],
            bottom_mlp=bottom[1:],
            top_mlp=top[1:],
            interaction=fitting[0][0],
            self_interaction=fitting[0][1],
        )
    except ValueError as e:
        raise CheckpointError(f"{path}: the tensors' shapes make no DLRM: {e}") from e


def _widths(shapes: dict, mlp: str, path: str) -> list[int]:
    """`[in, out of layer 0, out of layer 1, …]` of one MLP."""
    count = 1 + max((w.index for w in shapes if w.part == mlp), default=-1)
    if not count:
        raise CheckpointError(f"{path}: has no layer of {mlp}")
    kernels = [_matrix(shapes, Weight(mlp, i, "kernel"), path) for i in range(count)]
    for i, (before, after) in enumerate(zip(kernels, kernels[1:])):
        if before[1] != after[0]:
            raise CheckpointError(f"{path}: {mlp} layer {i} gives {before[1]} values, layer {i + 1} takes {after[0]}")
    return [kernels[0][0], *(out for _, out in kernels)]


def _matrix(shapes: dict, weight: Weight, path: str) -> tuple:
    if weight not in shapes:
        raise CheckpointError(f"{path}: {weight.part} {weight.index} has no {weight.kind}")
    if len(shapes[weight]) != 2:
        raise CheckpointError(
            f"{path}: {weight.part} {weight.index}: wanted a {weight.kind} of two dimensions. Received {shapes[weight]}"
        )
    return shapes[weight]
