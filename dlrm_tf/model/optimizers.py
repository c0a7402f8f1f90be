"""Optimizers whose work a step grows with the batch, not with the embedding table.

The optimizers of newer Keras rewrite whole tables for a sparse gradient (SGD too, even without momentum), and so does Adam in
every version. These build on the older `OptimizerV2` family, whose sparse paths are fused kernels; it is
`tf.keras.optimizers.legacy` in Keras 2.11 and later and `tf.keras.optimizers` before.
"""

from dlrm_tf.keras2 import recommenders, tensorflow

tf = tensorflow()
tfrs = recommenders()
legacy = getattr(tf.keras.optimizers, "legacy", tf.keras.optimizers)

# Learning rate used when none is given. SGD's is upstream's (MindSpore models, research/recommend/dlrm, batch 128).
DEFAULT_LEARNING_RATES = {"sgd": 0.15, "adagrad": 0.02, "rowwise_adagrad": 0.02, "lazy_adam": 0.001}
# Optimizers that may be named for the MLPs alone.
DENSE_OPTIMIZERS = ("sgd", "adagrad", "adam")
# A table smaller than this may be rewritten every step by whatever optimizer the user brings.
DENSE_UPDATE_LIMIT_BYTES = 64 << 20


def make_optimizer(
    name: str, learning_rate=None, momentum: float = 0.0, initial_accumulator: float = 0.1, dense=None, dense_learning_rate=None
):
    """An optimizer that touches only the table's rows in the batch.

    Args:
      name: `"sgd"`: `w -= lr g`; `"adagrad"`: `a += g^2; w -= lr g / sqrt(a)`, MindSpore's, a starts at `initial_accumulator`;
        `"rowwise_adagrad"`: one accumulator a table row (`RowwiseAdagrad`), Adagrad for the MLPs;
        `"lazy_adam"`: Adam whose moments move only when their row is used (`LazyAdam`).
      learning_rate: float, or a Keras `LearningRateSchedule` of the step; `DEFAULT_LEARNING_RATES[name]` when None.
      momentum: with `"sgd"`, momentum of the MLPs; the table never has any (a momentum slot would have to decay for every row).
      initial_accumulator: with the Adagrads, the accumulators' start, > 0.
      dense: another optimizer for the MLPs: `"sgd"`, `"adagrad"`, `"adam"`, or an `OptimizerV2`.
      dense_learning_rate: with a name as `dense`; the table's learning rate when None.

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
        raise ValueError(f"momentum goes with 'sgd' for the dense part. Received momentum={momentum} with {dense or name!r}")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1). Received {momentum}")
    if initial_accumulator <= 0:
        raise ValueError(f"initial_accumulator must be positive. Received {initial_accumulator}")
    if dense_learning_rate is not None and not isinstance(dense, str):
        raise ValueError(f"dense_learning_rate goes with a named dense optimizer. Received dense={dense!r}")
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
        "rowwise_adagrad": lambda: RowwiseAdagrad(rate, initial_accumulator),
        "lazy_adam": lambda: LazyAdam(rate),
    }[name]()
    return table if dense is None else TableAndDense(table, dense)


class _SumsDuplicates:
    """Mixed into an `OptimizerV2`: `_resource_apply_sparse` gets every row of a batch once, with the sum of its gradients.

    As `OptimizerV2` does it, in the order of the batch; but nothing is summed again where every row is there once already.
    """

    def _resource_apply_sparse_duplicate_indices(self, grad, var, indices, **kwargs):
        if not _are_distinct(indices):
            indices, place = tf.unique(indices)
            grad = tf.math.unsorted_segment_sum(grad, place, tf.shape(indices)[0])
        return self._resource_apply_sparse(grad, var, indices, **kwargs)


def _are_distinct(indices) -> bool:
    """Whether indices are the distinct values of a `tf.unique`, as `FusedEmbedding`'s are on one device; False when unsure."""
    while _made_by(indices, "Reshape", "Identity"):
        indices = indices.op.inputs[0]
    return _made_by(indices, "Unique") and indices.value_index == 0


def _made_by(tensor, *types) -> bool:
    # An eager tensor has no operation, also where a graph uses it.
    return hasattr(tensor, "op") and tensor.op.type in types


