"""Features that read one table: rows, gradients, files and twins, against a model whose features have copies of that table."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
from test_dlrm import numpy_logits, random_biases

import dlrm_tf
from dlrm_tf.data.hashed_keys import HashedKeys
from dlrm_tf.data.id_spaces import IdSpaces
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError
from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.embedding import FusedEmbedding, row_numbers
from dlrm_tf.model.optimizers import make_optimizer
from dlrm_tf.model.subset import float_probabilities
from dlrm_tf.train.placements.tpu import with_row_numbers
from dlrm_tf.weights.grow import grow_weights
from dlrm_tf.weights.reader import WeightsReader

tf = tensorflow()
tfrs = recommenders()
# Features 0, 2 and 3 read table 0; feature 1 has its own.
SIZES, TABLES = (5, 3, 5, 5), (0, 1, 0, 0)
NETWORK = {"dense_dim": 3, "embedding_dim": 4, "bottom_mlp": (6, 4), "top_mlp": (5, 1)}
PLAIN = dlrm_tf.DLRMConfig(SIZES, **NETWORK, feature_tables=TABLES)
BAGS = dataclasses.replace(PLAIN, hot_sizes=(2, 1, 3, 1), pooling=("sum", "sum", "mean", "sum"))
# First rows of the blocks of the model without shared tables, and of this one.
OWN_OFFSETS, OFFSETS = (0, 6, 10, 16), (0, 6, 0, 0)
CONFIGS = pytest.mark.parametrize("config", [PLAIN, BAGS], ids=["one key", "bags"])


def rows_of(config, rows=24, seed=0):
    generator = np.random.default_rng(seed)
    sizes = np.array(config.categorical_feature_sizes)[np.array(config.column_features)]
    ids = generator.integers(0, sizes + 1, (rows, config.id_columns)).astype(np.int32)
    if config.has_bags:
        ids[generator.random(ids.shape) < 0.3] = -1
    return {"dense": generator.random((rows, config.dense_dim), np.float32), "categorical": ids}


def copies(model):
    """A model that differs in nothing but that each feature has a table of its own, with the same rows."""
    own = dlrm_tf.DLRM(dataclasses.replace(model.config, feature_tables=None), initializer="zeros")
    table = model.embedding.table.numpy()
    for size, offset, own_offset in zip(SIZES, OFFSETS, OWN_OFFSETS):
        own.embedding.write_rows(own_offset, table[offset : offset + size + 1])
    for mlp, i, _, _ in model.config.dense_shapes():
        own.dense_layer(mlp, i).set_weights(model.dense_layer(mlp, i).get_weights())
    return own


def random_model(config, seed=1):
    model = dlrm_tf.DLRM(config, seed=seed)
    table = model.embedding.table
    table.assign(np.random.default_rng(7).normal(0, 0.5, table.shape))  # OOV rows too
    random_biases(model)
    return model


def test_the_configuration():
    assert (PLAIN.tables, PLAIN.table_features, PLAIN.num_ids, PLAIN.table_rows) == (TABLES, (0, 1), 8, 10)
    assert PLAIN.block_offsets == OFFSETS
    own = dataclasses.replace(PLAIN, feature_tables=(0, 1, 2, 3))
    assert own.feature_tables is None and own.block_offsets == OWN_OFFSETS and own.table_rows == 22
    assert dlrm_tf.DLRMConfig.from_json(PLAIN.to_json()) == PLAIN and "feature_tables" not in own.to_json()
    assert PLAIN.num_parameters == own.num_parameters - 4 * 12


@pytest.mark.parametrize(
    "tables, message",
    [
        ((0, 1, 0), "feature_tables must be 4 whole numbers, one per feature. Received"),
        (5, "must be 4 whole numbers"),
        ((0, 1, 0, True), "must be 4 whole numbers"),
        ((0, 1, 0, 1.0), "must be 4 whole numbers"),
        ((1, 0, 1, 1), "numbered from 0 by first appearance"),
        ((0, 2, 0, 0), "numbered from 0 by first appearance"),
        ((0, 0, 1, 1), "equal sizes. Received 5 ids of feature 0, 3 of feature 1"),
    ],
)
def test_what_a_configuration_refuses(tables, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(PLAIN, feature_tables=tables)
    fields = {**json.loads(PLAIN.to_json()), "feature_tables": list(tables) if isinstance(tables, tuple) else tables}
    with pytest.raises(DataError, match=re.escape(message)):
        dlrm_tf.DLRMConfig.from_json(json.dumps(fields))


def test_the_same_id_reads_the_same_row():
    rows = row_numbers(PLAIN, tf.constant([[2, 2, 2, 4], [5, 3, 9, -1]])).numpy()
    assert rows.tolist() == [[2, 8, 2, 4], [5, 9, 5, 5]]  # one OOV row for the three


@CONFIGS
def test_logits_are_those_of_copies_and_of_the_numpy_reference(config):
    model, rows = random_model(config), rows_of(config)
    np.testing.assert_allclose(model(rows), copies(model)(rows), atol=1e-6)
    np.testing.assert_allclose(model(rows), numpy_logits(model, rows), atol=1e-5)


@CONFIGS
@pytest.mark.parametrize("deduplicate", [True, False])
def test_gradients_of_all_features_add_up(config, deduplicate):
    model, rows = random_model(config), rows_of(config)
    label = np.arange(24, dtype=np.float32)[:, None] % 2
    own = copies(model)
    gradients = []
    for one in (model, own):
        one.embedding.deduplicate = deduplicate
        with tf.GradientTape() as tape:
            loss = one.compute_loss((rows, label), training=True)
        gradients.append(tf.convert_to_tensor(tape.gradient(loss, one.embedding.table)).numpy())
    wanted = np.zeros((10, 4))
    for size, offset, own_offset in zip(SIZES, OFFSETS, OWN_OFFSETS):
        wanted[offset : offset + size + 1] += gradients[1][own_offset : own_offset + size + 1]
    np.testing.assert_allclose(gradients[0], wanted, atol=1e-7)
    assert np.count_nonzero(wanted.any(axis=1)) > 8


def test_a_step_with_l2_counts_a_row_once():
    """Row 2 is read by three features of one line: its penalty is that of one row. Dense computation: w - rate (g + l2 w)."""
    model = random_model(PLAIN)
    model.compile(make_optimizer("sgd", 0.5, l2=0.1))
    before = model.embedding.table.numpy()
    features = {"dense": np.ones((1, 3), np.float32), "categorical": np.array([[2, 1, 2, 2]], np.int32)}
    label = np.ones((1, 1), np.float32)
    with tf.GradientTape() as tape:
        loss = model.compute_loss((features, label), training=True)
    gradient = tf.convert_to_tensor(tape.gradient(loss, model.embedding.table)).numpy()
    model.train_on_batch(features, label)
    used = np.isin(np.arange(10), [2, 7])[:, None]
    np.testing.assert_allclose(model.embedding.table, before - 0.5 * used * (gradient + 0.1 * before), atol=1e-6)


def test_tfrs_shares_a_table_the_same_way():
    """TFRS's TPUEmbedding (on a CPU) with one TableConfig for two features: the vectors, and the table after a step of SGD."""
    config = dlrm_tf.DLRMConfig((6, 6), 1, 4, (4,), (1,), feature_tables=(0, 0))
    ours = FusedEmbedding(config, seed=2)
    start = ours.table.numpy()
    table = tf.tpu.experimental.embedding.TableConfig(
        vocabulary_size=config.table_rows, dim=4, initializer=lambda shape, dtype=tf.float32, **_: tf.constant(start, dtype)
    )
    feature = tf.tpu.experimental.embedding.FeatureConfig
    theirs = tfrs.layers.embedding.TPUEmbedding(
        [feature(table=table), feature(table=table)], tf.tpu.experimental.embedding.SGD(1.0)
    )
    ids = np.array([[0, 3], [3, 3], [5, 0]], np.int32)
    with tf.GradientTape(persistent=True) as tape:
        mine = ours(tf.constant(ids), training=True)
        other = tf.stack(theirs([tf.constant(ids[:, 0]), tf.constant(ids[:, 1])]), axis=1)
        losses = [tf.reduce_sum(vectors**3) for vectors in (mine, other)]
    np.testing.assert_array_equal(mine, other)
    gradient = tf.convert_to_tensor(tape.gradient(losses[0], ours.table)).numpy()
    tpu_table = theirs.embedding_tables[table]
    np.testing.assert_allclose(gradient, tf.convert_to_tensor(tape.gradient(losses[1], tpu_table)), atol=1e-6)
    assert np.flatnonzero(gradient.any(axis=1)).tolist() == [0, 3, 5]


