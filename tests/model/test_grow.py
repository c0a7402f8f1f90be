"""Growing: every trained row and its optimizer state stay where their id says; new ones are initial; training goes on."""

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.errors import DataError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import legacy, make_optimizer, parts
from dlrm_tf.train.schedules import WarmUpThenDecay
from dlrm_tf.weights.grow import grow_weights
from dlrm_tf.weights.layout import TABLE
from dlrm_tf.weights.optimizer_state import OptimizerStateReader, OptimizerStateWriter
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter

tf = tensorflow()
OLD, NEW = (3, 5, 2), (4, 5, 6)
CONFIG = dlrm_tf.DLRMConfig(OLD, dense_dim=4, embedding_dim=4, bottom_mlp=(6, 4), top_mlp=(5, 1))
# Old table row -> new table row, by hand: blocks of 4, 6, 3 rows become blocks of 5, 6, 7.
MOVES = {0: 0, 1: 1, 2: 2, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, 8: 9, 9: 10, 10: 11, 11: 12, 12: 17}


def data(rows=64, seed=0):
    generator = np.random.default_rng(seed)
    ids = np.stack([generator.integers(0, size + 1, rows) for size in OLD], 1).astype(np.int32)
    features = {"dense": generator.random((rows, 4), np.float32), "categorical": ids}
    return features, generator.integers(0, 2, (rows, 1)).astype(np.float32)


def as_grown(features):
    """The same rows with ids of the grown model: what was out of vocabulary still is."""
    ids = features["categorical"].copy()
    for f, (old, new) in enumerate(zip(OLD, NEW)):
        ids[ids[:, f] == old, f] = new
    return {**features, "categorical": ids}


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        ("adagrad", {}),
        ("rowwise_adagrad", {}),
        ("lazy_adam", {"dense": "adam"}),
        ("sgd", {"momentum": 0.9}),
        ("adagrad", {"learning_rate": WarmUpThenDecay(0.1, 100, warmup_steps=10, decay_steps=50)}),
    ],
)
def test_a_grown_model_trains_on_as_if_it_had_not_grown(optimizer):
    name, options = optimizer
    model = dlrm_tf.DLRM(CONFIG, seed=1)
    model.compile(make_optimizer(name, **{"learning_rate": 0.05, **options}))
    features, label = data()
    model.fit(features, label, batch_size=16, epochs=2, shuffle=False, verbose=0)
    grown = model.grow(NEW, seed=2)
    np.testing.assert_allclose(grown.predict(as_grown(features), verbose=0), model.predict(features, verbose=0), atol=1e-6)
    before = grown.embedding.read_rows(0, 18)
    for m, rows in ((model, features), (grown, as_grown(features))):
        m.fit(rows, label, batch_size=16, epochs=2, shuffle=False, verbose=0)
    old, new = model.embedding.read_rows(0, 13), grown.embedding.read_rows(0, 18)
    np.testing.assert_allclose(new[list(MOVES.values())], old, atol=1e-6)
    for (old_part, _), (new_part, _) in zip(parts(model.optimizer), parts(grown.optimizer)):
        assert int(new_part.iterations) == int(old_part.iterations) == 16
    added = sorted(set(range(18)) - set(MOVES.values()))
    np.testing.assert_array_equal(new[added], before[added])
    assert np.abs(before[[3]]).max() <= 4**-0.5 and np.abs(before[added]).min() > 0


def test_an_untrained_or_uncompiled_model_grows_too():
    model = dlrm_tf.DLRM(CONFIG, seed=1)
    assert model.grow(NEW).optimizer is None
    model.compile("adagrad")
    grown = model.grow(NEW)
    features, label = data()
    grown.fit(as_grown(features), label, verbose=0)


def test_an_optimizer_that_cannot_be_copied_is_named():
    optimizers = [tf.keras.mixed_precision.LossScaleOptimizer(make_optimizer("sgd"))]
    if legacy is not tf.keras.optimizers:  # the only ones of TF 2.6 can be copied
        optimizers.append(tf.keras.optimizers.Adagrad(0.1))
    for optimizer in optimizers:
        model = dlrm_tf.DLRM(CONFIG)
        model.compile(optimizer)
        with pytest.raises(ValueError, match=f"{type(optimizer).__name__}: its state can't be copied"):
            model.grow(NEW)


@pytest.mark.parametrize("sizes, message", [((3, 4, 9), "feature 1 has 5 ids, wanted 4"), ((3, 5), "3 entries")])
def test_a_model_never_shrinks(sizes, message):
    with pytest.raises(ValueError, match=message):
        dlrm_tf.DLRM(CONFIG).grow(sizes)


def vocabulary(sizes):
    """'' and hex keys; the first keys are the same whatever the sizes."""
    return dlrm_tf.Vocabulary.from_keys({f"C{f}": ["", *(f"{i:08x}" for i in range(1, n))] for f, n in enumerate(sizes)})


def write(path, fingerprint, optimizer="adagrad"):
    generator = np.random.default_rng(3)
    with WeightsWriter(path, CONFIG, source_sha256="ab", vocabulary_fingerprint=fingerprint) as writer:
        for mlp, i, fan_in, fan_out in CONFIG.dense_shapes():
            writer.write_dense(mlp, i, generator.random((fan_in, fan_out), np.float32), generator.random(fan_out, np.float32))
        table = generator.random((13, 4), np.float32)
        writer.write_table(0, table)
        state = OptimizerStateWriter(writer, {"optimizer": optimizer})
        state.create("accum")
        accumulators = generator.random((13, 4), np.float32) + 0.1
        accumulators[3] = 0.1
        state.write("accum", TABLE, 0, accumulators)
    return table, accumulators


def test_a_weights_file_grows_with_its_optimizer_state(tmp_path, capsys):
    path, out = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    table, accumulators = write(path, vocabulary(OLD).fingerprint)
    vocabulary(NEW).save(tmp_path / "new.npz")
    assert main(["grow", str(path), "--vocabulary", str(tmp_path / "new.npz"), "-o", str(out), "--seed", "1"]) == 0
    assert "15 ids, 5 of them new" in capsys.readouterr().out
    with WeightsReader(path) as old, WeightsReader(out) as new:
        assert new.config.categorical_feature_sizes == NEW
        assert new.attributes["vocabulary_fingerprint"] == vocabulary(NEW).fingerprint
        np.testing.assert_array_equal(new.table(0, 18)[list(MOVES.values())], table)
        np.testing.assert_array_equal(new.dense("top_mlp", 1)[0], old.dense("top_mlp", 1)[0])
        state = OptimizerStateReader(new)
        grown = state.read("accum", TABLE, 0, 18)
    np.testing.assert_array_equal(grown[list(MOVES.values())], accumulators)
    np.testing.assert_array_equal(grown[[3, 13, 14, 15, 16]], np.full((5, 4), np.float32(0.1)))


@pytest.mark.parametrize(
    "sizes, tag, message",
    [((3, 4, 9), "", r"at least \[3, 5, 2\] ids. Received \[3, 4, 9\]"), (NEW, "9", "whose first ids mean other keys")],
)
def test_a_vocabulary_that_does_not_extend_the_old_one_is_refused(tmp_path, sizes, tag, message):
    path, out = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    write(path, vocabulary(OLD).fingerprint)
    other = dlrm_tf.Vocabulary.from_keys({f"C{f}": [f"{tag}{i:07x}" for i in range(n)] for f, n in enumerate(sizes)})
    with pytest.raises(DataError, match=message):
        grow_weights(path, out, other)
    assert not out.exists()