class SGD(_SumsDuplicates, legacy.SGD):
    """Stochastic gradient descent without momentum, which gives the same bits every time.

    Keras's adds the rows of a batch to the table one by one from several threads, so that rows used more than once are summed
    in another order in every run. Here duplicates are summed first, in the order of the batch.

    Without a `tf.distribute` strategy, rows are read, changed and written: threads that step one model at the same time may
    lose each other's updates of a row. With one, they are subtracted under a lock a row, as Keras does.

    Args:
      learning_rate: float or schedule.
      momentum, nesterov: 0 and False, there for Keras's `from_config`.

    Raises:
      ValueError: momentum, which a table's rows would not get.
    """

    def __init__(self, learning_rate=0.15, momentum=0.0, nesterov=False, name="SGD", **kwargs):
        if momentum or nesterov:
            raise ValueError(
                "momentum must be 0 and nesterov False, the table has none; make_optimizer('sgd', momentum=...) gives it "
                f"to the MLPs. Received momentum={momentum}, nesterov={nesterov}"
            )
        super().__init__(learning_rate, name=name, **kwargs)

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        key = (var.device, var.dtype.base_dtype)
        rate = ((apply_state or {}).get(key) or self._fallback_apply_state(*key))["lr_t"]
        if tf.distribute.has_strategy():  # the workers of a parameter server meet in a row
            return tf.raw_ops.ResourceScatterSub(resource=var.handle, indices=indices, updates=rate * grad)
        # Four times as fast: the reading fetches rows ahead, and nothing is locked.
        rows = tf.gather(var, indices) - rate * grad
        return tf.raw_ops.ResourceScatterUpdate(resource=var.handle, indices=indices, updates=rows)


class Adagrad(_SumsDuplicates, legacy.Adagrad):
    """Keras's Adagrad (Duchi et al. 2011)."""


