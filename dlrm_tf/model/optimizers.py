"""The model's optimizers by name, composites of them, and the refusal of those that rewrite a large table in every step."""

from collections.abc import Iterable
from typing import Any, Optional, Union

from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.table_optimizers import SGD, Adagrad, LazyAdam, LearningRate, RowwiseAdagrad, legacy

tf = tensorflow()
tfrs = recommenders()

# Learning rate used when none is given. SGD's is upstream's (MindSpore models, research/recommend/dlrm, batch 128).
DEFAULT_LEARNING_RATES = {"sgd": 0.15, "adagrad": 0.02, "rowwise_adagrad": 0.02, "lazy_adam": 0.001}
# Optimizers that may be named for the MLPs alone.
DENSE_OPTIMIZERS = ("sgd", "adagrad", "adam")
# A table smaller than this may be rewritten every step by whatever optimizer the user brings.
DENSE_UPDATE_LIMIT_BYTES = 64 << 20


def make_optimizer(
    name: str,
    learning_rate: Optional[LearningRate] = None,
    *,
    momentum: float = 0.0,
    initial_accumulator: float = 0.1,
    dense: Union[None, str, legacy.Optimizer] = None,
    dense_learning_rate: Optional[LearningRate] = None,
    l2: float = 0.0,
) -> legacy.Optimizer:
    """An optimizer that touches only the table's rows in the batch.

    Args:
      name: `"sgd"`: `w -= lr g`; `"adagrad"`: `a += g^2; w -= lr g / sqrt(a)`, MindSpore's, a starts at `initial_accumulator`;
        `"rowwise_adagrad"`: one accumulator per table row (`RowwiseAdagrad`), Adagrad for the MLPs;
        `"lazy_adam"`: Adam whose moments move only when their row is used (`LazyAdam`).
      learning_rate: float, or a Keras `LearningRateSchedule` of the step; `DEFAULT_LEARNING_RATES[name]` when None.
      momentum: with `"sgd"`, momentum of the MLPs; the table never has any (a momentum slot would have to decay for every row).
      initial_accumulator: with the Adagrads, the accumulators' start, > 0.
      dense: another optimizer for the MLPs: `"sgd"`, `"adagrad"`, `"adam"`, or an `OptimizerV2`.
      dense_learning_rate: with a name as `dense`; the table's learning rate when None.
      l2: adds `l2 * row` to the gradient of every distinct row of the table that a step uses, before the optimizer sees it:
        the penalty `l2 / 2 * sum(row ** 2)` over those rows, beside the mean loss of the batch. The MLPs have none.

    Returns:
      A `tf.keras.optimizers.legacy.Optimizer` (TF 2.6: `tf.keras.optimizers.Optimizer`).

    Raises:
      ValueError: an unknown name, or an option that does not go with it.

    Example:
      model.compile(make_optimizer("adagrad", 0.02))
    """
    if name not in DEFAULT_LEARNING_RATES:
        raise ValueError(f"optimizer must be one of {', '.join(DEFAULT_LEARNING_RATES)}. Received {name!r}")
    if isinstance(dense, str) and dense not in DENSE_OPTIMIZERS:
        raise ValueError(f"dense optimizer must be one of {', '.join(DENSE_OPTIMIZERS)}. Received {dense!r}")
    if momentum and (name != "sgd" or dense not in (None, "sgd")):
        raise ValueError(f"momentum must be 0: it goes with 'sgd' for the dense part. Received {momentum} with {dense or name!r}")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1). Received {momentum}")
    if initial_accumulator <= 0:
        raise ValueError(f"initial_accumulator must be positive. Received {initial_accumulator}")
    if not 0 <= l2 < float("inf"):
        raise ValueError(f"l2 must be a number of at least 0. Received {l2}")
    if dense_learning_rate is not None and not isinstance(dense, str):
        raise ValueError(f"dense must be a name with dense_learning_rate. Received {dense!r}")
    rate = DEFAULT_LEARNING_RATES[name] if learning_rate is None else learning_rate
    dense_rate = rate if dense_learning_rate is None else dense_learning_rate
    for value in (rate, dense_rate):
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            raise ValueError(f"learning_rate must be a positive number. Received {value}")

    if dense is None:
        dense = "sgd" if momentum else "adagrad" if name == "rowwise_adagrad" else None
    if isinstance(dense, str):
        dense = {
            "sgd": lambda: legacy.SGD(dense_rate, momentum=momentum),
            "adagrad": lambda: legacy.Adagrad(dense_rate, initial_accumulator_value=initial_accumulator, epsilon=0.0),
            "adam": lambda: legacy.Adam(dense_rate),
        }[dense]()
    table = {
        "sgd": lambda: SGD(rate),
        "adagrad": lambda: Adagrad(rate, initial_accumulator_value=initial_accumulator, epsilon=0.0),
        "rowwise_adagrad": lambda: RowwiseAdagrad(rate, initial_accumulator=initial_accumulator),
        "lazy_adam": lambda: LazyAdam(rate),
    }[name]()
    table.l2 = l2
    return table if dense is None else TableAndDense(table, dense)


