"""The exported graph against NumPy, its guards, and what the exporter refuses."""

import dataclasses
import os

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.checkpoints.reference import logits
from dlrm_tf.errors import CheckpointError, DataError, DLRMError, UsageError
from dlrm_tf.export.tflite import flatbuffer
from dlrm_tf.export.tflite.export import export_tflite
from dlrm_tf.export.tflite.graph import convert
from dlrm_tf.export.tflite.quantize import RowQuantizer
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.lite import Scorer
from dlrm_tf.lite.metadata import mapped, read_entry, read_metadata
from dlrm_tf.model.subset import STAND_IN_ROWS, float_probabilities
from dlrm_tf.probability import sigmoid
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber, seen_ids, subset_rows

# Every case converts a model.
pytestmark = pytest.mark.slow

tf = tensorflow()

BASE = dlrm_tf.DLRMConfig(
    (50, 3, 7000, 1), dense_dim=5, embedding_dim=8, bottom_mlp=(64, 32, 8), top_mlp=(128, 64, 1), interaction="dot"
)
CONFIGS = {
    "dot": BASE,
    "cat": dataclasses.replace(BASE, interaction="cat"),
    "self": dataclasses.replace(BASE, self_interaction=True),
}


def inputs(config, rows=200, seed=0):
    generator = np.random.default_rng(seed)
    dense = np.log1p(generator.exponential(4, (rows, config.dense_dim))).astype(np.float32)
    categorical = np.stack([generator.integers(-2, size + 3, rows) for size in config.categorical_feature_sizes], 1)
    return dense, categorical.astype(np.int32)


def save_model(config, path, seed=3):
    """A weights file with rows of very different magnitudes and OOV rows that are not zero."""
    model = dlrm_tf.DLRM(config, seed=seed)
    generator = np.random.default_rng(seed)
    magnitude = np.exp(generator.uniform(-6, 0.5, (config.table_rows, 1)))
    table = generator.uniform(-1, 1, (config.table_rows, config.embedding_dim)) * magnitude
    model.embedding.table.assign(table.astype(np.float32))
    model.save_weights(path)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite")
    return {name: save_model(config, folder / f"{name}.weights.h5") for name, config in CONFIGS.items()}


def reference(path, dense, categorical):
    """Probabilities of the NumPy reference, its table as the file has it: quantized and decoded."""
    with WeightsReader(path) as reader:
        config, layers = reader.config, layers_of(reader)
        table = reader.table(0, reader.config.table_rows)
    magnitude = np.abs(table).max(axis=1)
    quantizer = RowQuantizer.fit(magnitude.min(), magnitude.max())
    decoded = quantizer.dequantize(quantizer.quantize(table))

    def weight(part, number, kind, ids):
        if part != "embedding":
            return layers[part, number][kind == "bias"]
        size = config.categorical_feature_sizes[number]
        return decoded[config.block_offsets[number] + np.where((ids >= 0) & (ids < size), ids, size)]

    return sigmoid(logits(config, weight, dense, categorical)[:, 0])


def layers_of(reader):
    return {(m, i): reader.dense(m, i) for m, i, _, _ in reader.config.dense_shapes()}


@pytest.mark.parametrize("name", CONFIGS)
def test_float_layers_compute_what_numpy_computes(weights, tmp_path, name):
    dense, categorical = inputs(CONFIGS[name])
    path = tmp_path / "m.tflite"
    export_tflite(weights[name], path, mlp="float32", quiet=True)
    np.testing.assert_allclose(Scorer(path).score(dense, categorical), reference(weights[name], dense, categorical), atol=2e-6)


@pytest.mark.parametrize(
    "name, mlp, bound",
    [
        ("dot", "float32", 0.01),
        ("dot", "float16", 0.01),
        ("dot", "dynamic", 0.02),
        ("dot", "mixed", 0.02),
        ("cat", "dynamic", 0.02),
        ("self", "dynamic", 0.02),
    ],
)
def test_errors_are_reported_and_small(weights, tmp_path, name, mlp, bound):
    dense, categorical = inputs(BASE, 500)
    path = tmp_path / "m.tflite"
    report = export_tflite(weights[name], path, mlp=mlp, evaluation=(dense, categorical), quiet=True)
    keras = dlrm_tf.load(weights[name])({"dense": dense, "categorical": categorical})
    error = np.abs(Scorer(path).score(dense, categorical) - tf.sigmoid(keras).numpy()[:, 0])
    assert report.max_error == pytest.approx(error.max(), abs=1e-6)
    assert report.mean_error == pytest.approx(error.mean(), abs=1e-6)
    assert 0 < report.max_error < bound
    assert report.bytes == os.path.getsize(path)
    assert f"mean {report.mean_error:.5f}" in str(report)
    written = read_metadata(path)["errors"]
    assert (written["rows"], written["max_error"], written["mean_error"]) == (500, report.max_error, report.mean_error)
    assert written["quality"] is None


