"""A version that is a TFLite model: its signatures are those of the file, its answers NumPy's, its refusals the client's."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from waiting import PATIENCE

import dlrm_tf
from dlrm_tf.errors import ServingError
from dlrm_tf.export.tflite.export import TFLiteExporter
from dlrm_tf.lite import Scorer
from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer
from dlrm_tf.serve.lite_servable import LITE_FILE, LiteServable
from dlrm_tf.serving_api.errors import RequestError


class Products(tf.Module):
    """Signatures: `times` a matrix of ones, a sum, and one that `fails` when it runs."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def times(self, x):
        return {"y": tf.matmul(x, tf.ones([3, 2])), "rows": tf.shape(x)[0]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def fails(self, x):
        return {"y": tf.reshape(x, [5, 1])}  # of five values only

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="x"), tf.TensorSpec([], tf.int32, name="z")])
    def add(self, x, z):
        return {"y": x + z}


@pytest.fixture(scope="module")
def servable(tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("lite"), Products()
    signatures = {name: getattr(module, name) for name in ("times", "add", "fails")}
    tf.saved_model.save(module, str(folder / "saved"), signatures=signatures)
    (folder / LITE_FILE).write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved")).convert())
    servable = LiteServable(str(folder), pools=2)
    yield servable
    servable.close()


def names(servable, signature, side, *aliases):
    tensors = getattr(servable.signatures[signature], side)
    return tuple(tensors[alias].name for alias in aliases)


def test_signatures(servable):
    assert set(servable.signatures) == {"times", "add", "fails"}
    x = servable.signatures["times"].inputs["x"]
    assert (x.dtype, [dim.size for dim in x.tensor_shape.dim]) == (1, [-1, 3])
    assert servable.signatures["add"].inputs["z"].dtype == 3 and not servable.signatures["add"].inputs["z"].tensor_shape.dim


def test_calls_of_any_number_of_rows_at_a_time(servable):
    feeds, fetches = names(servable, "times", "inputs", "x"), names(servable, "times", "outputs", "rows", "y")

    def call(rows):
        x = np.random.default_rng(rows).random((rows, 3), np.float32)
        count, y = servable.run(feeds, [x], fetches)
        assert count == rows
        np.testing.assert_allclose(y, x.sum(1, keepdims=True) * [1, 1], rtol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, [1, 5, 2, 64, 3, 1, 1000, 7] * 4))
    sum_names = names(servable, "add", "inputs", "x", "z"), names(servable, "add", "outputs", "y")
    (y,) = servable.run(sum_names[0], [np.array([1, 2], np.int32), np.array(3, np.int32)], sum_names[1])
    assert y.tolist() == [4, 5]


@pytest.mark.parametrize(
    "signature, arrays, message",
    [
        ("times", [np.zeros((1, 3), np.int32)], r"Expects arg\[0\] to be float but int32 is provided"),
        ("times", [np.zeros((1, 4), np.float32)], r"Expects arg\[0\] to have shape \[-1, 3\] but \[1, 4\] is provided"),
        ("times", [np.zeros((1,) * 20 + (3,), np.float32)], r"Expects arg\[0\] to have shape \[-1, 3\]"),
        ("add", [np.zeros(1, np.int32), np.zeros((1,) * 5, np.int32)], r"Expects arg\[1\] to have shape \[\] but"),
        ("fails", [np.zeros(2, np.float32)], "RuntimeError"),
        ("add", [np.zeros(1, np.int32), np.zeros((), np.int64)], r"Expects arg\[1\] to be int32 but int64 is provided"),
    ],
)
def test_values_that_the_model_refuses(servable, signature, arrays, message):
    feeds = names(servable, signature, "inputs", *("x", "z")[: len(arrays)])
    for _ in range(3):  # more often than there are interpreters: each is given back
        with pytest.raises(RequestError, match=message) as caught:
            servable.run(feeds, arrays, names(servable, signature, "outputs", "y"))
        assert caught.value.code.name == "INVALID_ARGUMENT" and caught.value.message.count("failed") <= 2


def test_one_signature_at_a_time(servable):
    with pytest.raises(RequestError, match="one signature at a time"):
        servable.run(names(servable, "times", "inputs", "x"), [np.zeros((1, 3))], names(servable, "add", "outputs", "y"))


def test_a_phones_file_scores_on_a_server_as_on_the_phone(tmp_path):
    base, weights = tmp_path / "dlrm", tmp_path / "m.weights.h5"
    (base / "1").mkdir(parents=True)
    dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=3).save_weights(weights)
    TFLiteExporter(weights).export(str(base / "1" / LITE_FILE))
    generator = np.random.default_rng(0)
    dense, categorical = generator.random((5, 13), np.float32), generator.integers(-2, 9, (5, 26)).astype(np.int32)
    expected = Scorer(base / "1" / LITE_FILE).score(dense, categorical)
    options = {"model_name": "dlrm", "model_base_path": str(base), "prefer_tflite_model": True, "rest_api_port": 0}
    with ModelServer(**options) as server:
        for target in (server.target, server.rest_target):
            with Client(target, timeout=PATIENCE) as client:
                np.testing.assert_allclose(client.score(dense, categorical), expected, rtol=1e-6)


@pytest.mark.parametrize("content", [b"", b"no model" * 100])
def test_a_damaged_file(tmp_path, content):
    (tmp_path / LITE_FILE).write_bytes(content)
    with pytest.raises(ServingError, match=f"{LITE_FILE}: the TFLite model does not load"):
        LiteServable(str(tmp_path), pools=1)
