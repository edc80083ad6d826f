"""The metrics, parsed by Prometheus' own parser."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.telemetry import monitoring
from serving.telemetry.monitoring import Monitor

COUNTERS = {
    ":tensorflow:serving:request_count",
    ":tensorflow:serving:model_warmup_records_read",
    ":tensorflow:serving:batching_session:wrapped_run_count",
    ":tensorflow:cc:saved_model:load_attempt_count",
    ":tensorflow:cc:saved_model:load_latency",
    "kseg_model_unload_count",
}
HISTOGRAMS = {
    ":tensorflow:serving:request_latency",
    ":tensorflow:serving:runtime_latency",
    ":tensorflow:serving:model_warmup_latency",
    ":tensorflow:serving:batching_session:queuing_latency",
    ":tensorflow:serving:batching_session:input_batch_size",
    ":tensorflow:serving:batching_session:processed_batch_size",
    ":tensorflow:serving:batching_session:padding_size",
}
GAUGES = {"kseg_running_requests", "kseg_waiting_requests", "kseg_waiting_bytes", "kseg_model_version_available"}


def families(monitor):
    return {family.name: family for family in text_string_to_metric_families(monitor.text().decode())}


def value(monitor, name, **labels):
    """Return the value of the sample with that name and those labels, None if there is none."""
    # The parser appends _total to the names of counters; the page does not.
    values = [
        sample.value
        for family in families(monitor).values()
        for sample in family.samples
        if sample.name in (name, name + "_total") and sample.labels == labels
    ]
    assert len(values) <= 1
    return values[0] if values else None


def test_names_and_types_match_tensorflow_serving_and_have_help_texts():
    by_name = families(Monitor())
    assert {name: family.type for name, family in by_name.items()} == (
        dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(HISTOGRAMS, "histogram") | dict.fromkeys(GAUGES, "gauge")
    )
    assert all(family.documentation.endswith(".") for family in by_name.values())


def test_requests_are_counted_by_model_and_status():
    monitor = Monitor()
    for status in ("OK", "OK", "NOT_FOUND"):
        monitor.count_request("seg", status)
    assert value(monitor, ":tensorflow:serving:request_count", model_name="seg", status="OK") == 2
    assert value(monitor, ":tensorflow:serving:request_count", model_name="seg", status="NOT_FOUND") == 1
    # The page itself must have these names, which the parser would change.
    assert b'\n:tensorflow:serving:request_count{model_name="seg",status="OK"} 2.0\n' in monitor.text()
    assert b"_total" not in monitor.text() and b"_created" not in monitor.text()


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "line\nbreak", "ünï", "a_total{b} c"])
def test_model_names_with_special_characters_are_escaped(name):
    monitor = Monitor()
    monitor.count_request(name, "OK")
    assert value(monitor, ":tensorflow:serving:request_count", model_name=name, status="OK") == 1


def test_latencies_are_microseconds_in_33_buckets_that_grow_by_1_8():
    monitor = Monitor()
    for seconds in (5e-6, 0.0123, 3000.0):
        monitor.time_request("seg", "predict", "REST", seconds)
    name, labels = ":tensorflow:serving:request_latency", {"model_name": "seg", "API": "predict", "entrypoint": "REST"}
    buckets = {
        float(sample.labels["le"]): sample.value
        for sample in families(monitor)[name].samples
        if sample.name == name + "_bucket"
    }
    bounds = sorted(buckets)
    assert len(bounds) == 34 and bounds[-1] == math.inf
    assert bounds[:-1] == pytest.approx([10 * 1.8**power for power in range(33)], rel=1e-5)
    assert [buckets[bound] for bound in bounds] == [
        sum(micros <= bound for micros in (5, 12300, 3e9)) for bound in bounds
    ]
    assert value(monitor, name + "_count", **labels) == 3
    assert value(monitor, name + "_sum", **labels) == pytest.approx(5 + 12300 + 3e9)
    monitor.time_run("seg", "Predict", "TF1", 0.5)
    assert (
        value(monitor, ":tensorflow:serving:runtime_latency_sum", model_name="seg", API="Predict", runtime="TF1") == 5e5
    )


def test_batches_report_rows_padding_and_waiting_times():
    monitor = Monitor()
    monitor.batch("seg", [0.001, 0.003], 3, 4)
    monitor.batch("seg", [0.002], 8, 8)
    batching = ":tensorflow:serving:batching_session:"
    assert value(monitor, batching + "queuing_latency_count", model_name="seg") == 3
    assert value(monitor, batching + "queuing_latency_sum", model_name="seg") == pytest.approx(6000)
    assert value(monitor, batching + "wrapped_run_count", model_name="seg") == 2
    assert value(monitor, batching + "input_batch_size_sum", model_name="seg") == 11
    assert value(monitor, batching + "processed_batch_size_sum", model_name="seg") == 12
    assert value(monitor, batching + "padding_size_bucket", model_name="seg", le="0.0") == 1
    assert value(monitor, batching + "padding_size_sum", model_name="seg") == 1


def test_loads_warm_ups_and_unloads_are_counted():
    monitor = Monitor()
    monitor.loaded("seg", 1, True, 0.25)
    monitor.loaded("seg", 2, False, 0.5)
    monitor.warmed_up("seg", 1.5, 12)
    attempts = ":tensorflow:cc:saved_model:load_attempt_count"
    assert value(monitor, attempts, model_path="seg/1", status="success") == 1
    assert value(monitor, attempts, model_path="seg/2", status="fail") == 1
    assert value(monitor, ":tensorflow:cc:saved_model:load_latency", model_path="seg/1") == 250_000
    assert value(monitor, ":tensorflow:serving:model_warmup_records_read", model_name="seg") == 12
    assert value(monitor, ":tensorflow:serving:model_warmup_latency_sum", model_name="seg") == 1.5e6
    assert value(monitor, "kseg_model_version_available", model_name="seg", version="1") == 1
    for version in (1, 2):
        monitor.unloaded("seg", version)
    assert value(monitor, "kseg_model_version_available", model_name="seg", version="1") is None
    assert value(monitor, "kseg_model_unload_count", model_name="seg") == 2


def test_the_gauges_show_the_queue():
    monitor = Monitor()
    monitor.queue(waiting=3, running=2, waiting_bytes=4096)
    assert [value(monitor, f"kseg_{name}") for name in ("waiting_requests", "running_requests", "waiting_bytes")] == [
        3,
        2,
        4096,
    ]


def test_the_number_of_series_for_unknown_model_names_is_limited():
    monitor = Monitor()
    monitor.loaded("seg", 1, True, 0.1)
    for number in range(3 * monitoring.MAX_UNKNOWN_NAMES):
        monitor.count_request(f"unknown {number}", "NOT_FOUND")
    monitor.count_request("seg", "OK")
    samples = families(monitor)[":tensorflow:serving:request_count"].samples
    assert len(samples) == monitoring.MAX_UNKNOWN_NAMES + 2
    assert value(monitor, ":tensorflow:serving:request_count", model_name="seg", status="OK") == 1
    assert (
        value(monitor, ":tensorflow:serving:request_count", model_name=monitoring.OTHER_NAMES, status="NOT_FOUND")
        == 2 * monitoring.MAX_UNKNOWN_NAMES
    )


def test_count_metric_sums_over_labels_under_both_names():
    monitor = Monitor()
    for model, status in (("a", "OK"), ("b", "OK"), ("b", "NOT_FOUND")):
        monitor.count_request(model, status)
    monitor.time_request("a", "Predict", "GRPC", 0.1)
    assert monitor.count_metric("/tensorflow/serving/request_count") == 3
    assert monitor.count_metric(":tensorflow:serving:request_count") == 3
    assert monitor.count_metric("/tensorflow/serving/request_latency") == 1
    assert monitor.count_metric("/tensorflow/serving/no_such") == 0
