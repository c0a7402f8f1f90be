"""The weights file: round trip, Keras 3's native reader, and everything that can be wrong with a file."""

import dataclasses
import os
import sys

import h5py
import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.config import MAX_CROSS_LAYERS
from dlrm_tf.errors import CheckpointError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import legacy
from dlrm_tf.model.saving import save_weights
from dlrm_tf.weights import layout
from dlrm_tf.weights.layout import TABLE
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter

tf = tensorflow()
CONFIG = dlrm_tf.DLRMConfig((3, 5, 2), dense_dim=4, embedding_dim=4, bottom_mlp=(6, 4), top_mlp=(5, 1))


@pytest.fixture
def saved(tmp_path):
    model = dlrm_tf.DLRM(CONFIG, seed=3)
    path = tmp_path / "m.weights.h5"
    save_weights(model, path, source_sha256="ab" * 32, vocabulary_fingerprint="f00d")
    return model, path


def test_load_rebuilds_model_and_provenance(saved, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_ROWS", 4)  # several chunks, the last one short
    model, path = saved
    loaded = dlrm_tf.load(path)
    assert loaded.config == CONFIG
    assert (loaded.source_sha256, loaded.vocabulary_fingerprint) == ("ab" * 32, "f00d")
    for a, b in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(a, b)
    # Saving again keeps the provenance.
    loaded.save_weights(path)
    assert dlrm_tf.load(path).vocabulary_fingerprint == "f00d"


def test_as_many_cross_layers_as_a_configuration_allows_fit_into_a_file(tmp_path):
    config = dataclasses.replace(CONFIG, interaction="cross", cross_layers=MAX_CROSS_LAYERS, cross_rank=2)
    model = dlrm_tf.DLRM(config, seed=3)
    model.save_weights(tmp_path / "m.weights.h5")
    for a, b in zip(model.get_weights(), dlrm_tf.load(tmp_path / "m.weights.h5").get_weights()):
        np.testing.assert_array_equal(a, b)


def test_rows_are_addressed_by_feature_and_id(saved):
    model, path = saved
    with WeightsReader(path) as reader:
        np.testing.assert_array_equal(reader.rows(1, 0, 6), model.embedding.read_rows(4, 10))
        assert len(reader.rows(2, 0, 100)) == 3


def test_writer_refuses_what_does_not_fit_and_leaves_nothing(tmp_path):
    path = tmp_path / "m.weights.h5"
    for fault, message in (
        (lambda w: w.write_dense("bottom_mlp", 0, np.zeros((5, 6)), np.zeros(6)), r"wanted shape \(4, 6\). Received \(5, 6\)"),
        (lambda w: w.write_rows(1, 3, np.zeros((4, 4))), "feature 1: ids 3..6 do not fit 5 ids and one OOV row"),
        (lambda w: w.write_table(0, np.zeros((2, 3))), "do not fit"),
        (lambda w: None, "never written: bottom_mlp/_sublayers/dense/vars/0"),
    ):
        with pytest.raises(CheckpointError, match=message), WeightsWriter(path, CONFIG) as writer:
            fault(writer)
        assert os.listdir(tmp_path) == []
    with pytest.raises(CheckpointError, match=r"must end in \.weights\.h5"):
        WeightsWriter(tmp_path / "m.h5", CONFIG)


def _misshape(file):
    del file["bottom_mlp/_sublayers/dense_1/vars/0"]
    file["bottom_mlp/_sublayers/dense_1/vars/0"] = np.zeros((9, 9), np.float32)
    del file["top_mlp/_sublayers/dense/vars/1"]


def _external(file):
    del file[TABLE]
    file[TABLE] = h5py.ExternalLink("/etc/passwd", "/x")


@pytest.mark.parametrize(
    "fault, message",
    [
        (
            _misshape,
            r"dense_1/vars/0 wanted float32 \(6, 4\), received float32 \(9, 9\); top_mlp/_sublayers/dense/vars/1 is missing",
        ),
        (_external, "embedding/vars/0 is missing"),
        (lambda f: f.attrs.update({"config": "{}"}), "wanted the field categorical_feature_sizes"),
        (lambda f: f.attrs.update({"format": "other.7"}), "Received format='other.7'"),
        (lambda f: f.attrs.pop("format"), "files saved by Keras alone carry no configuration"),
    ],
)
def test_wrong_files_name_every_fault(saved, fault, message):
    _, path = saved
    with h5py.File(path, "r+") as file:
        fault(file)
    with pytest.raises(CheckpointError, match=message):
        dlrm_tf.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        dlrm_tf.load(tmp_path / "none.weights.h5")


def test_a_file_of_another_configuration_is_refused_and_changes_nothing(saved):
    _, path = saved
    other = dlrm_tf.DLRM(dataclasses.replace(CONFIG, categorical_feature_sizes=(3, 5, 4)), seed=1)
    before = other.get_weights()
    with pytest.raises(CheckpointError, match=r"categorical_feature_sizes wanted \[3, 5, 4\], received \[3, 5, 2\]"):
        other.load_weights(path)
    for a, b in zip(before, other.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_files_that_keras_saved_alone_say_what_to_do_and_it_works(saved, tmp_path, capsys):
    """tf_keras writes its own layouts when it is called past `DLRM.save_weights`; Keras 3 writes them of any model."""
    keras_model = tf.keras.Model
    model, _ = saved
    files = [tmp_path / "k2.weights.h5", tmp_path / "k2.h5"]
    for path in files:
        keras_model.save_weights(model, str(path))
    if sys.version_info >= (3, 10):
        import keras

        files.append(tmp_path / "k3.weights.h5")
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(str(files[-1]))
    advice = "load it with keras.Model.load_weights into a DLRM, then save that with DLRM.save_weights"
    for path in files:
        wanted = f"{path}: not a readable HDF5 file of plain weights: superblock version 0, as Keras alone writes it: {advice}"
        with pytest.raises(CheckpointError) as e:
            dlrm_tf.load(path)
        assert str(e.value) == wanted
        for verb in (["inspect", str(path)], ["convert", str(path), "-o", str(tmp_path / "m.ckpt")]):
            assert main(verb) == 1
            assert capsys.readouterr().err == f"dlrm-tf: {wanted}\n"
    for path in files[:2]:
        other = dlrm_tf.DLRM(CONFIG, seed=4)
        keras_model.load_weights(other, str(path))
        other.save_weights(tmp_path / "again.weights.h5")
        for a, b in zip(dlrm_tf.load(tmp_path / "again.weights.h5").get_weights(), model.get_weights()):
            np.testing.assert_array_equal(a, b)


def test_keras_callback_and_keras_format(saved, tmp_path):
    model, _ = saved
    model.compile(legacy.SGD(0.1))
    rows = {"dense": np.ones((8, 4), np.float32), "categorical": np.zeros((8, 3), np.int32)}
    label = np.ones((8, 1), np.float32)
    path = tmp_path / "best.weights.h5"
    best = tf.keras.callbacks.ModelCheckpoint(str(path), monitor="loss", save_best_only=True, save_weights_only=True)
    model.fit(rows, label, batch_size=4, epochs=2, callbacks=[best], verbose=0)
    np.testing.assert_allclose(dlrm_tf.load(path).predict(rows, verbose=0), model.predict(rows, verbose=0), atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 10), reason="Keras 3 needs Python 3.10")
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"self_interaction": True},
        {"interaction": "cat"},
        {"hot_sizes": (2, 1, 3), "pooling": ("mean", "sum", "sum")},
        {"hot_sizes": (2, 1, 3), "pooling": "mean", "weighted": True},
        {"interaction": "cross"},
        {"interaction": "cross", "cross_layers": 2, "cross_rank": 5},
        {"dense_dim": 0, "categorical_feature_sizes": (3,)},
        {"dense_dim": 0, "interaction": "cross"},
    ],
)
def test_the_keras_3_twin_loads_scores_trains_and_saves_the_same_file(tmp_path, kind):
    import keras

    model = dlrm_tf.DLRM(dataclasses.replace(CONFIG, **kind), seed=3)
    path, back = tmp_path / "m.weights.h5", tmp_path / "twin.weights.h5"
    model.save_weights(path)
    twin = dlrm_tf.keras3.load(path)
    generator = np.random.default_rng(0)
    rows = {
        "dense": generator.random((64, 4), np.float32),
        "categorical": generator.integers(-1, 7, (64, model.config.id_columns)).astype(np.int32),
        "weights": generator.random((64, model.config.id_columns), np.float32),
    }
    rows = {name: rows[name] for name in model.config.inputs}
    label = generator.integers(0, 2, (64, 1)).astype(np.float32)
    np.testing.assert_allclose(twin.predict(rows, verbose=0), model.predict(rows, verbose=0), atol=1e-6)
    twin.compile(keras.optimizers.SGD(0.1), keras.losses.BinaryCrossentropy(from_logits=True))
    model.compile(legacy.SGD(0.1))
    losses = [m.fit(rows, label, batch_size=16, epochs=2, shuffle=False, verbose=0).history["loss"] for m in (model, twin)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    twin.save_weights(back)
    np.testing.assert_allclose(dlrm_tf.load(back).predict(rows, verbose=0), model.predict(rows, verbose=0), atol=1e-5)
