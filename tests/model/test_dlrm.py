"""The Keras DLRM against the NumPy reference, hand-computed cases and TFRS's own interaction."""

import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.checkpoints.reference import logits
from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.cross import CrossNetwork
from dlrm_tf.model.embedding import row_numbers
from dlrm_tf.model.interaction import DotInteraction

tf = tensorflow()
tfrs = recommenders()
SMALL = {"categorical_feature_sizes": (3, 5, 2), "dense_dim": 4, "embedding_dim": 4, "bottom_mlp": (6, 4), "top_mlp": (5, 1)}


def rows_of(config, batch, seed=0):
    generator = np.random.default_rng(seed)
    ids = np.stack([generator.integers(0, size + 1, batch) for size in config.categorical_feature_sizes], 1)
    return {"dense": generator.random((batch, config.dense_dim), np.float32), "categorical": ids.astype(np.int32)}


def numpy_logits(model, rows):
    """The NumPy reference with the model's weights."""
    config = model.config

    def weight(part, number, kind, ids):
        if part != "embedding":
            return getattr(model.dense_layer(part, number), kind).numpy()
        size, offset = config.categorical_feature_sizes[number], config.block_offsets[number]
        return model.embedding.read_rows(offset, offset + size + 1)[np.where((ids >= 0) & (ids < size), ids, size)]

    return logits(config, weight, rows["dense"], rows["categorical"], rows.get("weights"))


CROSS = {"interaction": "cross"}
LOW_RANK = {"interaction": "cross", "cross_layers": 2, "cross_rank": 3}
NO_DENSE, ONE = {"dense_dim": 0}, {"dense_dim": 0, "categorical_feature_sizes": (5,)}


def random_biases(model):
    """Gives cross layers biases that are not their initial zeros."""
    generator = np.random.default_rng(1)
    for part, i, kind, shape in model.config.dense_weights():
        if (part, kind) == ("cross", "bias"):
            model.dense_layer(part, i).bias.assign(generator.normal(0, 1, shape))


@pytest.mark.parametrize("kind", [{}, {"self_interaction": True}, {"interaction": "cat"}, CROSS, LOW_RANK])
@pytest.mark.parametrize("shape", [{}, NO_DENSE, ONE])
@pytest.mark.parametrize("batch", [1, 7])
def test_logits_follow_the_definition(kind, shape, batch):
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(**{**SMALL, **shape}, **kind), seed=3)
    random_biases(model)
    rows = rows_of(model.config, batch)
    for training in (False, True):
        came = model(rows, training=training)
        assert came.shape == (batch, 1) and came.dtype == tf.float32
        np.testing.assert_allclose(came, numpy_logits(model, rows), atol=1e-5)