class RowwiseAdagrad(_SumsDuplicates, legacy.Optimizer):
    """Adagrad with one accumulator a row: `a_r += mean(g_r^2); w_r -= lr g_r / sqrt(a_r)`.

    1/D of Adagrad's state for a table of width D; for a vector (a bias) it is Adagrad. As "exact row-wise Adagrad" in
    FBGEMM (https://pytorch.org/FBGEMM), without its epsilon: the accumulator's start keeps the quotient finite.

    Args:
      learning_rate: float or schedule.
      initial_accumulator: start of every accumulator, > 0.
    """

    def __init__(self, learning_rate=0.02, initial_accumulator: float = 0.1, name="RowwiseAdagrad", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", learning_rate)
        self._initial_accumulator = initial_accumulator

    def _create_slots(self, var_list):
        for var in var_list:
            start = tf.fill(var.shape[:1], tf.cast(self._initial_accumulator, var.dtype.base_dtype))
            self.add_slot(var, "accumulator", start)

    def _rate(self, var, apply_state):
        key = (var.device, var.dtype.base_dtype)
        return ((apply_state or {}).get(key) or self._fallback_apply_state(*key))["lr_t"]

    @staticmethod
    def _row_mean(square):
        return tf.reduce_mean(tf.reshape(square, [tf.shape(square)[0], -1]), axis=1)

    @staticmethod
    def _like_rows(values, grad):
        return tf.reshape(values, tf.concat([tf.shape(values), tf.ones([tf.rank(grad) - 1], tf.int32)], 0))

    def _resource_apply_dense(self, grad, var, apply_state=None):
        accumulator = self.get_slot(var, "accumulator")
        value = accumulator.assign_add(self._row_mean(tf.square(grad)), read_value=True)
        return var.assign_sub(self._rate(var, apply_state) * grad * self._like_rows(tf.math.rsqrt(value), grad))

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        accumulator = self.get_slot(var, "accumulator")
        value = tf.gather(accumulator, indices) + self._row_mean(tf.square(grad))
        update = self._rate(var, apply_state) * grad * self._like_rows(tf.math.rsqrt(value), grad)
        return tf.group(
            tf.raw_ops.ResourceScatterUpdate(resource=accumulator.handle, indices=indices, updates=value),
            tf.raw_ops.ResourceScatterSub(resource=var.handle, indices=indices, updates=update),
        )

    def get_config(self):
        config = super().get_config()
        config["learning_rate"] = self._serialize_hyperparameter("learning_rate")
        config["initial_accumulator"] = self._initial_accumulator
        return config


class LazyAdam(_SumsDuplicates, legacy.Adam):
    """Adam (Kingma and Ba 2015, algorithm 1) whose moments of a row decay only in steps that use the row.

    Adam itself decays every moment and moves every row in every step, which for a large table costs the whole table. The
    bias correction counts all steps, as in TensorFlow Addons' LazyAdam.
    """

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        key = (var.device, var.dtype.base_dtype)
        c = (apply_state or {}).get(key) or self._fallback_apply_state(*key)
        m_slot, v_slot = self.get_slot(var, "m"), self.get_slot(var, "v")
        m = tf.gather(m_slot, indices) * c["beta_1_t"] + grad * c["one_minus_beta_1_t"]
        v = tf.gather(v_slot, indices) * c["beta_2_t"] + tf.square(grad) * c["one_minus_beta_2_t"]
        # c["lr"] is lr * sqrt(1 - beta2^t) / (1 - beta1^t).
        return tf.group(
            tf.raw_ops.ResourceScatterUpdate(resource=m_slot.handle, indices=indices, updates=m),
            tf.raw_ops.ResourceScatterUpdate(resource=v_slot.handle, indices=indices, updates=v),
            tf.raw_ops.ResourceScatterSub(
                resource=var.handle, indices=indices, updates=c["lr"] * m / (tf.sqrt(v) + c["epsilon"])
            ),
        )


class TableAndDense(tfrs.experimental.optimizers.CompositeOptimizer):
    """One optimizer for the embedding table, another one for everything else.

    TFRS's composite wants to be told the model's variables when it is made; this one sorts them as they come, so it can be
    made before the model and on any strategy.

    Args:
      table: `OptimizerV2` for the embedding table.
      dense: `OptimizerV2` for the other variables.
    """

    def __init__(self, table, dense, name="TableAndDense"):
        self._table_variables, self._dense_variables = [], []
        super().__init__([(dense, lambda: self._dense_variables), (table, lambda: self._table_variables)], name=name)

    def apply_gradients(self, grads_and_vars, name=None, experimental_aggregate_gradients=True):
        """See `tf.keras.optimizers.legacy.Optimizer.apply_gradients`."""
        grads_and_vars = list(grads_and_vars)
        (_, self._dense_variables), (_, self._table_variables) = self.parts_of(v for _, v in grads_and_vars)
        super().apply_gradients(grads_and_vars, name, experimental_aggregate_gradients)
        # TFRS returns nothing, where a loss scale wants an operation.
        return tf.group()

    def parts_of(self, variables) -> list:
        """`(optimizer, its variables)` of both parts, the dense one first."""
        variables, (dense, table) = list(variables), self.optimizers
        return [(dense, [v for v in variables if not is_table(v)]), (table, [v for v in variables if is_table(v)])]


def parts(optimizer, variables=()) -> list:
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
    if isinstance(optimizer, TableAndDense):
        return optimizer.parts_of(variables)
    return [(optimizer, list(variables))]


def is_table(variable) -> bool:
    """Whether a variable is the embedding table, or a partition of it on a parameter server (`table/part_0`)."""
    return "table" in variable.name.split(":")[0].split("/")


def sparse_safe(optimizer, table_bytes: int):
    """Resolves a name to an optimizer, and refuses one that would rewrite a large table in every step.

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
        for part in _parts(optimizer):
            if _rewrites_tables(part):
                raise ValueError(
                    f"{type(part).__module__}.{type(part).__name__} rewrites the whole embedding table in every step "
                    f"({table_bytes / 1e6:,.0f} MB): use {', '.join(map(repr, DEFAULT_LEARNING_RATES))}, "
                    "dlrm_tf.model.optimizers.make_optimizer, or tf.keras.optimizers.legacy.SGD or Adagrad"
                )
    return optimizer


def _parts(optimizer):
    """The optimizers that reach the table, behind a loss scale or a composite."""
    if isinstance(optimizer, TableAndDense):
        return [optimizer.optimizers[1]]
    if isinstance(optimizer, tfrs.experimental.optimizers.CompositeOptimizer):
        return optimizer.optimizers
    inner = getattr(optimizer, "inner_optimizer", None)
    return [optimizer] if inner is None else _parts(inner)


def _rewrites_tables(optimizer) -> bool:
    if isinstance(optimizer, LazyAdam):
        return False
    if isinstance(optimizer, legacy.Optimizer):
        return isinstance(optimizer, (legacy.Adam, legacy.Adamax, legacy.Nadam, legacy.RMSprop))
    return not isinstance(optimizer, tf.keras.optimizers.Adagrad)
