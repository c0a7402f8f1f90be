"""Prometheus metrics under TensorFlow Serving's names; times in microseconds, as there."""

import threading
from collections import Counter

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import UnknownMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# TF Serving's buckets: scale 10, power 1.8, 33 of them (up to about 20 minutes).
_LATENCY_BUCKETS = tuple(10 * 1.8**i for i in range(33))
_BATCH_BUCKETS = tuple(2**i for i in range(14))


class _Count:
    """A count by model and status, without the `_total` that prometheus_client's own Counter appends."""

    def __init__(self, name: str, text: str, status: str) -> None:
        self._name, self._text, self._labels = name, text, ("model_name", status)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, model: str, status: str, count: int = 1) -> None:
        with self._lock:
            self._counts[model, status] += count

    def collect(self):
        metric = UnknownMetricFamily(self._name, self._text, labels=self._labels)
        with self._lock:
            for labels, count in self._counts.items():
                metric.add_metric(labels, count)
        yield metric


class Metrics:
    """One server's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._count = _Count(":tensorflow:serving:request_count", "The total number of requests.", "status")
        self._logged = _Count(
            ":tensorflow:serving:request_log_count", "Requests for the request log, by what became of them.", "status_code"
        )
        for count in (self._count, self._logged):
            self._registry.register(count)
        ProcessCollector(registry=self._registry)
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Distribution of wall time (in microseconds) for Tensorflow Serving request.",
            ("model_name", "API", "entrypoint"),
            buckets=_LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._batch = Histogram(
            ":tensorflow:serving:batching_session:processed_batch_size",
            "Rows of the batches that were run, padding included.",
            buckets=_BATCH_BUCKETS,
            registry=self._registry,
        )

    def request(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """Counts a request answered with `status` after `seconds` by `api` (`Predict`, ...) of `entrypoint` (`GRPC` or `REST`).

        `model` is the name of a configured model, else '': names that clients make up must not become labels.
        """
        self._count.add(model, status)
        if status == "OK":
            self._latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def logged(self, model: str, status: str, count: int) -> None:
        """Counts `count` requests of the request log: written (`OK`) or dropped (any other status)."""
        self._logged.add(model, status, count)

    def batch(self, rows: int) -> None:
        """Counts a batch of `rows` rows, padding included."""
        self._batch.observe(rows)

    def page(self) -> bytes:
        """The page Prometheus scrapes."""
        return generate_latest(self._registry)