def test_size_is_rows_and_layers(weights, tmp_path):
    sizes = {m: export_tflite(weights["dot"], tmp_path / f"{m}.tflite", mlp=m, quiet=True).bytes for m in ("float32", "dynamic")}
    table = (BASE.table_rows + 4) * 9
    kernels = sum(fan_in * fan_out for _, _, fan_in, fan_out in BASE.dense_shapes() if fan_in * fan_out >= 1024)
    assert table < sizes["float32"] < table + 4 * BASE.num_parameters - 4 * 8 * BASE.table_rows + 12_000
    # Three bytes less a weight, a scale more an output; the float kernels are gone from the file.
    assert sizes["float32"] - sizes["dynamic"] > 3 * kernels * 0.9


@pytest.mark.parametrize("bad", [-1, -(2**31), 2**31 - 1, None])
def test_a_bad_id_reads_the_oov_row_of_its_own_feature(weights, tmp_path, bad):
    path = tmp_path / "m.tflite"
    export_tflite(weights["dot"], path, mlp="float32", quiet=True)
    scorer = Scorer(path)
    dense, good = inputs(BASE, 1)
    good[:] = 0
    for f, size in enumerate(BASE.categorical_feature_sizes):
        out, oov = good.copy(), good.copy()
        out[0, f] = size + 1 if bad is None else bad
        oov[0, f] = size
        assert scorer.score(dense, out) == scorer.score(dense, oov)
        np.testing.assert_allclose(scorer.score(dense, out), reference(weights["dot"], dense, oov), atol=2e-6)


@pytest.mark.parametrize("mlp", ["dynamic", "mixed"])
def test_a_score_does_not_depend_on_the_other_rows(weights, tmp_path, mlp):
    path = tmp_path / "m.tflite"
    export_tflite(weights["dot"], path, mlp=mlp, quiet=True)
    dense, categorical = inputs(BASE, 64)
    dense[1] *= 50
    scorer = Scorer(path)
    alone = [scorer.score(dense[i : i + 1], categorical[i : i + 1])[0] for i in range(64)]
    np.testing.assert_allclose(scorer.score(dense, categorical), alone, atol=1e-6)


