"""Prometheus metrics under TensorFlow Serving's names; times in microseconds, as there."""

import threading
from collections import Counter

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import UnknownMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# TF Serving's buckets: scale 10, power 1.8, 33 of them (up to about 20 minutes).
_LATENCY_BUCKETS = tuple(10 * 1.8**i for i in range(33))
_BATCH_BUCKETS = tuple(2**i for i in range(14))


class _RequestCount:
    """`:tensorflow:serving:request_count`, without the `_total` that prometheus_client's own Counter appends."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, model: str, status: str) -> None:
        with self._lock:
            self._counts[model, status] += 1

    def collect(self):
        name, text = ":tensorflow:serving:request_count", "The total number of requests."
        metric = UnknownMetricFamily(name, text, labels=("model_name", "status"))
        with self._lock:
            for labels, count in self._counts.items():
                metric.add_metric(labels, count)
        yield metric


class Metrics:
    """One server's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._count = _RequestCount()
        self._registry.register(self._count)
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

    def batch(self, rows: int) -> None:
        """Counts a batch of `rows` rows, padding included."""
        self._batch.observe(rows)

    def page(self) -> bytes:
        """The page Prometheus scrapes."""
        return generate_latest(self._registry)
