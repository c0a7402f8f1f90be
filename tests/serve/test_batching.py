"""Dynamic batching: same answers as alone, and TensorFlow Serving's limits and messages."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import eventually

from dlrm_tf.errors import ServingError
from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer
from dlrm_tf.serve.batching import BatchedServable
from dlrm_tf.serving_api.config_protos import BatchingParameters
from dlrm_tf.serving_api.errors import RequestError, invalid_argument

FEEDS, FETCHES = ("x:0",), ("y:0",)
POOL = ThreadPoolExecutor(64)


def parameters(allowed=(), pad=False, **values):
    result = BatchingParameters(allowed_batch_sizes=allowed, pad_variable_length_inputs=pad)
    for name, value in values.items():
        getattr(result, name).value = value
    return result


class Doubling:
    """A servable that doubles; notes the sizes it ran; waits while `open` is not set; a negative value fails the whole run."""

    path, signatures, check_method_names = "", {}, False

    def __init__(self):
        self.sizes, self.open, self.entered = [], threading.Event(), threading.Semaphore(0)
        self.open.set()

    def run(self, feeds, arrays, fetches):
        self.sizes.append(len(arrays[0]))
        self.entered.release()
        self.open.wait()
        if arrays[0].dtype != object and (np.asarray(arrays[0]) < 0).any():
            raise invalid_argument("negative")
        return [array * 2 for array in arrays]


def batched(servable, threads=1, **values):
    return BatchedServable(servable, parameters(**values), slots=threading.Semaphore(threads), observe=lambda rows: None)


def wait_until_queued(subject, rows):
    def queued():
        with subject._lock:
            return sum(queue.rows for queue in subject._queues.values()) == rows

    eventually(queued)


@contextlib.contextmanager
def held(graph, subject, rows):
    """Occupies the only batch slot until, at the end of the block, `rows` rows wait."""
    graph.open.clear()
    first = POOL.submit(subject.run, FEEDS, [np.zeros(1)], FETCHES)
    graph.entered.acquire()
    try:
        yield
        wait_until_queued(subject, rows)
    finally:
        graph.open.set()
    first.result(120)


def test_a_lone_request_runs_at_once_and_alone():
    graph = Doubling()
    (y,) = batched(graph, batch_timeout_micros=0).run(FEEDS, [np.arange(3.0)], FETCHES)
    assert y.tolist() == [0, 2, 4] and graph.sizes == [3]


def test_requests_waiting_for_a_slot_become_one_batch_each_with_its_own_rows():
    graph = Doubling()
    subject = batched(graph, max_batch_size=8)
    with held(graph, subject, 6):
        waiting = [POOL.submit(subject.run, FEEDS, [np.full(size, float(size))], FETCHES) for size in (1, 2, 3)]
    assert [wait.result(120)[0].tolist() for wait in waiting] == [[2.0], [4.0, 4.0], [6.0, 6.0, 6.0]]
    assert graph.sizes == [1, 6] and not subject._queues


def test_batches_are_padded_to_an_allowed_size_with_the_first_row():
    graph = Doubling()
    subject = batched(graph, max_batch_size=8, allowed=(2, 4, 8))
    assert subject.run(FEEDS, [np.array([1.0, 2.0, 3.0])], FETCHES)[0].tolist() == [2, 4, 6]
    assert graph.sizes == [4]


def test_one_bad_request_fails_alone():
    graph = Doubling()
    subject = batched(graph, max_batch_size=8)
    with held(graph, subject, 3):
        waiting = [POOL.submit(subject.run, FEEDS, [np.array([value])], FETCHES) for value in (1.0, -1.0, 3.0)]
    good, bad, other = (wait.exception(120) or wait.result() for wait in waiting)
    assert good[0].tolist() == [2] and other[0].tolist() == [6]
    assert isinstance(bad, RequestError) and bad.message == "negative"


def test_other_shapes_and_types_never_share_a_batch():
    graph = Doubling()
    subject = batched(graph, threads=1, max_batch_size=8)
    with held(graph, subject, 4):
        arrays = [np.ones((1, 2)), np.ones((1, 3)), np.ones((1, 2), np.float32), np.ones((1, 2))]
        waiting = [POOL.submit(subject.run, FEEDS, [array], FETCHES) for array in arrays]
    for wait, array in zip(waiting, arrays):
        (y,) = wait.result(120)
        assert y.shape == array.shape and y.dtype == array.dtype
    assert sorted(graph.sizes) == [1, 1, 1, 2]


def test_variable_lengths_are_padded_when_asked_for():
    graph = Doubling()
    subject = batched(graph, max_batch_size=8, pad=True)
    with held(graph, subject, 2):
        waiting = [POOL.submit(subject.run, FEEDS, [np.ones((1, size))], FETCHES) for size in (1, 3)]
    assert [wait.result(120)[0].tolist() for wait in waiting] == [[[2, 0, 0]], [[2, 2, 2]]]


def test_a_full_queue_is_unavailable():
    graph = Doubling()
    subject = batched(graph, max_batch_size=2, max_enqueued_batches=1)
    with held(graph, subject, 2):
        waiting = POOL.submit(subject.run, FEEDS, [np.ones(2)], FETCHES)
        wait_until_queued(subject, 2)
        with pytest.raises(RequestError, match="The batch scheduling queue to which this task was submitted is full") as caught:
            subject.run(FEEDS, [np.ones(1)], FETCHES)
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert waiting.result(120)[0].tolist() == [2, 2]


def test_too_many_rows_are_refused_or_split():
    with pytest.raises(RequestError, match="Task size 5 is larger than maximum input batch size 4"):
        batched(Doubling(), max_batch_size=4).run(FEEDS, [np.ones(5)], FETCHES)
    graph = Doubling()
    subject = batched(graph, max_batch_size=10, enable_large_batch_splitting=True, max_execution_batch_size=4)
    assert subject.run(FEEDS, [np.arange(9.0)], FETCHES)[0].tolist() == list(range(0, 18, 2))
    assert graph.sizes == [4, 4, 1]


def test_a_full_batch_does_not_wait_for_the_timeout():
    graph = Doubling()
    subject = batched(graph, max_batch_size=2, batch_timeout_micros=600_000_000)
    waiting = [POOL.submit(subject.run, FEEDS, [np.ones(1)], FETCHES) for _ in range(2)]
    assert [wait.result(120)[0].tolist() for wait in waiting] == [[2], [2]] and graph.sizes == [2]


@pytest.mark.parametrize(
    "arrays, message",
    [
        ([], "Batching Run() must have at least one input tensor"),
        ([np.float32(1)], "Batching Run() input tensors must have at least one dimension"),
        ([np.ones(2), np.ones(3)], "Batching Run() input tensors must have equal 0th-dimension size"),
    ],
)
def test_inputs_that_make_no_rows(arrays, message):
    with pytest.raises(RequestError) as caught:
        batched(Doubling()).run(tuple(map(str, range(len(arrays)))), [np.asarray(array) for array in arrays], FETCHES)
    assert caught.value.message == message


def test_an_output_without_the_batch_dimension_is_refused():
    graph = Doubling()
    graph.run = lambda feeds, arrays, fetches: [np.float32(1)]
    subject = batched(graph)
    with pytest.raises(RequestError, match="Batched output tensor's 0th dimension") as caught:
        subject.run(FEEDS, [np.ones(1)], FETCHES)
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    threads=st.integers(1, 3),
    timeout=st.sampled_from([0, 500]),
    allowed=st.sampled_from([(), (1, 2, 4, 6), (6,)]),
)
def test_whatever_waits_together_gets_its_own_answer(sizes, threads, timeout, allowed):
    graph = Doubling()
    subject = batched(graph, threads, max_batch_size=6, batch_timeout_micros=timeout, allowed=allowed, max_enqueued_batches=100)
    waiting = [POOL.submit(subject.run, FEEDS, [np.full((size, 2), float(i))], FETCHES) for i, size in enumerate(sizes)]
    for i, (wait, size) in enumerate(zip(waiting, sizes)):
        np.testing.assert_array_equal(wait.result(120)[0], np.full((size, 2), 2.0 * i))
    assert max(graph.sizes) <= 6 and not subject._queues


def test_server_with_batching_answers_many_callers_as_without(save_linear, tmp_path):
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 64 } batch_timeout_micros { value: 1000 } allowed_batch_sizes: [16, 64]")
    base, rng = save_linear(1), np.random.default_rng(3)
    rows = [(rng.normal(size=(n, 13)).astype(np.float32), rng.integers(0, 2, (n, 26), np.int32)) for n in range(1, 33)]
    options = {"enable_batching": True, "batching_parameters_file": str(file)}
    with ModelServer(model_name="dlrm", model_base_path=base, **options) as server, Client(server.target) as client:
        waiting = [POOL.submit(client.score, *row) for row in rows]
        for wait, (dense, categorical) in zip(waiting, rows):
            np.testing.assert_allclose(wait.result(120), 1 / (1 + np.exp(-(dense.sum(1) + categorical.sum(1) + 1))), rtol=1e-5)
        with pytest.raises(ServingError, match="Task size 65 is larger than maximum input batch size 64"):
            client.score(np.zeros((65, 13)), np.zeros((65, 26), np.int32))
        page = server.metrics.page().decode()
    assert ':tensorflow:serving:batching_session:processed_batch_size_bucket{le="16.0"}' in page
