"""What the NPU's graph engine would compile anew for every batch: operations whose shape depends on values."""

import pytest

import dlrm_tf
from dlrm_tf.ascend.device import AscendDevice
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.inputs import input_specs
from dlrm_tf.model.optimizers import make_optimizer

tf = tensorflow()
# Their output's shape is known only once they have run.
DYNAMIC = {
    "Where", "Unique", "UniqueV2", "UniqueWithCounts", "NonMaxSuppression", "NonMaxSuppressionV2", "NonMaxSuppressionV3",
    "NonMaxSuppressionV4", "NonMaxSuppressionV5", "DynamicPartition", "ListDiff", "SparseToDense", "StringSplit",
}  # fmt: skip
BATCH = 32


def model_of(kind):
    config = dlrm_tf.DLRMConfig((7, 5, 101), dense_dim=4, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(8, 1), **kind)
    model = dlrm_tf.DLRM(config, seed=0)
    AscendDevice(None, 1, 0, None).distribute(make_optimizer("sgd"), model)
    return model


def specs(config):
    return input_specs(config, BATCH), tf.TensorSpec([BATCH, 1], tf.float32)


def loss_and_gradients(model):
    @tf.function
    def step(features, label):
        with tf.GradientTape() as tape:
            loss = model.compute_loss((features, label), training=True)
        # The table's gradient stays sparse: rows and their numbers.
        return loss, tape.gradient(loss, model.trainable_variables)

    return step.get_concrete_function(*specs(model.config))


BAGS = {"hot_sizes": (2, 1, 3), "pooling": ("sum", "sum", "mean")}
KINDS = [
    {},
    {"interaction": "cat"},
    {"self_interaction": True},
    {"interaction": "cross"},
    {"interaction": "cross", "cross_rank": 3},
    BAGS,
    {**BAGS, "weighted": True},
]


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_have_static_shapes_and_types_that_the_npu_has(kind):
    graph = loss_and_gradients(model_of(kind)).graph
    types = {op.type for op in graph.get_operations()}
    assert {"ResourceGather", "MatMul"} <= types
    assert not types & DYNAMIC
    for op in graph.get_operations():
        for output in op.outputs:
            assert output.dtype not in (tf.float64, tf.string, tf.complex64, tf.complex128), f"{op.type} {op.name}"
        if op.inputs and all(tensor.op.type == "Const" for tensor in op.inputs):
            continue  # computed once, when the graph is compiled
        for output in op.outputs:
            assert output.dtype == tf.resource or output.shape.is_fully_defined(), f"{op.type} {op.name}: {output.shape}"


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_on_several_devices_the_optimizer_has_none_either(name):
    """There the table's gradient comes dense from the all-reduce, so that no duplicates are left to be summed."""
    model = model_of({})
    optimizer = make_optimizer(name, 0.1)

    @tf.function
    def step(features, label):
        with tf.GradientTape() as tape:
            loss = model.compute_loss((features, label), training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        dense = [tf.convert_to_tensor(g) for g in gradients]
        optimizer.apply_gradients(zip(dense, model.trainable_variables))

    types = {op.type for op in step.get_concrete_function(*specs(model.config)).graph.get_operations()}
    assert not types & DYNAMIC
