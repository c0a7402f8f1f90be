"""Several keys per feature: the pooled vectors, their gradients and steps, against NumPy and hand-computed cases."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dlrm import SMALL, numpy_logits

import dlrm_tf
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.bag_runs import bag_runs
from dlrm_tf.model.bags import place_weights
from dlrm_tf.model.embedding import FusedEmbedding
from dlrm_tf.model.inputs import input_specs

tf = tensorflow()
CONFIG = dlrm_tf.DLRMConfig(**SMALL, hot_sizes=(2, 3, 1), pooling=("sum", "mean", "sum"))
WEIGHTED = dataclasses.replace(CONFIG, weighted=True)
# MLPerf's DLRM-DCNv2 (mlcommons/training, recommendation_v2).
MLPERF_HOT_SIZES = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
MLPERF = dlrm_tf.DLRMConfig(tuple(range(3, 29)), 13, 8, (16, 8), (16, 1), hot_sizes=MLPERF_HOT_SIZES)


def bags_of(config, rows, seed=0):
    """Random rows: bags of every length from none to all, unknown keys, and weights."""
    generator = np.random.default_rng(seed)
    sizes = np.array(config.categorical_feature_sizes)[np.array(config.column_features)]
    ids = generator.integers(0, sizes + 1, (rows, config.id_columns))
    ids[generator.random(ids.shape) < 0.4] = -1
    inputs = {
        "dense": generator.random((rows, config.dense_dim), np.float32),
        "categorical": ids.astype(np.int32),
        "weights": generator.normal(1, 1, ids.shape).astype(np.float32),
    }
    return {name: inputs[name] for name in config.inputs}


def numpy_vectors(config, table, rows, weights):
    """float64 `[n, F, D]`, bag by bag."""
    out = np.zeros((len(rows), config.num_categorical, config.embedding_dim))
    for n in range(len(rows)):
        start = 0
        for f, hot in enumerate(config.bag_sizes):
            size, offset = config.categorical_feature_sizes[f], config.block_offsets[f]
            keys = [(i, w) for i, w in zip(rows[n, start : start + hot], weights[n, start : start + hot]) if i != -1]
            start += hot
            divisor = sum(w for _, w in keys) if config.poolings[f] == "mean" else 1.0
            for i, w in keys:
                if divisor:
                    out[n, f] += table[offset + (i if 0 <= i < size else size)].astype(np.float64) * w / divisor
    return out


def test_hand_computed_bags():
    config = dlrm_tf.DLRMConfig((3, 2), 1, 2, (2,), (1,), hot_sizes=(3, 2), pooling=("sum", "mean"), weighted=True)
    model = dlrm_tf.DLRM(config, initializer="zeros")
    # Feature 0: rows 0 to 2 and OOV 3; feature 1: rows 4, 5 and OOV 6.
    model.embedding.table.assign([[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60], [7, 70]])
    ids = tf.constant([[0, 2, -1, 0, 1], [3, -1, 99, -1, -1], [1, 1, 1, 1, -5]])
    weights = tf.constant([[1, 2, 9, 1, 3], [0.5, float("nan"), 1, 8, 8], [1, 1, 1, 2, -2]], tf.float32)
    came = model.embedding(ids, weights)
    np.testing.assert_array_equal(
        came,
        [
            [[1 + 2 * 3, 70], [(5 + 3 * 6) / 4, (50 + 3 * 60) / 4]],
            [[0.5 * 4 + 4, 60], [0, 0]],  # an empty bag
            [[6, 60], [0, 0]],  # weights that cancel out have no mean
        ],
    )


@pytest.mark.parametrize("config", [CONFIG, WEIGHTED, MLPERF])
def test_vectors_and_gradients_follow_the_definition(config):
    """In all three forms: for inference, for training by distinct rows, and for training with static shapes."""
    model, rows = dlrm_tf.DLRM(config, seed=0), bags_of(config, 4)
    keys = [tf.constant(rows[name]) for name in rows if name != "dense"]
    weights = rows.get("weights", np.ones_like(rows["categorical"], np.float32))
    table = model.embedding.table.numpy()
    wanted = numpy_vectors(config, table, rows["categorical"], weights)
    upstream = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    # The vectors are linear in the table: with an identity matrix for a table they are their own derivatives.
    wide = dataclasses.replace(config, embedding_dim=len(table), bottom_mlp=(len(table),))
    shares = numpy_vectors(wide, np.eye(len(table)), rows["categorical"], weights)
    gradient = np.einsum("bfr,bfd->rd", shares, upstream)
    used = np.unique(np.nonzero(gradient)[0])
    for training, deduplicate in ((False, True), (True, True), (True, False)):
        model.embedding.deduplicate = deduplicate
        with tf.GradientTape() as tape:
            came = model.embedding(*keys, training=training)
        sparse = tape.gradient(came, model.embedding.table, tf.constant(upstream))
        np.testing.assert_allclose(came, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(tf.convert_to_tensor(sparse), gradient, rtol=1e-3, atol=1e-4)
        if training:  # no other rows, so that an optimizer with moments moves no row for a key that is not there
            assert set(sparse.indices.numpy()) == set(used)
        if training and deduplicate:
            assert len(sparse.indices) == len(used)


@pytest.mark.parametrize("kind", [{}, {"weighted": True}, {"interaction": "cat", "pooling": "mean"}])
def test_logits_follow_the_reference(kind):
    model = dlrm_tf.DLRM(dataclasses.replace(CONFIG, **kind), seed=3)
    rows = bags_of(model.config, 9)
    np.testing.assert_allclose(model(rows), numpy_logits(model, rows), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_runs_are_all_columns_in_order(hot_sizes):
    config = dlrm_tf.DLRMConfig((5,) * len(hot_sizes), hot_sizes=hot_sizes)
    runs = bag_runs(config)
    assert [size for _, features, size in runs for _ in range(features)] == hot_sizes
    assert [column for column, _, _ in runs] == [sum(n * size for _, n, size in runs[:i]) for i in range(len(runs))]


def test_a_model_of_one_key_takes_an_unknown_key_where_bags_have_an_unused_place():
    single = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(**SMALL), seed=3)
    bags = dlrm_tf.DLRM(CONFIG, seed=3)
    bags.set_weights(single.get_weights())
    for model in (single, bags):
        model.embedding.table.assign_add(tf.ones_like(model.embedding.table))  # the OOV rows are zeros in a new model
    ids = np.array([[1, 2, -1]], np.int32)
    one, padded = single.embedding(ids), bags.embedding(np.array([[1, -1, 2, -1, -1, -1]], np.int32))
    np.testing.assert_array_equal(padded[:, :2], one[:, :2])
    np.testing.assert_array_equal(one[0, 2], np.ones(4))
    np.testing.assert_array_equal(padded[0, 2], np.zeros(4))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "lazy_adam"])
def test_steps_are_those_of_the_same_keys_in_other_places(optimizer):
    """Where a bag's unused places stand, how many there are and what weight they have changes nothing."""
    config = dataclasses.replace(WEIGHTED, pooling="sum")
    wide = dataclasses.replace(config, hot_sizes=(4, 3, 5))
    rows, label = bags_of(config, 32), np.random.default_rng(5).integers(0, 2, (32, 1)).astype(np.float32)
    other = {name: np.full((32, wide.id_columns), -1, rows[name].dtype) for name in ("categorical", "weights")}
    for name, values in other.items():
        values[:, 2:4], values[:, 4:7], values[:, 11:] = np.split(rows[name], [2, 5], axis=1)
    trained = []
    for shape, features, deduplicate in ((config, rows, True), (wide, {**rows, **other}, True), (wide, {**rows, **other}, False)):
        model = dlrm_tf.DLRM(shape, seed=0)
        model.embedding.deduplicate = deduplicate
        model.compile(optimizer)
        model.fit(features, label, batch_size=8, epochs=2, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    for weights in trained[1:]:
        for a, b in zip(trained[0], weights):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "lazy_adam"])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_step_moves_only_the_rows_of_keys(optimizer, deduplicate):
    """Two steps: moments of the first must not move a row in the second for a place that is not used."""
    model = dlrm_tf.DLRM(CONFIG, seed=0)
    model.embedding.deduplicate = deduplicate
    model.compile(optimizer)
    label, dense = np.array([[1.0], [0.0]], np.float32), np.ones((2, 4), np.float32)
    everything = np.array([[0, 1, 0, 1, 5, 2], [2, 3, 2, 3, 4, 0]], np.int32)
    model.train_on_batch({"dense": dense, "categorical": everything}, label)
    before = model.embedding.table.numpy()
    model.train_on_batch({"dense": dense, "categorical": np.array([[1, -1, -1, -1, 4, -1], [-1] * 6], np.int32)}, label)
    moved = np.flatnonzero((model.embedding.table.numpy() != before).any(axis=1))
    np.testing.assert_array_equal(moved, [1, CONFIG.block_offsets[1] + 4])


