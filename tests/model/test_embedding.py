"""Looking up every distinct row once while training: the same vectors, the same gradient, the same step."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlrm_tf
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.embedding import sum_rows

tf = tensorflow()
CONFIG = dlrm_tf.DLRMConfig((7, 5, 101), dense_dim=4, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(8, 1))


def batch_of(rows=64, seed=0):
    """Ids with many duplicates, some out of vocabulary."""
    generator = np.random.default_rng(seed)
    features = {
        "dense": tf.constant(generator.random((rows, CONFIG.dense_dim)), tf.float32),
        "categorical": tf.constant(generator.integers(-1, 9, (rows, CONFIG.num_categorical)), tf.int32),
    }
    return features, tf.constant(generator.integers(0, 2, (rows, 1)), tf.float32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 40), st.integers(0, 1000))
def test_sum_rows_adds_in_order(place, width, seed):
    values = np.random.default_rng(seed).normal(size=(len(place), width)).astype(np.float32)
    wanted = np.zeros((10, width), np.float32)
    for row, value in zip(place, values):
        wanted[row] += value
    np.testing.assert_array_equal(sum_rows(tf.constant(values), tf.constant(place, tf.int32), 10), wanted)


@pytest.mark.parametrize("shape,dtype", [((6,), np.float32), ((6, 2, 2), np.float32), ((6, 3), np.float64), ((6, 3), np.float16)])
def test_sum_rows_of_other_types_and_shapes(shape, dtype):
    values, place = np.arange(np.prod(shape)).reshape(shape).astype(dtype), [0, 2, 2, 0, 3, 0]
    wanted = np.zeros((4, *shape[1:]), dtype)
    np.add.at(wanted, place, values)
    np.testing.assert_array_equal(sum_rows(tf.constant(values), tf.constant(place), 4), wanted)


def test_a_batch_is_looked_up_by_its_distinct_rows():
    model = dlrm_tf.DLRM(CONFIG, seed=0)
    ids = batch_of()[0]["categorical"]
    upstream = tf.random.stateless_normal([64, 3, 4], [1, 2])

    def gradient(training):
        with tf.GradientTape() as tape:
            vectors = model.embedding(ids, training=training)
        return vectors, tape.gradient(vectors, model.embedding.table, upstream)

    (one, sparse), (other, duplicated) = gradient(True), gradient(False)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.sort(sparse.indices), np.unique(model.embedding.rows(ids)))
    assert len(duplicated.indices) == 64 * 3 > len(sparse.indices)
    np.testing.assert_allclose(tf.convert_to_tensor(sparse), tf.convert_to_tensor(duplicated), rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "lazy_adam"])
@pytest.mark.parametrize("eager", [False, True])
def test_a_step_has_the_same_bits_either_way(optimizer, eager):
    trained = []
    for deduplicate in (True, False):
        model = dlrm_tf.DLRM(CONFIG, seed=0)
        model.embedding.deduplicate = deduplicate
        model.compile(optimizer, run_eagerly=eager)
        for seed in range(3):
            model.train_on_batch(*batch_of(seed=seed))
        trained.append(model.get_weights())
    for a, b in zip(*trained):
        np.testing.assert_array_equal(a, b)


def test_the_sums_are_made_once_for_one_model_and_again_when_two_lookups_meet():
    """The optimizer may skip its own sums for rows that are distinct already, and only for these."""
    model = dlrm_tf.DLRM(CONFIG, seed=0)
    model.compile("sgd")
    features, label = batch_of()

    def uniques(loss_of):
        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = loss_of()
            model.optimizer.minimize(loss, [model.embedding.table], tape=tape)

        return sum(op.type == "Unique" for op in step.get_concrete_function().graph.get_operations())

    one = uniques(lambda: model.compute_loss((features, label), training=True))
    twice = uniques(lambda: sum(model.compute_loss((features, label), training=True) for _ in range(2)))
    assert (one, twice) == (1, 3)


def test_a_new_table_is_held_once():
    """Drawn in pieces: memory grows by little more than the table, 320 MB."""
    code = (
        "import re, dlrm_tf; peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1e3; "
        "small = dlrm_tf.DLRM(dlrm_tf.DLRMConfig((9, 7)), seed=0); before = peak(); "
        "large = dlrm_tf.DLRM(dlrm_tf.DLRMConfig((4_000_000, 1_000_000)), seed=0); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 300 < float(done.stdout.split()[-1]) < 1.4 * 320