def test_hand_computed_logit_without_dense_features():
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig((1, 1), 0, 2, (), (1,)))
    model.embedding.table.assign([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    # Both embeddings, then their product 1*3 + 2*4.
    model.dense_layer("top_mlp", 0).set_weights([np.array([[1e4], [1e3], [1e2], [1e1], [1.0]]), np.array([0.5])])
    assert model({"categorical": np.array([[0, 0]], np.int32)}).numpy() == [[12340.0 + 11.0 + 0.5]]


def test_an_input_that_is_not_there_is_named():
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(**SMALL), initializer="zeros")
    with pytest.raises(KeyError, match="dense"):
        model({"categorical": np.zeros((1, 3), np.int32)})


@pytest.mark.parametrize("kind", [{}, {"interaction": "cat"}, CROSS, LOW_RANK])
def test_the_head_alone_shows_what_its_layers_read(kind):
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(**SMALL, **kind), seed=3)
    rows, seen = rows_of(model.config, 7), {}
    embedded = model.embedding(rows["categorical"])
    came = model.head(rows["dense"], embedded, observe=lambda mlp, layer, x: seen.update({(mlp, layer): x.numpy()}))
    np.testing.assert_array_equal(came, model(rows))
    assert list(seen) == [(mlp, i) for mlp, i, _, _ in model.config.dense_shapes()]
    np.testing.assert_array_equal(seen["bottom_mlp", 0], rows["dense"])
    for mlp, i, fan_in, _ in model.config.dense_shapes():
        assert seen[mlp, i].shape == (7, fan_in)
    last = model.dense_layer("top_mlp", 1)
    np.testing.assert_allclose(seen["top_mlp", 1] @ last.kernel.numpy() + last.bias.numpy(), came, atol=1e-6)


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("vectors", [2, 5, 27])
def test_dot_interaction_and_its_gradient_equal_tfrs(vectors, self_interaction):
    """In the form for inference and in the one for training, which have the same bits."""
    generator = np.random.default_rng(vectors)
    stack = tf.constant(generator.normal(size=(3, vectors, 4)), tf.float32)
    ours = DotInteraction(vectors, self_interaction)
    theirs = tfrs.layers.feature_interaction.DotInteraction(self_interaction=self_interaction)
    weights = tf.constant(generator.normal(size=ours(stack).shape), tf.float32)
    results = []
    for call in (theirs, ours, lambda vectors: ours(vectors, training=True)):
        with tf.GradientTape() as tape:
            tape.watch(stack)
            pairs = call(tf.unstack(stack, axis=1) if call is theirs else stack)
            loss = tf.reduce_sum(pairs * weights)
        results.append((pairs, tape.gradient(loss, stack)))
    (wanted, wanted_gradient), *rest = results
    for pairs, gradient in rest:
        np.testing.assert_allclose(pairs, wanted, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rest[0][0], rest[1][0])


def test_hand_computed_dot_interaction():
    stack = tf.constant([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    # (1,0): 1*3+2*4, (2,0): 1*5+2*6, (2,1): 3*5+4*6
    np.testing.assert_array_equal(DotInteraction(3)(stack), [[11.0, 17.0, 39.0]])
    np.testing.assert_array_equal(DotInteraction(3, True)(stack), [[5.0, 11.0, 25.0, 17.0, 39.0, 61.0]])


@pytest.mark.parametrize("rank", [None, 1])
def test_hand_computed_cross_layers(rank):
    config = dlrm_tf.DLRMConfig((9,), 1, 1, (1,), (1,), interaction="cross", cross_layers=2, cross_rank=rank)
    network = CrossNetwork(config)
    x0 = tf.constant([[1.0, 2.0]])
    network(x0)
    for i, bias in enumerate(([1.0, 0.0], [0.0, -2.0])):
        if rank is None:
            network.dense_layer("cross", i).set_weights([np.array([[3.0, 4.0], [6.0, 8.0]]), np.array(bias)])
        else:  # the same matrix, as (1, 2)^T (3, 4)
            network.dense_layer("cross_projection", i).set_weights([np.array([[1.0], [2.0]])])
            network.dense_layer("cross", i).set_weights([np.array([[3.0, 4.0]]), np.array(bias)])
    # x1 = (1, 2) * ((15, 20) + (1, 0)) + (1, 2) = (17, 42); 17 + 2 * 42 = 101:
    # x2 = (1, 2) * ((303, 404) + (0, -2)) + (17, 42) = (320, 846)
    np.testing.assert_array_equal(network(x0), [[320.0, 846.0]])


@pytest.mark.parametrize("kind", [CROSS, LOW_RANK])
def test_gradients_of_cross_layers_are_those_of_the_numpy_reference(kind):
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(**SMALL, **kind), seed=3)
    random_biases(model)
    rows = rows_of(model.config, 5)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(rows, training=True))
    variables = [getattr(model.dense_layer(part, i), k) for part, i, k, _ in model.config.dense_weights() if "cross" in part]
    assert len(variables) == 6
    generator = np.random.default_rng(0)
    for variable, gradient in zip(variables, tape.gradient(total, variables)):
        direction = generator.choice([-1.0, 1.0], variable.shape)
        value, sums = variable.numpy(), []
        # A step that float32 weights hold exactly; the reference computes in float64, so its rounding does not show.
        for step in (2**-10, -(2**-10)):
            variable.assign(value + step * direction)
            sums.append(numpy_logits(model, rows).sum())
        variable.assign(value)
        assert (gradient.numpy() * direction).sum() == pytest.approx((sums[0] - sums[1]) / 2**-9, rel=2e-3, abs=1e-3)


