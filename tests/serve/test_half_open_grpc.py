"""Half-open gRPC calls, which never send their request message, must not delay other calls."""

import contextlib
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving_models import failure, refused, served
from waiting import PATIENCE, eventually

from dlrm_tf.score import Client
from dlrm_tf.serve import reception

DENSE, CATEGORICAL = np.zeros((1, 13), np.float32), np.zeros((1, 26), np.int32)
PREDICT = "/tensorflow.serving.PredictionService/Predict"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@contextlib.contextmanager
def half_open(target, method, count):
    """Begins `count` calls that send no message and are cancelled at the end of the block; gives their futures."""
    end = threading.Event()

    def nothing():
        end.wait()
        yield from ()

    with grpc.insecure_channel(target, OWN_CONNECTION) as channel:
        call = channel.stream_unary(method)
        futures = [call.future(nothing()) for _ in range(count)]
        try:
            yield futures
        finally:
            for future in futures:
                future.cancel()
            end.set()


def others_are_served(server):
    """Other connections get answers to Predict, health and reflection calls."""
    with Client(server.target, retries=0, timeout=120) as client:
        assert client.score(DENSE, CATEGORICAL).shape == (1,)
    with grpc.insecure_channel(server.target, OWN_CONNECTION) as channel:
        for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=120)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([question]), timeout=120)
        names = {service.name for service in answer.list_services_response.service}
        assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "grpc.health.v1.Health"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("method", [PREDICT, CHECK, WATCH, REFLECTION])
def test_half_open_calls_delay_no_others(save_linear, monkeypatch, start, method):
    monkeypatch.setattr(reception, "MESSAGE_SECONDS", 600.0)
    server = start(model_base_path=save_linear(1), grpc_max_threads=2)
    with half_open(server.target, method, 40) as futures:
        others_are_served(server)
        assert not any(future.done() for future in futures)
    others_are_served(server)


@pytest.mark.slow
@pytest.mark.parametrize("method", [PREDICT, CHECK, REFLECTION])
def test_more_of_them_than_threads_are_cancelled_soon(save_linear, monkeypatch, start, method):
    monkeypatch.setattr(reception, "MAX_WAITING_THREADS", 8)
    monkeypatch.setattr(reception, "CROWDED_MESSAGE_SECONDS", 0.3)
    server = start(model_base_path=save_linear(1), grpc_max_threads=2)
    with half_open(server.target, method, 40) as futures:
        others_are_served(server)
        eventually(lambda: sum(future.done() and future.code() == grpc.StatusCode.CANCELLED for future in futures) >= 8)
    others_are_served(server)


def test_a_few_are_cancelled_after_a_longer_time(save_linear, monkeypatch, start):
    monkeypatch.setattr(reception, "MESSAGE_SECONDS", 0.5)
    server = start(model_base_path=save_linear(1))
    with half_open(server.target, PREDICT, 1) as (predict,), half_open(server.target, REFLECTION, 1) as (reflection,):
        assert predict.code() == reflection.code() == grpc.StatusCode.CANCELLED
    monkeypatch.setattr(reception, "MESSAGE_SECONDS", 600.0)
    others_are_served(server)


def test_watchers_of_health_occupy_no_thread_and_are_not_cancelled(save_linear, monkeypatch, start):
    monkeypatch.setattr(reception, "MAX_WAITING_THREADS", 4)
    server = start(model_base_path=save_linear(1))
    with grpc.insecure_channel(server.target, OWN_CONNECTION) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watchers = [watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
        assert all(next(watcher).status == health_pb2.HealthCheckResponse.SERVING for watcher in watchers)
        with monkeypatch.context() as patch:
            patch.setattr(reception, "MESSAGE_SECONDS", 0.1)
            time.sleep(0.5)
        others_are_served(server)
        stopping = threading.Thread(target=server.stop, kwargs={"grace": PATIENCE})
        stopping.start()
        assert all(next(watcher).status == health_pb2.HealthCheckResponse.NOT_SERVING for watcher in watchers)
        # Not before the server has told all: grpc_health's servicer may deadlock when a watcher leaves while it is being told.
        eventually(lambda: failure(served, server.target, retries=0))
        for watcher in watchers:
            watcher.cancel()
        stopping.join(PATIENCE)


def test_a_call_without_a_message_or_with_a_damaged_one(save_linear, start):
    with grpc.insecure_channel(start(model_base_path=save_linear(1)).target) as channel:
        for method in (PREDICT, CHECK):
            details = f'"{method}" requires exactly one request message.'
            assert refused(channel.stream_unary(method), iter(())) == (grpc.StatusCode.UNIMPLEMENTED, details)
            details = "Exception deserializing request!"
            assert refused(channel.unary_unary(method), b"\xff") == (grpc.StatusCode.INTERNAL, details)
