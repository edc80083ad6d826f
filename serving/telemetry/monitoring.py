"""The server's metrics for Prometheus.

Names and units are those of tensorflow_model_server, which prints /tensorflow/serving/x as :tensorflow:serving:x, so
that the same rules and dashboards serve both. Metrics of this server alone begin with kseg_. Times are in microseconds.

    :tensorflow:serving:request_count{model_name, status}                      status: OK, NOT_FOUND, ...
    :tensorflow:serving:request_latency{model_name, API, entrypoint}           histogram; entrypoint: GRPC or REST
    :tensorflow:serving:runtime_latency{model_name, API, runtime}              histogram
    :tensorflow:serving:model_warmup_latency{model_name}                       histogram
    :tensorflow:serving:model_warmup_records_read{model_name}
    :tensorflow:serving:batching_session:queuing_latency{model_name}           histogram
    :tensorflow:serving:batching_session:wrapped_run_count{model_name}
    :tensorflow:serving:batching_session:input_batch_size{model_name}          histograms of rows
    :tensorflow:serving:batching_session:processed_batch_size{model_name}
    :tensorflow:serving:batching_session:padding_size{model_name}
    :tensorflow:cc:saved_model:load_attempt_count{model_path, status}          status: success, fail; path: NAME/VERSION
    :tensorflow:cc:saved_model:load_latency{model_path}                        counter of microseconds
    kseg_model_unload_count{model_name}, kseg_model_version_available{model_name, version}
    kseg_running_requests, kseg_waiting_requests, kseg_waiting_bytes
"""

import re
import threading
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = ":tensorflow:serving:"
# TensorFlow Serving prints its bounds with six digits.
LATENCY_BOUNDS = tuple(float(f"{10 * 1.8**power:.6g}") for power in range(33))
QUEUING_BOUNDS = tuple(float(f"{100 * 1.2**power:.6g}") for power in range(52))
SIZE_BOUNDS = tuple(float(2**power) for power in range(15))
MICROSECONDS = 1e6
# A client may send any model name. This many names that were never loaded get separate series; the rest share one.
MAX_UNKNOWN_NAMES, OTHER_NAMES = 100, "(other)"


