"""Optimizers for the embedding table: they touch only the rows of a batch, each once.

They build on Keras's older `OptimizerV2` family, whose sparse paths are fused kernels: the newer optimizers rewrite whole tables
for a sparse gradient (SGD too, even without momentum), and so does Adam in every version.
"""

from typing import Union

from dlrm_tf.keras2 import tensorflow

tf = tensorflow()
# The OptimizerV2 family: tf.keras.optimizers.legacy in Keras 2.11 and later, tf.keras.optimizers before.
legacy = getattr(tf.keras.optimizers, "legacy", tf.keras.optimizers)
LearningRate = Union[float, tf.keras.optimizers.schedules.LearningRateSchedule]


class _SumsDuplicates:
    """Mixed into an `OptimizerV2`: `_resource_apply_sparse` gets every row of a batch once, with the sum of its gradients.

    The sums are those of `OptimizerV2`, in the order of the batch; rows that are distinct already are not summed again.

    Attributes:
      l2: gradient of every row of a batch, per unit of the row: the penalty is `l2 / 2 * sum(row ** 2)` over the distinct rows
        that the step uses. It reaches sparse gradients only, which a table's are.
    """

    l2 = 0.0

    def _resource_apply_sparse_duplicate_indices(self, grad, var, indices, **kwargs):
        if not _are_distinct(indices):
            indices, place = tf.unique(indices)
            grad = tf.math.unsorted_segment_sum(grad, place, tf.shape(indices)[0])
        if self.l2:  # here, where replicas' gradients are one already and a row comes once
            grad += self.l2 * tf.gather(var, indices)
        return self._resource_apply_sparse(grad, var, indices, **kwargs)


def _are_distinct(indices: tf.Tensor) -> bool:
    """Whether indices are the distinct values of a `tf.unique`, as `FusedEmbedding`'s are on one device; False when unknown."""
    while _made_by(indices, "Reshape", "Identity"):
        indices = indices.op.inputs[0]
    return _made_by(indices, "Unique") and indices.value_index == 0


def _made_by(tensor: tf.Tensor, *types: str) -> bool:
    # An eager tensor has no operation, even where a graph uses it.
    return hasattr(tensor, "op") and tensor.op.type in types


class SGD(_SumsDuplicates, legacy.SGD):
    """Stochastic gradient descent without momentum; the same input gives the same bits in every run.

    Keras's SGD subtracts the rows of a batch from the table one by one in several threads, so that a row used more than once is
    summed in another order in every run. Here duplicates are summed first, in the order of the batch.

    Without a `tf.distribute` strategy, rows are read, changed and written back: threads that train one model at the same time
    may lose each other's updates of a row. With a strategy, each row is subtracted under a lock, as in Keras.

    Args:
      learning_rate: float or schedule.
      momentum: 0; it exists for Keras's `from_config`, as does the next one.
      nesterov: False.
      name: the optimizer's name.
      **kwargs: of Keras's optimizers: `clipnorm`, `clipvalue`, `global_clipnorm`.

    Raises:
      ValueError: momentum, which a table's rows would not get.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.15,
        momentum: float = 0.0,
        nesterov: bool = False,
        name: str = "SGD",
        **kwargs,
    ):
        if momentum or nesterov:
            raise ValueError(
                "momentum must be 0 and nesterov False, the table has none; make_optimizer('sgd', momentum=...) gives it "
                f"to the MLPs. Received momentum={momentum}, nesterov={nesterov}"
            )
        super().__init__(learning_rate, name=name, **kwargs)

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        key = (var.device, var.dtype.base_dtype)
        rate = ((apply_state or {}).get(key) or self._fallback_apply_state(*key))["lr_t"]
        if tf.distribute.has_strategy():  # workers of a parameter server may update the same row at the same time
            return tf.raw_ops.ResourceScatterSub(resource=var.handle, indices=indices, updates=rate * grad)
        # Four times as fast: gather prefetches the rows, and nothing is locked.
        rows = tf.gather(var, indices) - rate * grad
        return tf.raw_ops.ResourceScatterUpdate(resource=var.handle, indices=indices, updates=rows)


class Adagrad(_SumsDuplicates, legacy.Adagrad):
    """Keras's Adagrad (Duchi et al. 2011)."""


class RowwiseAdagrad(_SumsDuplicates, legacy.Optimizer):
    """Adagrad with one accumulator per row: `a_r += mean(g_r^2); w_r -= lr g_r / sqrt(a_r)`.

    1/D of Adagrad's state for a table of width D; for a vector (a bias) it is Adagrad. As "exact row-wise Adagrad" in
    FBGEMM (https://pytorch.org/FBGEMM), without its epsilon: the accumulator's start keeps the quotient finite.

    Args:
      learning_rate: float or schedule.
      initial_accumulator: start of every accumulator, > 0.
      name: the optimizer's name.
      **kwargs: of Keras's optimizers: `clipnorm`, `clipvalue`, `global_clipnorm`.
    """

    def __init__(
        self, learning_rate: LearningRate = 0.02, *, initial_accumulator: float = 0.1, name: str = "RowwiseAdagrad", **kwargs
    ):
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

    def get_config(self) -> dict:
        """What `from_config` needs to make the same optimizer."""
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