def test_initial_rows_are_drawn_once_for_a_table():
    """U(-sqrt(1/size), sqrt(1/size)) of its own size; OOV rows zero; a graph's initializer gives the same."""
    config = dlrm_tf.DLRMConfig((2000, 50, 2000), 1, 4, (4,), (1,), feature_tables=(0, 1, 0))
    table = FusedEmbedding(config, seed=5).table.numpy()
    assert table.shape == (2052, 4)
    for start, size in ((0, 2000), (2001, 50)):
        block = table[start : start + size]
        assert np.abs(block).max() < size**-0.5 and block.std() == pytest.approx((1 / 3 / size) ** 0.5, rel=0.15)
        assert not table[start + size].any()


@CONFIGS
def test_files(config, tmp_path):
    model, rows = random_model(config), rows_of(config)
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    wanted = model(rows).numpy()
    np.testing.assert_array_equal(dlrm_tf.load(path)(rows), wanted)
    few = {name: values[:5] for name, values in rows.items()}
    probability = float_probabilities(str(path), few["dense"], few["categorical"])
    np.testing.assert_allclose(probability, tf.sigmoid(wanted[:5, 0]), atol=1e-6)
    with WeightsReader(path) as reader:
        np.testing.assert_array_equal(reader.rows(3, 0, 9), model.embedding.table[:6])


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Keras 3 needs Python 3.10")
@CONFIGS
def test_the_keras_3_twin(config, tmp_path):
    import keras

    model, rows = random_model(config), rows_of(config)
    model.save_weights(tmp_path / "m.weights.h5")
    twin = dlrm_tf.keras3.load(tmp_path / "m.weights.h5")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(twin(rows)), model(rows), atol=1e-5)


