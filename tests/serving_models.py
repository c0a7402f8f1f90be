"""SavedModels made on the spot: the server serves any, so the tests use small ones whose answers are known by hand."""

import contextlib
import functools
import os
import pathlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2
from waiting import PATIENCE

from dlrm_tf.errors import ServingError
from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer

INPUTS = {"dense": np.zeros((1, 13), np.float32), "categorical": np.zeros((1, 26), np.int32)}


class LinearScorer(tf.Module):
    """`logit = sum(dense) + sum(categorical) + bias`, so that a version is known by its answer to `INPUTS`."""

    def __init__(self, bias):
        self.bias = tf.Variable(np.float32(bias))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 13], tf.float32, name="dense"),
            tf.TensorSpec([None, 26], tf.int32, name="categorical"),
        ]
    )
    def predict(self, dense, categorical):
        logit = (
            tf.reduce_sum(dense, 1, keepdims=True) + tf.cast(tf.reduce_sum(categorical, 1, keepdims=True), tf.float32) + self.bias
        )
        return {"probability": tf.sigmoid(logit), "logit": logit}


class Echo(tf.Module):
    """Gives back a string and a number input, and has a signature that fails for a negative number."""

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, name="text"), tf.TensorSpec(None, tf.int64, name="number")])
    def echo(self, text, number):
        return {"text": text, "number": number}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def root(self, x):
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="negative")]):
            return {"y": tf.sqrt(x)}


class ExampleModel(tf.Module):
    """tf.Examples with a float feature `x` (and perhaps `bias`): classifies by sign, regresses `2 x + bias`."""

    def _read(self, inputs):
        spec = {"x": tf.io.FixedLenFeature([], tf.float32), "bias": tf.io.FixedLenFeature([], tf.float32, 0.0)}
        features = tf.io.parse_example(inputs, spec)
        return 2 * features["x"] + features["bias"]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        score = tf.sigmoid(self._read(inputs))
        classes = tf.tile([["no", "yes"]], [tf.size(inputs), 1])
        return {"classes": classes, "scores": tf.stack([1 - score, score], 1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def scores_only(self, inputs):
        return {"scores": tf.sigmoid(self._read(inputs))[:, None]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        return {"outputs": self._read(inputs)}


def save(module, path, methods=(), **signatures):
    """Saves `module` whole or not at all, as an export does; `methods` are (signature, method name) to write into the proto."""
    temporary = os.path.join(os.path.dirname(path), ".saving")
    tf.saved_model.save(module, temporary, signatures=signatures)
    with edited(temporary) as meta_graph:
        for signature, method in methods:
            meta_graph.signature_def[signature].method_name = f"tensorflow/serving/{method}"
    os.rename(temporary, path)


@contextlib.contextmanager
def edited(path):
    """A context with the meta graph of the SavedModel in folder `path`, which is written again when the context ends."""
    file = pathlib.Path(path, "saved_model.pb")
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    yield model.meta_graphs[0]
    file.write_bytes(model.SerializeToString())


def save_first(base, module, **signatures):
    """Saves `module` as version 1 below the folder `base`, whose path it gives."""
    save(module, str(base / "1"), **signatures)
    return str(base)


@pytest.fixture(autouse=True)
def patient_clients(monkeypatch):
    """On a busy machine a request may take longer than a client waits by default."""
    monkeypatch.setattr(Client, "__init__", functools.partialmethod(Client.__init__, timeout=PATIENCE))


@pytest.fixture
def save_linear(tmp_path):
    """Function `(version, bias=None, model="dlrm") -> base path`; the bias is the version unless given."""

    def make(version, bias=None, model="dlrm"):
        base = tmp_path / model
        base.mkdir(exist_ok=True)
        module = LinearScorer(int(version) if bias is None else bias)
        save(module, str(base / str(version)), serving_default=module.predict)
        return str(base)

    return make


@pytest.fixture(scope="session")
def linear_model(tmp_path_factory):
    """Base path of a `LinearScorer` with bias -20 as version 1."""
    module = LinearScorer(-20)
    return save_first(tmp_path_factory.mktemp("linear"), module, serving_default=module.predict)


@pytest.fixture(scope="session")
def echo_model(tmp_path_factory):
    """Base path of `Echo` as version 1: signatures `serving_default` and `root`."""
    module = Echo()
    return save_first(tmp_path_factory.mktemp("echo"), module, serving_default=module.echo, root=module.root)


@pytest.fixture(scope="session")
def example_model(tmp_path_factory):
    """Base path of `ExampleModel` as version 3: signatures `classify`, `scores_only`, `regress`."""
    base = tmp_path_factory.mktemp("example")
    module = ExampleModel()
    methods = (("classify", "classify"), ("scores_only", "classify"), ("regress", "regress"))
    signatures = {name: getattr(module, name) for name, _ in methods}
    save(module, str(base / "3"), methods, serving_default=module.classify, **signatures)
    return str(base)


def example(**features):
    """A tf.Example of float features."""
    return tf.train.Example(features={"feature": {name: {"float_list": {"value": [value]}} for name, value in features.items()}})


def write_warmup(path, records):
    """Writes a warm-up file of serialized PredictionLogs."""
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def predict_log(signature="serving_default", **inputs):
    """A serialized PredictionLog of a Predict request, of `INPUTS` unless others are given."""
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "dlrm", signature
    for name, value in (inputs or INPUTS).items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()


def model(name, base, labels=(), policy="", platform='model_platform: "tensorflow"'):
    """A model of a models.config file, as text; `labels` are (label, version)."""
    text = "".join(f' version_labels {{ key: "{label}" value: {version} }}' for label, version in labels)
    return f'config {{ name: "{name}" base_path: "{base}" {platform} {policy}{text} }}'


def config_text(*models):
    """The text of a models.config file, of what `model` made."""
    return f"model_config_list {{ {' '.join(models)} }}"


@pytest.fixture
def start(request):
    """Function `(**options) -> ModelServer` of a started server, stopped after the test; `model_base_path` is of `dlrm`."""

    def start(**options):
        options = {"model_name": "dlrm", "file_system_poll_wait_seconds": 0.05, **options}
        server = ModelServer(**options).start(timeout=PATIENCE)
        request.addfinalizer(server.stop)
        return server

    return start


def bias(client):
    """The bias of the `LinearScorer` that answers."""
    return int(client.predict(INPUTS)["logit"][0, 0])


def served(target, model_name="dlrm", **client):
    """The bias of the `LinearScorer` at an address; further arguments are `Client`'s."""
    with Client(target, model_name=model_name, **client) as client:
        return bias(client)


def failure(call, *arguments, **keywords):
    """The text of the ServingError that a call raises; '' when it raises none."""
    try:
        call(*arguments, **keywords)
    except ServingError as e:
        return str(e)
    return ""


def refused(call, request):
    """Status code and details of a gRPC call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=PATIENCE)
    return caught.value.code(), caught.value.details()