class Monitor:
    """The metrics of one server; every method may be called from any thread."""

    def __init__(self):
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._loaded_names: set[str] = set()
        self._unknown_names: set[str] = set()
        self._add_request_metrics()
        self._add_batch_metrics()
        self._add_model_metrics()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=bounds)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _add_request_metrics(self) -> None:
        self._requests = self._counter(
            PREFIX + "request_count", "Requests by model and status.", "model_name", "status"
        )
        self._request_latency = self._histogram(
            PREFIX + "request_latency",
            "Microseconds a successful request took in the server.",
            LATENCY_BOUNDS,
            "model_name",
            "API",
            "entrypoint",
        )
        self._runtime_latency = self._histogram(
            PREFIX + "runtime_latency",
            "Microseconds a successful request took in the model.",
            LATENCY_BOUNDS,
            "model_name",
            "API",
            "runtime",
        )
        self._running = self._gauge("kseg_running_requests", "Requests that are running.")
        self._waiting = self._gauge("kseg_waiting_requests", "Requests that wait for a slot to run.")
        self._waiting_bytes = self._gauge("kseg_waiting_bytes", "Bytes of the waiting requests.")

    def _add_batch_metrics(self) -> None:
        session = PREFIX + "batching_session:"
        self._queuing = self._histogram(
            session + "queuing_latency", "Microseconds a request waited for its batch.", QUEUING_BOUNDS, "model_name"
        )
        self._runs = self._counter(session + "wrapped_run_count", "Batches that were run.", "model_name")
        self._input_sizes = self._histogram(
            session + "input_batch_size", "Rows of a batch before padding.", SIZE_BOUNDS, "model_name"
        )
        self._processed_sizes = self._histogram(
            session + "processed_batch_size", "Rows of a batch as it was run.", SIZE_BOUNDS, "model_name"
        )
        # The bound 0 counts the batches without padding, which are most of them.
        self._paddings = self._histogram(
            session + "padding_size", "Rows added to reach an allowed size.", (0.0, *SIZE_BOUNDS), "model_name"
        )

    def _add_model_metrics(self) -> None:
        self._warm_up_latency = self._histogram(
            PREFIX + "model_warmup_latency",
            "Microseconds the warm-up requests of a version took.",
            LATENCY_BOUNDS,
            "model_name",
        )
        self._warm_up_records = self._counter(
            PREFIX + "model_warmup_records_read", "Warm-up requests that were run.", "model_name"
        )
        loads = ":tensorflow:cc:saved_model:"
        self._loads = self._counter(loads + "load_attempt_count", "Attempts to load a version.", "model_path", "status")
        self._load_latency = self._counter(loads + "load_latency", "Microseconds successful loads took.", "model_path")
        self._unloads = self._counter("kseg_model_unload_count", "Versions unloaded.", "model_name")
        self._available = self._gauge(
            "kseg_model_version_available", "1 for every version that answers requests.", "model_name", "version"
        )

    def count_request(self, model_name: str, status: str) -> None:
        """Count a finished request; `status` is the name of a gRPC code, such as OK or NOT_FOUND."""
        self._requests.labels(self._limit_names(model_name), status).inc()

    def time_request(self, model_name: str, api: str, entrypoint: str, seconds: float) -> None:
        """Observe the time of a successful request.

        Args:
            model_name: The model.
            api: The method, such as Predict over gRPC and predict over REST.
            entrypoint: GRPC or REST.
            seconds: The time in the server.
        """
        self._request_latency.labels(model_name, api, entrypoint).observe(seconds * MICROSECONDS)

    def time_run(self, model_name: str, api: str, runtime: str, seconds: float) -> None:
        """Observe the time of a successful request in the model; `runtime` names the kind of session."""
        self._runtime_latency.labels(model_name, api, runtime).observe(seconds * MICROSECONDS)

    def warmed_up(self, model_name: str, seconds: float, records: int) -> None:
        """Observe a version's warm-up."""
        self._warm_up_latency.labels(model_name).observe(seconds * MICROSECONDS)
        self._warm_up_records.labels(model_name).inc(records)

    def loaded(self, model_name: str, version: int, ok: bool, seconds: float) -> None:
        """Count an attempt to load a version."""
        path = f"{model_name}/{version}"
        self._loads.labels(path, "success" if ok else "fail").inc()
        if ok:
            with self._lock:
                self._loaded_names.add(model_name)
            self._load_latency.labels(path).inc(seconds * MICROSECONDS)
            self._available.labels(model_name, str(version)).set(1)

    def unloaded(self, model_name: str, version: int) -> None:
        """Count an unloaded version."""
        self._unloads.labels(model_name).inc()
        try:
            self._available.remove(model_name, str(version))
        except KeyError:
            # The version was never available.
            pass

    def batch(self, model_name: str, queuing_seconds: Sequence[float], input_size: int, processed_size: int) -> None:
        """Observe a batch.

        Args:
            model_name: The model.
            queuing_seconds: The waiting time of every request in the batch.
            input_size: The number of rows before padding.
            processed_size: The number of rows after padding.
        """
        for seconds in queuing_seconds:
            self._queuing.labels(model_name).observe(seconds * MICROSECONDS)
        self._runs.labels(model_name).inc()
        self._input_sizes.labels(model_name).observe(input_size)
        self._processed_sizes.labels(model_name).observe(processed_size)
        self._paddings.labels(model_name).observe(processed_size - input_size)

    def queue(self, waiting: int, running: int, waiting_bytes: int = 0) -> None:
        """Set the numbers of waiting and running requests, and the bytes of the waiting ones."""
        self._waiting.set(waiting)
        self._running.set(running)
        self._waiting_bytes.set(waiting_bytes)

    def count_metric(self, name: str) -> int:
        """Return a counter's sum over all labels, or the number of a histogram's observations; 0 if unknown.

        The name may be TensorFlow's (/tensorflow/serving/request_count) or Prometheus' (:tensorflow:...).
        """
        name = re.sub("[^a-zA-Z0-9_]", ":", name)
        sample_names = (name + "_total", name + "_count")
        return int(
            sum(
                sample.value
                for metric in self._registry.collect()
                for sample in metric.samples
                if metric.name == name and sample.name in sample_names
            )
        )

    def text(self) -> bytes:
        """Return the page that Prometheus scrapes, in the format CONTENT_TYPE."""
        page = generate_latest(_WithoutCreated(self._registry))
        # The library appends _total to the names of counters; TensorFlow Serving's names lack it.
        return re.sub(rb"^((?:# (?:HELP|TYPE) )?[^ {#]+)_total(?=[ {])", rb"\1", page, flags=re.MULTILINE)

    def _limit_names(self, model_name: str) -> str:
        """Return a model's name, or OTHER_NAMES if too many unknown names were seen."""
        with self._lock:
            if model_name in self._loaded_names or model_name in self._unknown_names:
                return model_name
            if len(self._unknown_names) < MAX_UNKNOWN_NAMES:
                self._unknown_names.add(model_name)
                return model_name
        return OTHER_NAMES


class _WithoutCreated:
    """A registry without the creation times of metrics, which would double the size of the page."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry

    def collect(self):
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