def test_a_checkpoint_for_mindspore_has_a_copy_for_each_feature(tmp_path):
    model, rows = random_model(PLAIN), rows_of(PLAIN)
    model.save_weights(tmp_path / "m.weights.h5")
    known = {**rows, "categorical": np.minimum(rows["categorical"], np.array(SIZES, np.int32) - 1)}
    dlrm_tf.convert(tmp_path / "m.weights.h5", tmp_path / "m.ckpt", quiet=True)
    dlrm_tf.convert(tmp_path / "m.ckpt", tmp_path / "back.weights.h5", quiet=True)
    back = dlrm_tf.load(tmp_path / "back.weights.h5")
    assert back.config == dataclasses.replace(PLAIN, feature_tables=None)
    np.testing.assert_array_equal(back(known), copies(model)(known))


@CONFIGS
def test_a_model_grows(config):
    model, rows = random_model(config), rows_of(config)
    rows["categorical"] = np.minimum(rows["categorical"], np.array(SIZES, np.int32)[np.array(config.column_features)] - 1)
    grown = model.grow((7, 4, 7, 7), seed=3)
    assert grown.config.table_rows == 13 and grown.config.feature_tables == TABLES
    np.testing.assert_array_equal(grown(rows), model(rows))
    table, old = grown.embedding.table.numpy(), model.embedding.table.numpy()
    np.testing.assert_array_equal(table[[0, 1, 2, 3, 4, 7, 8, 9, 10, 12]], old)
    assert table[[5, 6, 11]].all()


def test_a_weights_file_grows_to_a_vocabulary(tmp_path):
    """Three features share a growing table; the hashed one keeps its size."""
    spaces = IdSpaces(tuple("abcd"), {"b": 3}, {"t": ("a", "c", "d")})

    def vocabulary(size, buckets=3):
        shared = Vocabulary.from_keys({"a": [f"k{i}" for i in range(size)]}).feature("a")
        return Vocabulary(
            [("a", shared), ("b", HashedKeys(buckets)), ("c", shared), ("d", shared)],
            dataclasses.replace(spaces, hashed={"b": buckets}),
        )

    model, path, target = random_model(PLAIN), tmp_path / "m.weights.h5", tmp_path / "g.weights.h5"
    model.vocabulary_fingerprint = vocabulary(5).fingerprint
    model.save_weights(path)
    config = grow_weights(path, target, vocabulary(7), seed=1)
    assert config.categorical_feature_sizes == (7, 3, 7, 7) and config.feature_tables == TABLES
    table = dlrm_tf.load(target).embedding.table.numpy()
    np.testing.assert_array_equal(table[[0, 1, 2, 3, 4, 7, 8, 9, 10, 11]], model.embedding.table)
    with pytest.raises(DataError, match="hashed features can't grow: wanted 3 ids of b. Received 4"):
        grow_weights(path, target, vocabulary(7, buckets=4))
    alone = Vocabulary.from_keys({name: [f"k{i}" for i in range(7)] for name in "abcd"})
    with pytest.raises(DataError, match="wanted a vocabulary whose features share the same tables"):
        grow_weights(path, target, alone)


@CONFIGS
def test_rows_for_a_tpu(config):
    """The pipeline of a TPU gives row numbers of the one table; three features read its first block."""
    rows = rows_of(config)
    batches = with_row_numbers(config, lambda: tf.data.Dataset.from_tensors((rows, np.zeros((24, 1), np.float32))))
    features, _ = next(iter(batches))
    used = rows["categorical"] != -1 if config.has_bags else np.ones_like(rows["categorical"], bool)
    np.testing.assert_array_equal(features["categorical"].numpy()[used], row_numbers(config, rows["categorical"]).numpy()[used])
