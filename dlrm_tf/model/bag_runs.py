"""Where the bags of a row stand. Needs no TensorFlow: the Keras 3 twin runs on other backends."""

import itertools

from dlrm_tf.config import DLRMConfig


def bag_runs(config: DLRMConfig) -> list[tuple[int, int, int]]:
    """Neighbouring features with bags of one size: each run is summed as one `[batch_size, features, size, D]`.

    Args:
      config: the model's configuration.

    Returns:
      `(first column, features, size of a bag)` of each run; together they are all columns of `categorical`, in order.
    """
    runs, column = [], 0
    for size, features in itertools.groupby(config.bag_sizes):
        count = len(list(features))
        runs.append((column, count, size))
        column += count * size
    return runs
