"""A `DLRMConfig` from the shapes of a checkpoint's tensors."""

from dlrm_tf.checkpoints.names import Weight
from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError

Shapes = dict[Weight, tuple[int, ...]]
# The interactions without weights of their own: which one it is shows in the width of the top MLP's input.
_INTERACTIONS = ({"interaction": "dot"}, {"interaction": "dot", "self_interaction": True}, {"interaction": "cat"})


def infer_config(shapes: Shapes, path: str) -> DLRMConfig:
    """The configuration whose weights have these shapes.

    Args:
      shapes: `Weight` -> shape, kernels `[in, out]`.
      path: the file, for errors.

    Raises:
      CheckpointError: layers or tables are missing, shapes do not fit each other, or two interactions would fit.
    """
    bottom, top = (_widths(shapes, mlp, path) for mlp in ("bottom_mlp", "top_mlp"))
    count = _count(shapes, "embedding")
    if not count:
        raise CheckpointError(f"{path}: wanted at least one embedding table. Received none")
    tables = [_matrix(shapes, Weight("embedding", f, "table"), path) for f in range(count)]
    interactions: tuple[dict, ...] = _INTERACTIONS
    if cross_layers := _count(shapes, "cross"):
        low = _count(shapes, "cross_projection")
        rank = _matrix(shapes, Weight("cross_projection", 0, "kernel"), path)[1] if low else None
        interactions = ({"interaction": "cross", "cross_layers": cross_layers, "cross_rank": rank},)
    try:
        configs = [
            DLRMConfig(
                categorical_feature_sizes=tuple(rows for rows, _ in tables),
                dense_dim=bottom[0],
                embedding_dim=tables[0][1],
                bottom_mlp=bottom[1:],
                top_mlp=top[1:],
                **interaction,
            )
            for interaction in interactions
        ]
    except ValueError as e:
        raise CheckpointError(f"{path}: the tensors' shapes make no DLRM: {e}") from e
    fitting = [config for config in configs if config.interaction_dim == top[0]]
    if len(fitting) == 1:
        return fitting[0]
    given = ", ".join(f"{c.interaction}{' with self' if c.self_interaction else ''} {c.interaction_dim}" for c in configs)
    which = "more than one interaction fits: give the configuration (--config)" if fitting else "no interaction fits"
    raise CheckpointError(
        f"{path}: {which}: top_mlp's first kernel takes {top[0]} values, {count} tables of width {bottom[-1]} give {given}"
    )


def _count(shapes: Shapes, part: str) -> int:
    return 1 + max((weight.number for weight in shapes if weight.part == part), default=-1)


def _widths(shapes: Shapes, mlp: str, path: str) -> tuple[int, ...]:
    """`(in, out of layer 0, out of layer 1, …)` of one MLP."""
    kernels = [_matrix(shapes, Weight(mlp, i, "kernel"), path) for i in range(_count(shapes, mlp))]
    if not kernels:
        raise CheckpointError(f"{path}: wanted at least one layer of {mlp}. Received none")
    for i, (before, after) in enumerate(zip(kernels, kernels[1:])):
        if before[1] != after[0]:
            raise CheckpointError(f"{path}: {mlp} layer {i} gives {before[1]} values, layer {i + 1} takes {after[0]}")
    return (kernels[0][0], *(out for _, out in kernels))


def _matrix(shapes: Shapes, weight: Weight, path: str) -> tuple[int, int]:
    """The shape of a weight that must be a matrix."""
    if weight not in shapes:
        raise CheckpointError(f"{path}: {weight.part} {weight.number} has no {weight.kind}")
    shape = shapes[weight]
    if len(shape) != 2:
        raise CheckpointError(
            f"{path}: {weight.part} {weight.number}: wanted a {weight.kind} of two dimensions. Received {shape}"
        )
    return shape[0], shape[1]
