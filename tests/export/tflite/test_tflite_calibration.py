"""Calibration of int8 layers: statistics, corrections that change nothing in float arithmetic, and what they gain."""

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.export.tflite.calibration import INTERACTION_LAYER, Calibration, calibrate, correct
from dlrm_tf.export.tflite.dense_layers import layer_precision
from dlrm_tf.export.tflite.export import export_tflite
from dlrm_tf.export.tflite.quantize import quantize_kernel
from dlrm_tf.lite.metadata import read_metadata
from dlrm_tf.weights.reader import WeightsReader

CONFIG = dlrm_tf.DLRMConfig((40, 7, 900), dense_dim=4, embedding_dim=8, bottom_mlp=(64, 32, 8), top_mlp=(256, 64, 1))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Embeddings of very different magnitude a feature: their dot products spread over decades."""
    folder = tmp_path_factory.mktemp("calibration")
    model = dlrm_tf.DLRM(CONFIG, seed=0)
    generator = np.random.default_rng(1)
    rows = generator.normal(0, 1, (CONFIG.table_rows, 8)).astype(np.float32)
    for start, size, scale in zip(CONFIG.block_offsets, CONFIG.categorical_feature_sizes, (3.0, 0.5, 0.05)):
        rows[start : start + size + 1] *= scale
    model.embedding.table.assign(rows)
    model.save_weights(folder / "m.weights.h5")
    dense = np.log1p(generator.exponential(4, (1500, 4))).astype(np.float32)
    categorical = np.stack([generator.integers(0, s, 1500) for s in CONFIG.categorical_feature_sizes], 1).astype(np.int32)
    return model, str(folder / "m.weights.h5"), dense, categorical


def layers_of(weights):
    with WeightsReader(weights) as reader:
        return {(m, i): reader.dense(m, i) for m, i, _, _ in CONFIG.dense_shapes()}


def test_statistics_are_those_of_the_layers_inputs(model):
    keras, weights, dense, categorical = model
    calibration = calibrate(weights, dense, categorical)
    layers = layers_of(weights)
    assert calibration.rows == 1500
    np.testing.assert_allclose(calibration.means["bottom_mlp", 0], dense.mean(axis=0), rtol=1e-4)
    x = np.maximum(dense @ layers["bottom_mlp", 0][0] + layers["bottom_mlp", 0][1], 0)
    np.testing.assert_allclose(calibration.means["bottom_mlp", 1], x.mean(axis=0), rtol=1e-3, atol=1e-5)
    for i in (1, 2):
        x = np.maximum(x @ layers["bottom_mlp", i][0] + layers["bottom_mlp", i][1], 0)
    vectors = [x, *np.moveaxis(keras.embedding(categorical).numpy(), 1, 0)]
    pairs = [(vectors[i] * vectors[j]).sum(axis=1) for i in range(4) for j in range(i)]
    features = np.column_stack([x, *pairs])
    np.testing.assert_allclose(calibration.means[INTERACTION_LAYER], features.mean(axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(calibration.interaction_rms, np.sqrt((features**2).mean(axis=0)), rtol=1e-3)


def test_equalization_changes_nothing_in_float(model):
    _, weights, dense, categorical = model
    layers, calibration = layers_of(weights), calibrate(weights, dense, categorical)
    corrected, factors = correct(layers, layer_precision(CONFIG, "dynamic"), calibration)
    features = np.random.default_rng(0).normal(0, 1, (5, CONFIG.interaction_dim))
    np.testing.assert_allclose(
        (features * factors) @ corrected[INTERACTION_LAYER][0], features @ layers[INTERACTION_LAYER][0], rtol=1e-4, atol=1e-4
    )
    # Inputs are spread less afterwards.
    used = calibration.interaction_rms[calibration.interaction_rms > 0]
    after = (calibration.interaction_rms * factors)[calibration.interaction_rms > 0]
    assert after.max() / after.min() < (used.max() / used.min()) / 5


def test_the_bias_takes_back_what_rounding_moves_on_average(model):
    _, weights, dense, categorical = model
    layers, calibration = layers_of(weights), calibrate(weights, dense, categorical)
    corrected, _ = correct(layers, layer_precision(CONFIG, "dynamic"), calibration)
    kernel, bias = layers["bottom_mlp", 1]
    integers, scales = quantize_kernel(kernel)
    rounded = (integers * scales[:, None]).T
    mean = calibration.means["bottom_mlp", 1]
    np.testing.assert_allclose(mean @ rounded + corrected["bottom_mlp", 1][1], mean @ kernel + bias, atol=1e-5)
    # The last layer of the top MLP is too small to be int8.
    np.testing.assert_array_equal(corrected["top_mlp", 2][1], layers["top_mlp", 2][1])


def test_inputs_that_are_zero_or_nearly_so_are_not_blown_up():
    kernel = np.array([[1, 2], [0, 0], [4, 4], [4, -4], [1, 1], [1, 1]], np.float32)
    layers = {INTERACTION_LAYER: (kernel, np.zeros(2, np.float32))}
    rms = np.array([0, 1, 16, 4, 1e-12, 1], np.float32)
    calibration = Calibration(900, {INTERACTION_LAYER: np.ones(6, np.float32)}, rms)
    corrected, factors = correct(layers, {INTERACTION_LAYER: "int8"}, calibration)
    # Rows 2 to 5: sqrt(16 / 4) = 2, sqrt(4 / 4) = 1, 1e-6, 1; the median is 1, and the smallest is held at 1/32.
    np.testing.assert_allclose(factors, [1, 1, 0.5, 1, 32, 1])
    np.testing.assert_allclose(corrected[INTERACTION_LAYER][0], kernel * [[1], [1], [2], [1], [1 / 32], [1]])
    assert correct(layers, {INTERACTION_LAYER: "float16"}, calibration)[1] is None


@pytest.mark.slow
def test_calibrated_layers_err_less(model, tmp_path, monkeypatch):
    _, weights, dense, categorical = model
    rows = dense, categorical
    report = export_tflite(weights, tmp_path / "m.tflite", evaluation=rows, quiet=True)
    assert read_metadata(tmp_path / "m.tflite")["quantization"]["calibration_rows"] == 1500
    monkeypatch.setattr("dlrm_tf.export.tflite.source.ExportSource.calibrate", lambda *_: None)
    plain = export_tflite(weights, tmp_path / "m.tflite", evaluation=rows, quiet=True)
    assert report.mean_error < 0.8 * plain.mean_error
    monkeypatch.undo()
    few = export_tflite(weights, tmp_path / "m.tflite", evaluation=(dense[:255], categorical[:255]), quiet=True)
    assert read_metadata(tmp_path / "m.tflite")["quantization"]["calibration_rows"] == 0
    assert few.rows == 255
    floats = export_tflite(weights, tmp_path / "m.tflite", mlp="float32", evaluation=rows, quiet=True)
    assert floats.mean_error < report.mean_error