def test_a_batch_without_a_single_key_still_trains_the_rest():
    for deduplicate in (True, False):
        model = dlrm_tf.DLRM(CONFIG, seed=0)
        model.embedding.deduplicate = deduplicate
        model.compile("sgd")
        before = model.get_weights()
        rows = {"dense": np.ones((2, 4), np.float32), "categorical": np.full((2, 6), -1, np.int32)}
        model.train_on_batch(rows, np.ones((2, 1), np.float32))
        after = model.get_weights()
        same = [np.array_equal(a, b) for a, b in zip(before, after)]
        assert same[[w.shape for w in before].index(model.embedding.table.shape)] and not all(same)


def test_ids_of_64_bits_are_compared_before_they_are_narrowed():
    model = dlrm_tf.DLRM(CONFIG, seed=0)
    model.embedding.table.assign_add(tf.ones_like(model.embedding.table))
    wide = np.array([[2**32 - 1, -1, 2**32, 1, -(2**40), 0]], np.int64)  # 2**32 - 1 narrowed is -1
    np.testing.assert_array_equal(model.embedding(wide), model.embedding(np.array([[3, -1, 5, 1, 5, 0]], np.int32)))


def test_weights_and_their_absence_are_checked():
    with pytest.raises(ValueError, match="wanted the inputs dense, categorical. Received weights"):
        dlrm_tf.DLRM(CONFIG, seed=0)(bags_of(WEIGHTED, 2))
    with pytest.raises(ValueError, match="wanted the inputs dense, categorical, weights. Received none"):
        dlrm_tf.DLRM(WEIGHTED, seed=0)(bags_of(CONFIG, 2))


