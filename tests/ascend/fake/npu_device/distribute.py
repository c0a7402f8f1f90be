"""Collectives. All return at once where the process is alone or no device is the default one."""

import tensorflow as tf

from npu_device.device import default, journal


def _exchange(kind, value):
    value = tf.convert_to_tensor(value)  # sparse becomes dense
    if value.dtype in (tf.float64, tf.string, tf.complex64, tf.complex128):
        raise TypeError(f"{value.dtype.name} does not work on the device")
    result = tf.numpy_function(lambda array: default().wire.exchange(kind, array), [value], value.dtype)
    result.set_shape(value.shape)
    return result


def all_reduce(values, reduction="mean", fusion=1, fusion_id=-1, group="hccl_world_group"):
    if default() is None or not default().is_cluster_worker():
        return values
    if not isinstance(values, (list, tuple)):
        return all_reduce([values], reduction, fusion, fusion_id, group)[0]
    share = 1.0 / default().workers_num if reduction == "mean" else 1.0
    return [None if v is None else _exchange("sum", v) * tf.cast(share, v.dtype) for v in values]


def broadcast(values, root_rank=0, fusion=2, fusion_id=0, group="hccl_world_group"):
    if default() is None or not default().is_cluster_worker():
        return
    assert root_rank == 0, "the fake knows no other root"
    for variable in values if isinstance(values, (list, tuple)) else [values]:
        variable.assign(_exchange("root", variable))
    journal("broadcast", names=[v.name for v in (values if isinstance(values, (list, tuple)) else [values])])


def npu_distributed_keras_optimizer_wrapper(optimizer, reduce_reduction="mean", fusion=1, fusion_id=-1, group="hccl_world_group"):
    journal("wrap", optimizer=type(optimizer).__name__)
    apply = optimizer.apply_gradients

    def apply_gradients(grads_and_vars, *args, **kwargs):
        gradients, variables = zip(*grads_and_vars)
        return apply(zip(all_reduce(list(gradients), reduce_reduction, fusion, fusion_id, group), variables), *args, **kwargs)

    optimizer.apply_gradients = apply_gradients
    return optimizer


def shard_and_rebatch_dataset(dataset, global_bs):
    if default() is None or default().workers_num <= 1:
        return dataset, global_bs
    if global_bs % default().workers_num:
        raise ValueError(f"Batch size must be divisible by num npus: {default().workers_num}")
    return dataset.shard(default().workers_num, default().worker_id), global_bs // default().workers_num
