"""The request log: what it holds, its bounds, and that a failing disk or a full queue costs records, never answers."""

import base64
import json
import logging
import os
import pathlib
import resource
import sys

import grpc
import pytest
import tensorflow as tf
import urllib3
from serving_models import example, served
from tensorflow_serving.apis import classification_pb2, inference_pb2, predict_pb2, regression_pb2
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub
from waiting import PATIENCE, eventually

from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.serve import ModelServer, ServerOptions, log_files
from dlrm_tf.serve.log_files import FRAME_BYTES, LogFiles
from dlrm_tf.serve.metrics import Metrics
from dlrm_tf.serve.request_log import OBJECT_BYTES, QUEUE_BYTES, RequestLog
from dlrm_tf.serve.servable import Servable
from dlrm_tf.serving_api.limits import MAX_WARMUP_RECORDS
from dlrm_tf.serving_api.tensors import to_array
from dlrm_tf.versions import WARMUP_FILE

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from logged_requests import read_requests  # noqa: E402

import serving  # noqa: E402


def names(folder):
    """Of all files under a folder."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def records(folder):
    """Of all files of a model, oldest first."""
    paths = [str(folder / name) for name in names(folder)]
    return [record for path in paths for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]


def logged(metrics):
    """`{(model, status): count}` of the metrics page."""
    lines = [line for line in metrics.page().decode().splitlines() if line.startswith(":tensorflow:serving:request_log_count{")]
    return {tuple(line.split('"')[1::2]): float(line.split()[-1]) for line in lines}


@pytest.fixture
def files(tmp_path):
    """Function `(**bounds) -> (LogFiles, counts)` of the folder `log`."""

    def make(file_bytes=10_000, file_seconds=1e9, total_bytes=100_000):
        counts = {}
        made = LogFiles(
            str(tmp_path / "log"),
            file_bytes=file_bytes,
            file_seconds=file_seconds,
            total_bytes=total_bytes,
            count=lambda model, status, n: counts.__setitem__((model, status), counts.get((model, status), 0) + n),
        )
        return made, counts

    return make


def test_every_kind_of_call_is_logged_with_its_answer(example_model, tmp_path):
    server = ModelServer(model_name="m", model_base_path=example_model, rest_api_port=0, request_log_dir=str(tmp_path / "log"))
    server.start()
    rest = f"{server.rest_target}/v1/models/m"
    serialized = example(x=3.0).SerializeToString()
    expected = []
    with grpc.insecure_channel(server.target) as channel:
        stub = PredictionServiceStub(channel)
        for kind, signature, method in (
            (classification_pb2.ClassificationRequest, "classify", "Classify"),
            (regression_pb2.RegressionRequest, "regress", "Regress"),
        ):
            request = kind()
            request.model_spec.name, request.model_spec.signature_name = "m", signature
            request.input.example_list.examples.append(example(x=3.0))
            response = getattr(stub, method)(request, timeout=PATIENCE)
            body = json.dumps({"signature_name": signature, "examples": [{"x": 3.0}]})
            assert urllib3.request("POST", f"{rest}:{method.lower()}", body=body).status == 200
            expected += [(f"{method.lower()}_log", signature, request, response)] * 2
        multi = inference_pb2.MultiInferenceRequest(input=request.input)
        task = multi.tasks.add(method_name="tensorflow/serving/regress")
        task.model_spec.CopyFrom(request.model_spec)
        expected.append(("multi_inference_log", "regress", multi, stub.MultiInference(multi, timeout=PATIENCE)))
        predict = predict_pb2.PredictRequest(model_spec=request.model_spec)
        predict.inputs["inputs"].CopyFrom(tf.make_tensor_proto([serialized]))
        expected.append(("predict_log", "regress", predict, stub.Predict(predict, timeout=PATIENCE)))
        refused = predict_pb2.PredictRequest(model_spec=request.model_spec)
        refused.inputs["inputs"].CopyFrom(tf.make_tensor_proto([b"no example"]))
        with pytest.raises(grpc.RpcError):
            stub.Predict(refused, timeout=PATIENCE)  # not logged
    body = {"signature_name": "regress", "instances": [{"b64": base64.b64encode(serialized).decode()}]}
    assert urllib3.request("POST", f"{rest}:predict", body=json.dumps(body)).json() == {"predictions": [6.0]}
    server.stop()

    found = [PredictionLog.FromString(record) for record in records(tmp_path / "log" / "m")]
    assert names(tmp_path) == names(tmp_path / "log" / "m") and len(names(tmp_path)) == 1
    assert logged(server.metrics) == {("m", "OK"): 7.0}
    for log, (kind, signature, request, response) in zip(found, expected):
        assert log.WhichOneof("log_type") == kind
        exchange = getattr(log, kind)
        assert exchange.request == request and exchange.response == response
        metadata = log.log_metadata
        assert (metadata.model_spec.name, metadata.model_spec.version.value) == ("m", 3)
        assert metadata.model_spec.signature_name == signature
        assert (metadata.sampling_config.sampling_rate, list(metadata.saved_model_tags)) == (1.0, ["serve"])
        assert metadata.timestamp_secs > 1.6e9
    rest_predict = found[6].predict_log
    assert rest_predict.request.model_spec.signature_name == "regress" and rest_predict.response.model_spec.version.value == 3
    assert to_array(rest_predict.request.inputs["inputs"], "") == [serialized]
    assert to_array(rest_predict.response.outputs["outputs"], "").tolist() == [6.0]


def test_a_file_serves_as_warm_up_file_and_is_replayed(save_linear, tmp_path, start, monkeypatch, capsys):
    base = save_linear(1)
    options = {"model_name": "dlrm", "model_base_path": base, "request_log_dir": str(tmp_path / "log")}
    with ModelServer(rest_api_port=0, **options) as server:
        for target in (server.target, server.rest_target, server.target):
            assert served(target, version=1) == 1
        with pytest.raises(ServingError, match="wanted a folder of this server alone"):
            ModelServer(**options).start()
    (name,) = names(tmp_path / "log" / "dlrm")
    save_linear(2)
    warm_up = tmp_path / "dlrm" / "2" / WARMUP_FILE
    warm_up.parent.mkdir()
    (tmp_path / "log" / "dlrm" / name).rename(warm_up)

    runs, run = [], Servable.run
    monkeypatch.setattr(Servable, "run", lambda self, *call: runs.append(1) or run(self, *call))
    server = start(model_base_path=base)
    assert len(runs) == 3
    assert [(request.method.split("/")[-1], request.rows) for request in read_requests(str(warm_up))] == [("Predict", 1)] * 3
    arguments = ["--target", server.target, "--replay", str(warm_up), "--callers=2", "--seconds=0.1"]
    monkeypatch.setattr(sys, "argv", ["serving.py", *arguments])
    monkeypatch.setattr(serving, "WARMUP_SECONDS", 0.0)
    serving.main()  # version 1, which the log asks for, is not served any more
    label, callers, rows, rate, _, p50, p99, _, errors = capsys.readouterr().out.splitlines()[1].rsplit(maxsplit=8)
    assert (label, callers, rows, errors) == ("as it runs", "2", "1", "0")
    assert float(rate.replace(",", "")) > 0 and 0 < float(p50) <= float(p99)


def test_files_are_whole_and_bounded(files, tmp_path):
    record = bytes(1000 - FRAME_BYTES)
    made, counts = files(file_bytes=4000, total_bytes=10_000)
    seen = []
    for number in range(1, 31):
        made.write("a" if number % 3 else "b/..", bytes([number]) + record[1:])
        sizes = [path.stat().st_size for path in (tmp_path / "log").rglob("requests-*") if not seen.append(path.name)]
        assert sum(sizes) <= 10_000 and set(sizes) <= {1000, 2000, 3000, 4000}
    made.close()
    assert counts == {("a", "OK"): 20, ("b/..", "OK"): 10}
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"a", "b%2F.."}
    left = [record[0] for model in ("a", "b%2F..") for record in records(tmp_path / "log" / model)]
    assert len(left) <= 10 and {28, 29, 30} <= set(left) and len(set(seen)) > len(names(tmp_path / "log"))
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_file_that_somebody_takes_while_room_is_made_costs_no_record(files, monkeypatch):
    made, counts = files(file_bytes=1000, total_bytes=2000)
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", lambda path: [unlink(path) for _ in range(2)])  # the second time it is gone
    for _ in range(5):
        made.write("a", bytes(1000 - FRAME_BYTES))
    made.close()
    assert counts == {("a", "OK"): 5}


def test_a_file_has_no_more_records_than_a_warm_up_file_may(files, tmp_path):
    made, counts = files(file_bytes=1 << 20, total_bytes=1 << 20)
    for _ in range(MAX_WARMUP_RECORDS + 1):
        made.write("a", b"record")
    made.close()
    finished, _ = sorted((tmp_path / "log" / "a").glob("requests-*"))
    assert len(list(tf.data.TFRecordDataset(str(finished)).as_numpy_iterator())) == MAX_WARMUP_RECORDS
    assert counts == {("a", "OK"): MAX_WARMUP_RECORDS + 1}


def test_a_file_is_named_at_its_age_and_a_killed_servers_part_is_removed(files, tmp_path):
    (tmp_path / "log" / "a").mkdir(parents=True)
    (tmp_path / "log" / "a" / ".requests-1.tfrecord.part").write_bytes(b"cut")
    (tmp_path / "log" / "a" / ".hidden").write_bytes(b"another's")
    made, _ = files(file_seconds=0)
    made.write("a", b"record")
    assert len(names(tmp_path)) == 2 and not list(tmp_path.rglob("requests-*"))
    made.flush()
    assert names(tmp_path)[0] == ".hidden" and len(names(tmp_path)) == 2 and records(tmp_path / "log" / "a")[-1:] == [b"record"]
    made.close()


def test_a_full_disk_is_one_warning_and_dropped_records(files, tmp_path, monkeypatch, caplog):
    made, counts = files(file_bytes=1 << 20, total_bytes=1 << 20)
    monkeypatch.setattr(log_files, "RETRY_SECONDS", 1e9)
    made.write("a", b"kept")
    made.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with caplog.at_level(logging.INFO, "dlrm_tf.serve"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the system refuses to write beyond it, as on a full disk
        try:
            for _ in range(5):
                made.write("a", bytes(300_000))
                made.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert len(caplog.records) == 1 and "records are dropped until it can be written again" in caplog.text
        made._retry_at = 0
        made.write("a", b"later")
        made.close()
        assert len(caplog.records) == 2 and "written again" in caplog.records[1].getMessage()
    assert counts == {("a", "OK"): 2, ("a", "UNAVAILABLE"): 5}
    assert records(tmp_path / "log" / "a") == [b"kept", b"later"]


def test_a_folder_taken_away_costs_records_only(save_linear, tmp_path, start):
    log = tmp_path / "log"
    server = start(model_base_path=save_linear(1), request_log_dir=str(log), request_log_file_seconds=0)
    assert served(server.target) == 1
    eventually(lambda: list(log.rglob("requests-*")))
    for path in log.rglob("requests-*"):
        path.unlink()
    (log / "dlrm").rmdir()
    (log / "dlrm").write_text("no folder")
    assert served(server.target) == 1
    eventually(lambda: ("dlrm", "UNAVAILABLE") in logged(server.metrics))
    assert served(server.target) == 1


def test_a_full_queue_drops_and_waits_for_nothing(tmp_path, monkeypatch):
    options, metrics = ServerOptions(request_log_file_bytes=1000), Metrics()
    log = RequestLog(str(tmp_path), options, metrics)
    messages = predict_pb2.PredictRequest(), predict_pb2.PredictResponse()
    half = QUEUE_BYTES // 2 - OBJECT_BYTES
    for size in (half, half):  # nothing is written before the start
        log.add("predict_log", "a", size, lambda: messages)
    log.add("predict_log", "a", 1, lambda: pytest.fail("made though it is dropped"))
    assert logged(metrics) == {("a", "RESOURCE_EXHAUSTED"): 1}
    log.start()
    eventually(lambda: log._waiting_bytes == 0)
    large = predict_pb2.PredictRequest(output_filter=["x" * 1000])
    log.add("predict_log", "a", half, lambda: (large, messages[1]))  # there is room again, but a file has none for it
    log.add("predict_log", "a", 1, lambda: 1 / 0)
    log.close()
    assert logged(metrics) == {("a", "OK"): 2, ("a", "RESOURCE_EXHAUSTED"): 2, ("a", "INTERNAL"): 1}


def test_a_sample(tmp_path):
    for rate, least, most in ((0.0, 0, 0), (0.25, 2250, 2750), (1.0, 10_000, 10_000)):  # 2,500 within 5.8 standard deviations
        log = RequestLog(str(tmp_path), ServerOptions(request_log_sampling_rate=rate), Metrics())
        assert least <= sum(log.sampled() for _ in range(10_000)) <= most


def test_wrong_options(save_linear, tmp_path):
    for options, message in (
        ({"request_log_sampling_rate": 1.5}, "--request_log_sampling_rate: wanted 0 to 1. Received 1.5"),
        ({"request_log_file_bytes": 0}, "--request_log_file_bytes: wanted at least 1. Received 0"),
        ({"request_log_max_bytes": 5}, "--request_log_max_bytes: wanted at least --request_log_file_bytes, 67108864. Received 5"),
    ):
        with pytest.raises(UsageError, match=message):
            ServerOptions(**options)
    (tmp_path / "file").write_text("")
    with pytest.raises(ServingError, match="--request_log_dir: wanted a folder for files. Received .*file"):
        ModelServer(model_name="dlrm", model_base_path=save_linear(1), request_log_dir=str(tmp_path / "file")).start()