class TableAndDense(tfrs.experimental.optimizers.CompositeOptimizer):
    """One optimizer for the embedding table, another one for everything else.

    TFRS's composite needs the model's variables when it is made; this one sorts them when gradients arrive, so it can be made
    before the model and under any strategy.

    Args:
      table: `OptimizerV2` for the embedding table.
      dense: `OptimizerV2` for the other variables.
      name: the optimizer's name.

    Attributes:
      table: the optimizer given.
      dense: the optimizer given.
    """

    def __init__(self, table: legacy.Optimizer, dense: legacy.Optimizer, *, name: str = "TableAndDense"):
        self._table_variables: list[tf.Variable] = []
        self._dense_variables: list[tf.Variable] = []
        super().__init__([(dense, lambda: self._dense_variables), (table, lambda: self._table_variables)], name=name)

    @property
    def table(self) -> legacy.Optimizer:
        """The optimizer of the embedding table."""
        return self.optimizers[1]

    @property
    def dense(self) -> legacy.Optimizer:
        """The optimizer of the other variables."""
        return self.optimizers[0]

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, tf.Variable]],
        name: Optional[str] = None,
        experimental_aggregate_gradients: bool = True,
    ) -> tf.Operation:
        """One step of both optimizers, Keras's arguments.

        Args:
          grads_and_vars: pairs of a gradient (tensor or `IndexedSlices`) and its variable.
          name: of the operation.
          experimental_aggregate_gradients: whether replicas sum their gradients first.
        """
        grads_and_vars = list(grads_and_vars)
        (_, self._dense_variables), (_, self._table_variables) = parts(self, [v for _, v in grads_and_vars])
        super().apply_gradients(grads_and_vars, name, experimental_aggregate_gradients)
        # TFRS returns nothing, but a loss scale needs an operation.
        return tf.group()


def parts(optimizer: Any, variables: Iterable[tf.Variable] = ()) -> list[tuple[Any, list[tf.Variable]]]:
    """The optimizers that do the steps, behind a loss scale and inside a composite, each with its share of the variables.

    Args:
      optimizer: a Keras optimizer, ours or another.
      variables: trainable variables of the model; leave out where only the optimizers are wanted.

    Returns:
      `[(optimizer, [variable, ...]), ...]`. Two pairs for a `TableAndDense`, the dense optimizer first; one for any other, also
      for TFRS's own composite, which does not tell how it shares variables out.
    """
    inner = getattr(optimizer, "inner_optimizer", None)  # a loss scale, Keras's or the Ascend plugin's
    if inner is not None:
        return parts(inner, variables)
    variables = list(variables)
    if isinstance(optimizer, TableAndDense):
        table = [v for v in variables if is_table(v)]
        return [(optimizer.dense, [v for v in variables if not is_table(v)]), (optimizer.table, table)]
    return [(optimizer, variables)]


def is_table(variable: tf.Variable) -> bool:
    """Whether a variable is the embedding table, or a partition of it on a parameter server (`table/part_0`)."""
    return "table" in variable.name.split(":")[0].split("/")


def sparse_safe(optimizer: Any, table_bytes: int) -> Any:
    """The optimizer a name stands for; refuses one that would rewrite a large table in every step.

    Args:
      optimizer: a name of `make_optimizer` or of Keras, or a Keras optimizer.
      table_bytes: size of the embedding table.

    Returns:
      The optimizer to compile the model with.

    Raises:
      ValueError: the optimizer updates whole tables and the table is larger than `DENSE_UPDATE_LIMIT_BYTES`.
    """
    if isinstance(optimizer, str) and optimizer in DEFAULT_LEARNING_RATES:
        return make_optimizer(optimizer)
    if not hasattr(optimizer, "apply_gradients"):
        optimizer = tf.keras.optimizers.get(optimizer)
    if table_bytes > DENSE_UPDATE_LIMIT_BYTES:
        for part in _table_optimizers(optimizer):
            if _rewrites_tables(part):
                raise ValueError(
                    f"{type(part).__module__}.{type(part).__name__} rewrites the whole embedding table in every step "
                    f"({table_bytes / 1e6:,.0f} MB): use {', '.join(map(repr, DEFAULT_LEARNING_RATES))}, "
                    "dlrm_tf.model.optimizers.make_optimizer, or tf.keras.optimizers.legacy.SGD or Adagrad"
                )
    return optimizer


def _table_optimizers(optimizer) -> list:
    """The optimizers that may update the table."""
    (*_, (last, _)) = parts(optimizer)  # of a TableAndDense, the table's
    return last.optimizers if isinstance(last, tfrs.experimental.optimizers.CompositeOptimizer) else [last]


def _rewrites_tables(optimizer) -> bool:
    if isinstance(optimizer, LazyAdam):
        return False
    if isinstance(optimizer, legacy.Optimizer):
        return isinstance(optimizer, (legacy.Adam, legacy.Adamax, legacy.Nadam, legacy.RMSprop))
    return not isinstance(optimizer, tf.keras.optimizers.Adagrad)
