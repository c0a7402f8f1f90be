"""Looking up every distinct row once while training: the same vectors, the same gradient, the same step."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlrm_tf
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.embedding import row_numbers, sum_rows
from dlrm_tf.model.optimizers import make_optimizer

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
    np.testing.assert_array_equal(np.sort(sparse.indices), np.unique(row_numbers(CONFIG, ids)))
    assert len(duplicated.indices) == 64 * 3 > len(sparse.indices)
    np.testing.assert_allclose(tf.convert_to_tensor(sparse), tf.convert_to_tensor(duplicated), rtol=0, atol=1e-6)


@pytest.mark.slow
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


def test_only_the_values_of_unique_are_taken_for_distinct():
    """Positions, which repeat, and tensors from outside the graph are summed."""
    ids, gradient = tf.constant([5, 3, 5]), tf.constant([[1.0], [2.0], [4.0]])

    def trained(indices_of):
        table, optimizer = tf.Variable(tf.zeros([6, 1])), make_optimizer("sgd", 1.0)

        @tf.function
        def step():
            optimizer.apply_gradients([(tf.IndexedSlices(gradient, indices_of(), tf.constant([6, 1])), table)])

        step()
        return table.numpy()[:, 0].tolist()

    assert trained(lambda: tf.unique(ids)[1]) == [-5, -2, 0, 0, 0, 0]
    assert trained(lambda: ids) == [0, 0, 0, -2, 0, -5]


def test_a_model_made_in_a_graph_has_its_initial_table():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        table = dlrm_tf.DLRM(CONFIG, seed=0).embedding.table
        session.run(tf.compat.v1.global_variables_initializer())
        drawn = session.run(table)
    np.testing.assert_array_equal(drawn, dlrm_tf.DLRM(CONFIG, seed=0).embedding.table)


@pytest.mark.skipif("jit_compile" not in inspect.signature(tf.keras.Model.compile).parameters, reason="Keras of TensorFlow 2.6")
def test_where_the_look_up_stays_plain():
    model = dlrm_tf.DLRM(CONFIG, seed=0)
    model.compile("sgd", jit_compile=True)
    assert not model.embedding.deduplicate and not model.grow((8, 5, 101)).embedding.deduplicate
    history = model.fit(tf.data.Dataset.from_tensors(batch_of()).repeat(20), verbose=0, epochs=2)
    assert history.history["loss"][1] < history.history["loss"][0]


@pytest.mark.slow
def test_a_new_table_is_held_once():
    """Drawn in pieces: memory grows by little more than the table, 320 MB."""
    code = (
        "import re, dlrm_tf; peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1e3; "
        "small = dlrm_tf.DLRM(dlrm_tf.DLRMConfig((9, 7)), seed=0); before = peak(); "
        "large = dlrm_tf.DLRM(dlrm_tf.DLRMConfig((4_000_000, 1_000_000)), seed=0); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert 300 < float(done.stdout.split()[-1]) < 1.4 * 320