def test_the_places_of_a_mean_share_one():
    rows = bags_of(dataclasses.replace(MLPERF, pooling="mean"), 50)["categorical"]
    shares = place_weights(dataclasses.replace(MLPERF, pooling="mean"), tf.constant(rows)).numpy()
    starts = np.cumsum((0, *MLPERF_HOT_SIZES[:-1]))
    totals = np.add.reduceat(shares, starts, axis=1)
    any_key = np.logical_or.reduceat(rows != -1, starts, axis=1)
    np.testing.assert_allclose(totals, any_key, atol=1e-6)
    assert (shares[rows == -1] == 0).all()


@pytest.mark.parametrize("config", [CONFIG, WEIGHTED])
def test_weights_files_and_growth(config, tmp_path):
    model, rows = dlrm_tf.DLRM(config, seed=3), bags_of(config, 20)
    model.save_weights(tmp_path / "m.weights.h5")
    again = dlrm_tf.load(tmp_path / "m.weights.h5")
    assert again.config == config
    np.testing.assert_array_equal(again(rows), model(rows))
    grown = model.grow((9, 5, 4), seed=1)
    assert grown.config.hot_sizes == config.hot_sizes
    known = {**rows, "categorical": np.where(rows["categorical"] > 1, 1, rows["categorical"])}
    np.testing.assert_allclose(grown(known), model(known), atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("training, deduplicate", [(False, True), (True, True), (True, False)])
def test_bags_are_pooled_in_float32_also_with_mixed_precision(policy, training, deduplicate):
    rows = bags_of(WEIGHTED, 30)
    keys = [tf.constant(rows[name]) for name in ("categorical", "weights")]
    table = dlrm_tf.DLRM(WEIGHTED, seed=0).embedding
    wanted = table(*keys)
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        half = FusedEmbedding(WEIGHTED, seed=0)
        half.deduplicate = deduplicate
        with tf.GradientTape() as tape:
            came = half(*keys, training=training)
        gradient = tape.gradient(came, half.table)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    assert came.dtype == half.compute_dtype != tf.float32 and gradient.dtype == tf.float32
    # 8 bits of a mantissa, of the weights, the rows and the result.
    np.testing.assert_allclose(tf.cast(came, tf.float32), wanted, rtol=2**-6, atol=2**-5)


def test_compiled_with_xla():
    """Static shapes only: what a TPU or an NPU asks for."""
    model, rows = dlrm_tf.DLRM(WEIGHTED, seed=0), bags_of(WEIGHTED, 8)
    model.embedding.deduplicate = False

    def loss_and_gradient(inputs):
        with tf.GradientTape() as tape:
            loss = model.compute_loss((inputs, tf.ones([8, 1])), training=True)
        return loss, tf.convert_to_tensor(tape.gradient(loss, model.embedding.table))

    compiled = tf.function(loss_and_gradient, jit_compile=True, input_signature=[input_specs(WEIGHTED, 8)])
    rows = {name: tf.constant(values) for name, values in rows.items()}
    for a, b in zip(compiled(rows), loss_and_gradient(rows)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
