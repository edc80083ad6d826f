"""What the server counts and times, as Prometheus reads it.

Names are those of tensorflow_model_server, /tensorflow/serving/x printed as :tensorflow:serving:x, so that one set of
rules and dashboards serves both; what only this server counts begins with kseg_. Times are in microseconds, as there.

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
# Six digits, as TensorFlow Serving prints them.
LATENCY_BOUNDS = tuple(float(f"{10 * 1.8 ** power:.6g}") for power in range(33))
QUEUING_BOUNDS = tuple(float(f"{100 * 1.2 ** power:.6g}") for power in range(52))
SIZE_BOUNDS = tuple(float(2 ** power) for power in range(15))
MICROSECONDS = 1e6
# A client may ask for any name; so many that were never loaded get a series of their own, the others share one.
MOST_UNKNOWN_NAMES, OTHER_NAMES = 100, "(other)"


class Monitor:
    """The counters of one server; every method may be called from any thread."""

    def __init__(self):
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._loaded_names: set[str] = set()
        self._unknown_names: set[str] = set()
        self._make_requests()
        self._make_batches()
        self._make_models()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=bounds)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _make_requests(self) -> None:
        self._requests = self._counter(PREFIX + "request_count", "Requests by model and status.",
                                       "model_name", "status")
        self._request_latency = self._histogram(
            PREFIX + "request_latency", "Microseconds a successful request took in the server.", LATENCY_BOUNDS,
            "model_name", "API", "entrypoint")
        self._runtime_latency = self._histogram(
            PREFIX + "runtime_latency", "Microseconds a successful request took in the model.", LATENCY_BOUNDS,
            "model_name", "API", "runtime")
        self._running = self._gauge("kseg_running_requests", "Requests that run.")
        self._waiting = self._gauge("kseg_waiting_requests", "Requests that wait for a place to run.")
        self._waiting_bytes = self._gauge("kseg_waiting_bytes", "Bytes of the requests that wait.")

    def _make_batches(self) -> None:
        session = PREFIX + "batching_session:"
        self._queuing = self._histogram(session + "queuing_latency", "Microseconds a request waited for its batch.",
                                        QUEUING_BOUNDS, "model_name")
        self._runs = self._counter(session + "wrapped_run_count", "Batches that were run.", "model_name")
        self._input_sizes = self._histogram(session + "input_batch_size", "Rows of a batch before padding.",
                                            SIZE_BOUNDS, "model_name")
        self._processed_sizes = self._histogram(session + "processed_batch_size", "Rows of a batch as it was run.",
                                                SIZE_BOUNDS, "model_name")
        # Most batches need no padding, which a bound of 0 tells apart.
        self._paddings = self._histogram(session + "padding_size", "Rows added to reach an allowed size.",
                                         (0.0, *SIZE_BOUNDS), "model_name")

    def _make_models(self) -> None:
        self._warm_up_latency = self._histogram(
            PREFIX + "model_warmup_latency", "Microseconds the warm-up requests of a version took.", LATENCY_BOUNDS,
            "model_name")
        self._warm_up_records = self._counter(PREFIX + "model_warmup_records_read", "Warm-up requests that were run.",
                                              "model_name")
        loads = ":tensorflow:cc:saved_model:"
        self._loads = self._counter(loads + "load_attempt_count", "Attempts to load a version.",
                                    "model_path", "status")
        self._load_latency = self._counter(loads + "load_latency", "Microseconds successful loads took.", "model_path")
        self._unloads = self._counter("kseg_model_unload_count", "Versions unloaded.", "model_name")
        self._available = self._gauge("kseg_model_version_available", "1 for every version that answers requests.",
                                      "model_name", "version")

    def count_request(self, model_name: str, status: str) -> None:
        """Count an answered request; `status` is a gRPC code's name, OK or NOT_FOUND say."""
        self._requests.labels(self._bounded(model_name), status).inc()

    def time_request(self, model_name: str, api: str, entrypoint: str, seconds: float) -> None:
        """Time a successful request; `api` is Predict over gRPC, predict over REST; `entrypoint` GRPC or REST."""
        self._request_latency.labels(model_name, api, entrypoint).observe(seconds * MICROSECONDS)

    def time_run(self, model_name: str, api: str, runtime: str, seconds: float) -> None:
        """Time a successful request's part in the model; `runtime` names what ran it."""
        self._runtime_latency.labels(model_name, api, runtime).observe(seconds * MICROSECONDS)

    def warmed_up(self, model_name: str, seconds: float, records: int) -> None:
        """Tell of a version's warm-up."""
        self._warm_up_latency.labels(model_name).observe(seconds * MICROSECONDS)
        self._warm_up_records.labels(model_name).inc(records)

    def loaded(self, model_name: str, version: int, ok: bool, seconds: float) -> None:
        """Tell of an attempt to load a version."""
        path = f"{model_name}/{version}"
        self._loads.labels(path, "success" if ok else "fail").inc()
        if ok:
            with self._lock:
                self._loaded_names.add(model_name)
            self._load_latency.labels(path).inc(seconds * MICROSECONDS)
            self._available.labels(model_name, str(version)).set(1)

    def unloaded(self, model_name: str, version: int) -> None:
        """Tell that a version was unloaded."""
        self._unloads.labels(model_name).inc()
        try:
            self._available.remove(model_name, str(version))
        except KeyError:
            # It was never available.
            pass

    def batch(self, model_name: str, queuing_seconds: Sequence[float], input_size: int, processed_size: int) -> None:
        """Tell of a batch: how long each of its requests waited, its rows before and after padding."""
        for seconds in queuing_seconds:
            self._queuing.labels(model_name).observe(seconds * MICROSECONDS)
        self._runs.labels(model_name).inc()
        self._input_sizes.labels(model_name).observe(input_size)
        self._processed_sizes.labels(model_name).observe(processed_size)
        self._paddings.labels(model_name).observe(processed_size - input_size)

    def queue(self, waiting: int, running: int, waiting_bytes: int = 0) -> None:
        """Tell how many requests wait, how many run, and what the waiting ones hold."""
        self._waiting.set(waiting)
        self._running.set(running)
        self._waiting_bytes.set(waiting_bytes)

    def count_metric(self, name: str) -> int:
        """Return the sum over all labels of a counter, or the number a histogram observed; 0 of an unknown name.

        The name may be TensorFlow's (/tensorflow/serving/request_count) or Prometheus's.
        """
        name = re.sub("[^a-zA-Z0-9_]", ":", name)
        counted = (name + "_total", name + "_count")
        return int(sum(sample.value for metric in self._registry.collect() for sample in metric.samples
                       if metric.name == name and sample.name in counted))

    def text(self) -> bytes:
        """Return the page that Prometheus reads, of CONTENT_TYPE."""
        page = generate_latest(_WithoutCreated(self._registry))
        # The library puts _total after every counter's name, which TensorFlow Serving's names do not have.
        return re.sub(rb"^((?:# (?:HELP|TYPE) )?[^ {#]+)_total(?=[ {])", rb"\1", page, flags=re.MULTILINE)

    def _bounded(self, model_name: str) -> str:
        with self._lock:
            if model_name in self._loaded_names or model_name in self._unknown_names:
                return model_name
            if len(self._unknown_names) < MOST_UNKNOWN_NAMES:
                self._unknown_names.add(model_name)
                return model_name
        return OTHER_NAMES


class _WithoutCreated:
    """A registry without the times at which counters were made, which would double the page."""

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry

    def collect(self):
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