def test_initial_cross_layers_are_glorot_normal_without_bias():
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig((40, 50), interaction="cross", embedding_dim=16, cross_rank=32), seed=7)
    projection, cross = model.dense_layer("cross_projection", 0), model.dense_layer("cross", 0)
    for kernel in (projection.kernel.numpy(), cross.kernel.numpy()):
        assert kernel.std() == pytest.approx(np.sqrt(2 / (48 + 32)), rel=0.1)
    assert not np.array_equal(projection.kernel.numpy().ravel(), cross.kernel.numpy().ravel())
    np.testing.assert_array_equal(cross.bias, 0)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_an_unknown_id_reads_its_own_oov_row(dtype):
    config = dlrm_tf.DLRMConfig((3, 5), embedding_dim=4, bottom_mlp=(4,), top_mlp=(1,))
    unknown = [(-1, -7), (3, 5), (4, 2**31 - 1), (-(2**31), 100)]
    if dtype == np.int64:
        unknown += [(2**32, 2**32 + 1), (2**40, -(2**40))]
    rows = row_numbers(config, tf.constant(np.array(unknown, dtype)))
    np.testing.assert_array_equal(rows, np.tile([[3, 9]], (len(unknown), 1)))
    np.testing.assert_array_equal(row_numbers(config, tf.constant(np.array([[0, 0], [2, 4]], dtype))), [[0, 4], [2, 8]])


def test_initial_values_follow_upstream():
    config = dlrm_tf.DLRMConfig((400, 10_000), embedding_dim=16)
    model = dlrm_tf.DLRM(config, seed=7)
    for f, bound in enumerate((0.05, 0.01)):
        start = config.block_offsets[f]
        block = model.embedding.read_rows(start, start + config.categorical_feature_sizes[f])
        assert np.abs(block).max() <= bound
        assert np.abs(block).max() > 0.99 * bound
        assert abs(block.std() - bound / np.sqrt(3)) < 0.02 * bound
        np.testing.assert_array_equal(model.embedding.read_rows(start + len(block), start + len(block) + 1), 0)
    kernel = model.dense_layer("bottom_mlp", 1).kernel.numpy()
    assert abs(kernel.std() - np.sqrt(2 / (512 + 256))) < 1e-3
    again = dlrm_tf.DLRM(config, seed=7)
    for a, b in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_loss_is_the_weighted_mean_cross_entropy():
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(**SMALL), seed=3)
    rows = rows_of(model.config, 6)
    label = np.array([[0], [1], [1], [0], [1], [0]], np.float32)
    weight = np.array([1, 2, 0, 1, 0.5, 3], np.float32)
    p = 1 / (1 + np.exp(-numpy_logits(model, rows)))
    cross_entropy = -(label * np.log(p) + (1 - label) * np.log(1 - p))[:, 0]
    np.testing.assert_allclose(model.compute_loss((rows, label)), cross_entropy.mean(), rtol=1e-5)
    np.testing.assert_allclose(model.compute_loss((rows, label, weight)), (cross_entropy * weight).mean(), rtol=1e-5)


def test_evaluate_weights_a_smaller_last_batch_by_its_rows():
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(**SMALL), seed=3)
    model.compile()
    rows = rows_of(model.config, 10)
    label = (np.arange(10) % 3 == 0).astype(np.float32)[:, None]
    np.testing.assert_allclose(
        model.evaluate(rows, label, batch_size=4, verbose=0), float(model.compute_loss((rows, label))), rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 10), reason="Keras 3 needs Python 3.10")
def test_keras_3_loaded_first_is_a_clear_error():
    code = (
        "import os; os.environ.pop('TF_USE_LEGACY_KERAS', 0); import tensorflow as tf; tf.keras.Model; "
        "import dlrm_tf; dlrm_tf.DLRM"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: dlrm_tf needs tf.keras to be Keras 2, but it already is Keras 3" in done.stderr
