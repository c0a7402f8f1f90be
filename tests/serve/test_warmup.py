"""Warm-up: a version's recorded requests are run before it serves, and a file that can't be run stops it."""

import logging

import numpy as np
import pytest
from serving_models import INPUTS, example, predict_log, write_warmup
from tensorflow_serving.apis import prediction_log_pb2

from dlrm_tf.errors import ServingError
from dlrm_tf.serve import ModelServer
from dlrm_tf.serve.servable import Servable
from dlrm_tf.serve.warmup import _ANSWER
from dlrm_tf.versions import WARMUP_FILE


def test_warm_up_runs_before_a_version_serves(save_linear, tmp_path, monkeypatch):
    runs, run = [], Servable.run
    monkeypatch.setattr(Servable, "run", lambda self, *call: runs.append(1) or run(self, *call))
    base = save_linear(1)
    write_warmup(tmp_path / "dlrm" / "1" / WARMUP_FILE, [predict_log()] * 3)
    with ModelServer(model_name="dlrm", model_base_path=base):
        assert len(runs) == 3
    with ModelServer(model_name="dlrm", model_base_path=base, enable_model_warmup=False):
        assert len(runs) == 3


def test_warm_up_of_every_kind_of_call(example_model):
    assert set(_ANSWER) == {"predict_log", "classify_log", "regress_log", "multi_inference_log"}
    loaded = Servable(example_model + "/3")
    for kind, signature in (("classify_log", "classify"), ("regress_log", "regress")):
        request = getattr(prediction_log_pb2.PredictionLog(), kind).request
        request.model_spec.signature_name = signature
        request.input.example_list.examples.append(example(x=1.0))
        assert _ANSWER[kind](loaded, 3, request).result.ByteSize()
    loaded.close()


def test_a_request_of_more_rows_than_a_batch_is_left_out(save_linear, tmp_path, monkeypatch, caplog):
    runs, run = [], Servable.run
    monkeypatch.setattr(Servable, "run", lambda self, *call: runs.append(len(call[1][0])) or run(self, *call))
    base, batching, path = save_linear(1), tmp_path / "batching.config", tmp_path / "dlrm" / "1" / WARMUP_FILE
    sizes = [1, 5, 4, 6]
    write_warmup(path, [predict_log(**{name: np.repeat(value, n, axis=0) for name, value in INPUTS.items()}) for n in sizes])
    batching.write_text("max_batch_size { value: 4 }")
    options = {"enable_batching": True, "batching_parameters_file": str(batching), "num_request_iterations_for_warmup": 2}
    with caplog.at_level(logging.WARNING, "dlrm_tf.serve"), ModelServer(model_name="dlrm", model_base_path=base, **options):
        assert runs == [1, 1, 4, 4]
    reason = "Task size 5 is larger than maximum input batch size 4"
    assert [record.getMessage() for record in caplog.records] == [f"{path}: 2 of 4 requests left out: {reason}"]


@pytest.mark.parametrize(
    "records, message",
    [
        ([predict_log("none")], 'record 1: FAILED_PRECONDITION: Serving signature key "none" not found.'),
        ([predict_log(), predict_log(x=[1.0])], "record 2: INVALID_ARGUMENT: input size does not match signature"),
        ([predict_log(), b"\xff\xff"], "record 2 is not a PredictionLog"),
        ([b""], "record 1: unsupported log type None"),
        ([predict_log()] * 1001, "wanted at most 1000 warm-up records"),
        (None, "Please verify your warmup data is in TFRecord format."),
    ],
)
def test_a_bad_warm_up_file_stops_the_start(save_linear, tmp_path, records, message):
    base, path = save_linear(1), tmp_path / "dlrm" / "1" / WARMUP_FILE
    write_warmup(path, records or [])
    if records is None:
        path.write_bytes(b"no records at all")
    with pytest.raises(ServingError) as caught:
        ModelServer(model_name="dlrm", model_base_path=base).start()
    assert message in str(caught.value)