def test_metadata_says_what_the_file_is(weights, tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(weights["dot"], path, mlp="dynamic", quiet=True)
    metadata = read_metadata(path)
    assert dlrm_tf.DLRMConfig(**metadata["config"]) == BASE
    assert metadata["quantization"]["mlp"] == "dynamic"
    assert metadata["errors"]["rows"] == 0
    assert {"inputs", "outputs", "preprocessing", "vocabulary_fingerprint", "source_sha256"} <= set(metadata)


@pytest.mark.parametrize("mlp, oldest", [("float16", b"2.8.0"), ("dynamic", b"2.17.0"), ("mixed", b"2.17.0")])
def test_the_oldest_runtime_is_the_one_that_the_converter_would_name(weights, tmp_path, mlp, oldest):
    path = tmp_path / "m.tflite"
    export_tflite(weights["dot"], path, mlp=mlp, quiet=True)
    assert read_entry(path, "min_runtime_version").rstrip(b"\0") == oldest


def test_constants_are_aligned_and_the_table_is_the_files_own(weights, tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(weights["dot"], path, quiet=True)
    with mapped(path) as model:
        for i in range(model.BuffersLength()):
            data = model.Buffers(i)._tab
            if model.Buffers(i).DataLength() > 4:
                assert data.Vector(data.Offset(4)) % 16 == 0
        names = {v: k for k, v in vars(flatbuffer.schema.BuiltinOperator).items()}
        used = {names[model.OperatorCodes(i).BuiltinCode()] for i in range(model.OperatorCodesLength())}
    assert "CUSTOM" not in used
    assert {"GATHER", "FULLY_CONNECTED", "LOGISTIC"} <= used


def test_golden_model_scores_as_mindspore_did(golden_ckpt, golden_run, tmp_path):
    """Float layers leave the rows' error only, against probabilities that MindSpore computed."""
    settings, arrays = golden_run("tiny")
    dlrm_tf.convert(golden_ckpt("tiny", "trained"), tmp_path / "m.weights.h5", quiet=True)
    export_tflite(tmp_path / "m.weights.h5", tmp_path / "m.tflite", mlp="float32", quiet=True)
    scored = Scorer(tmp_path / "m.tflite").score(*(arrays[key][settings["steps"]] for key in ("dense", "categorical")))
    assert np.abs(scored - arrays["prob_trained"].reshape(-1)).max() < 2e-3


def test_custom_and_flex_operators_are_refused(tmp_path):
    path = tmp_path / "flex.tflite"
    function = tf.function(lambda x: tf.strings.to_number(tf.strings.as_string(x))).get_concrete_function(tf.TensorSpec([3]))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    path.write_bytes(converter.convert())
    with pytest.raises(DLRMError, match="custom operator Flex"):
        flatbuffer.check_operators(str(path))


def test_a_table_that_is_unpacked_on_load_is_refused(tmp_path):
    path = tmp_path / "unpack.tflite"
    table = tf.Variable(np.random.default_rng(0).random((2000, 16), np.float32))
    module = tf.Module()
    module.table = table
    function = tf.function(lambda i: tf.gather(table, i)).get_concrete_function(tf.TensorSpec([None], tf.int32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    path.write_bytes(converter.convert())
    with pytest.raises(DLRMError, match=r"DEQUANTIZE\) unpacks a constant of 32,000 elements"):
        flatbuffer.check_operators(str(path), largest_constant=1000)
    flatbuffer.check_operators(str(path), largest_constant=32_000)


def test_a_file_beyond_the_format_is_refused_before_anything_is_written(weights, tmp_path):
    with WeightsReader(weights["dot"]) as reader:
        model = flatbuffer.read(convert(BASE, layers_of(reader), RowQuantizer.fit(0.1, 1.0)))
    table = flatbuffer.resize_table(model, STAND_IN_ROWS, 10)
    with pytest.raises(DLRMError, match="holds at most 2,147,483,647"):
        flatbuffer.write(str(tmp_path / "big.tflite"), model, {table: (2**31, iter(()))})
    assert not os.listdir(tmp_path)


def test_nothing_is_left_of_a_failed_export(weights, tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(weights["dot"], path, quiet=True)
    before = path.read_bytes()
    model = dlrm_tf.load(weights["dot"])
    model.embedding.table.assign(np.full((BASE.table_rows, 8), np.inf, np.float32))
    model.save_weights(tmp_path / "bad.weights.h5")
    with pytest.raises(CheckpointError, match="not finite"):
        export_tflite(tmp_path / "bad.weights.h5", path, quiet=True)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["bad.weights.h5", "m.tflite"]


def test_wrong_arguments(weights, tmp_path):
    dense, categorical = inputs(BASE, 10)
    with pytest.raises(UsageError, match="mlp must be one of float32, float16, dynamic, mixed. Received 'int4'"):
        export_tflite(weights["dot"], tmp_path / "m.tflite", mlp="int4")
    with pytest.raises(DataError, match=r"evaluation rows: wanted shapes \(10, 5\) and \(10, 4\). Received"):
        export_tflite(weights["dot"], tmp_path / "m.tflite", evaluation=(dense, categorical[:, :3]), quiet=True)
    assert not os.listdir(tmp_path)


def test_subset_reads_what_the_whole_table_holds(weights):
    dense, categorical = inputs(BASE, 30, seed=4)
    with WeightsReader(weights["dot"]) as reader:
        kept = seen_ids(categorical, BASE)
        rows = subset_rows(reader, kept)
        table = reader.table(0, BASE.table_rows)
    at = 0
    for ids, size, offset in zip(kept, BASE.categorical_feature_sizes, BASE.block_offsets):
        np.testing.assert_array_equal(rows[at : at + len(ids) + 1], table[np.append(ids, size) + offset])
        at += len(ids) + 1
    assert at == len(rows)
    whole = tf.sigmoid(dlrm_tf.load(weights["dot"])({"dense": dense, "categorical": categorical})).numpy()[:, 0]
    np.testing.assert_allclose(float_probabilities(weights["dot"], dense, categorical), whole, atol=1e-6)


def test_renumbering_by_hand():
    kept = [np.array([2, 5, 9]), np.array([0])]
    ids = np.array([[5, 0], [9, 1], [3, -1], [10, 0], [-4, 0], [2, 7]])
    config = dlrm_tf.DLRMConfig((10, 8))
    np.testing.assert_array_equal(renumber(ids, kept, config), [[1, 0], [2, 1], [3, 1], [3, 0], [3, 0], [0, 1]])
    bags = dlrm_tf.DLRMConfig((10, 8), hot_sizes=(2, 1))
    ids = np.array([[5, -1, 0], [9, 3, -1], [-1, -2, 7]])
    np.testing.assert_array_equal(renumber(ids, kept, bags), [[1, -1, 0], [2, 3, -1], [-1, 3, 1]])
