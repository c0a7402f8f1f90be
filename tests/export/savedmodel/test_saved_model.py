"""SavedModel export: the same probabilities, explicit names, atomic versions, warm-up requests."""

import dataclasses
import json
import os

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.errors import CheckpointError, UsageError
from dlrm_tf.export.savedmodel.export import choose_warmup_batches, export_savedmodel
from dlrm_tf.export.savedmodel.metadata import METADATA
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.serve import ModelServer
from dlrm_tf.versions import WARMUP_FILE, versions_on_disk

tf = tensorflow()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=5)
    weights = folder / "m.weights.h5"
    model.save_weights(weights)
    return model, weights, export_savedmodel(weights, folder / "models", name="clicks", warmup_batches=(1, 8))


def test_same_probabilities_under_explicit_names(exported):
    model, _, path = exported
    generator = np.random.default_rng(0)
    rows = {
        "dense": generator.random((33, 13), np.float32),
        "categorical": generator.integers(-2, 9, (33, 26)).astype(np.int32),
    }
    signature = tf.saved_model.load(path).signatures["serving_default"]
    assert set(signature.structured_input_signature[1]) == {"dense", "categorical"}
    served = signature(**{k: tf.constant(v) for k, v in rows.items()})
    assert set(served) == {"probability", "logit"}
    logit = model(rows).numpy()
    np.testing.assert_allclose(served["logit"], logit, atol=1e-6)
    np.testing.assert_allclose(served["probability"], 1 / (1 + np.exp(-logit)), atol=1e-6)
    assert served["probability"].shape == (33, 1)


@pytest.mark.parametrize("rank", [None, 9])
def test_cross_layers_are_served(tmp_path, rank):
    config = dataclasses.replace(dlrm_tf.DLRMConfig.preset("tiny"), interaction="cross", cross_rank=rank)
    model = dlrm_tf.DLRM(config, seed=5)
    model.save_weights(tmp_path / "m.weights.h5")
    path = export_savedmodel(tmp_path / "m.weights.h5", tmp_path / "models")
    generator = np.random.default_rng(0)
    dense, categorical = generator.random((33, 13), np.float32), generator.integers(-2, 9, (33, 26)).astype(np.int32)
    served = tf.saved_model.load(path).signatures["serving_default"](
        dense=tf.constant(dense), categorical=tf.constant(categorical)
    )
    np.testing.assert_allclose(served["logit"], model({"dense": dense, "categorical": categorical}), atol=1e-6)
    with open(os.path.join(path, METADATA)) as f:
        assert dlrm_tf.DLRMConfig(**json.load(f)["config"]) == config


def test_the_graph_is_lean(exported):
    """No table baked in as a constant, no Keras layer traced beside the signature."""
    _, _, path = exported
    with open(os.path.join(path, "saved_model.pb"), "rb") as f:
        proto = f.read()
    assert len(proto) < 200_000
    assert b"call_and_return" not in proto


def test_versions_count_up_and_are_never_overwritten(exported):
    _, weights, path = exported
    model_dir = os.path.dirname(path)
    assert os.path.basename(path) == "1"
    assert os.path.basename(export_savedmodel(weights, os.path.dirname(model_dir), name="clicks")) == "2"
    with pytest.raises(FileExistsError):
        export_savedmodel(weights, os.path.dirname(model_dir), name="clicks", version=2)
    assert sorted(versions_on_disk(model_dir)) == [1, 2]
    assert sorted(os.listdir(model_dir)) == ["1", "2"]


def test_warmup_batches_from_the_command_line(exported, tmp_path, capsys):
    command = ["export", "savedmodel", "--weights", str(exported[1]), "-o", str(tmp_path), "--warmup-batches", "2,16"]
    assert main(command) == 0
    assert len(list(tf.data.TFRecordDataset(str(tmp_path / "dlrm" / "1" / WARMUP_FILE)))) == 2
    said = capsys.readouterr()
    assert said.out == str(tmp_path / "dlrm" / "1") + "\n"
    assert (
        said.err.splitlines()[-1] == "warm-up requests of 2, 16 rows: a server that batches needs max_batch_size of at least 16"
    )
    assert main([*command[:-1], "2,x"]) == 2
    assert main([*command, "--max-batch-size", "8"]) == 2
    assert "--warmup-batches: wanted at most --max-batch-size, 8. Received 16" in capsys.readouterr().err
    assert os.listdir(tmp_path / "dlrm") == ["1"]


@pytest.mark.parametrize(
    "limit, expected", [(None, (1, 64, 1000)), (2000, (1, 64, 1000, 2000)), (1000, (1, 64, 1000)), (64, (1, 64)), (1, (1,))]
)
def test_warmup_batches_follow_the_servers_largest_batch(limit, expected):
    assert choose_warmup_batches(max_batch_size=limit) == expected


def test_no_warmup_request_is_larger_than_the_servers_batch(exported, tmp_path):
    path = export_savedmodel(exported[1], tmp_path, max_batch_size=8)
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 8 }")
    options = {"model_base_path": os.path.dirname(path), "enable_batching": True, "batching_parameters_file": str(batching)}
    with ModelServer(model_name="dlrm", **options) as server:
        warm = server.metrics.page().decode()
    assert "processed_batch_size_count 2.0" in warm and "processed_batch_size_sum 9.0" in warm


def test_warmup_and_metadata(exported):
    from tensorflow_serving.apis import prediction_log_pb2

    model, _, path = exported
    logs = [
        prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(os.path.join(path, WARMUP_FILE))
    ]
    requests = [log.predict_log.request for log in logs]
    assert [r.inputs["dense"].tensor_shape.dim[0].size for r in requests] == [1, 8]
    assert {r.model_spec.name for r in requests} == {"clicks"}
    with open(os.path.join(path, METADATA)) as f:
        assert json.load(f)["config"] == json.loads(model.config.to_json())


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"name": "a/b"}, UsageError, "--name"),
        ({"name": ".."}, UsageError, "--name"),
        ({"version": 0}, UsageError, "--version"),
        ({"warmup_batches": (1, 0)}, UsageError, "--warmup-batches"),
        ({"max_batch_size": 0}, UsageError, "--max-batch-size: wanted a positive number. Received 0"),
        ({"weights": "none.weights.h5"}, CheckpointError, "no such file"),
    ],
)
def test_bad_calls_leave_nothing(exported, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        export_savedmodel(**{"weights": exported[1], "out_dir": tmp_path, **arguments})
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []
