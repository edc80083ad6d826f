"""The alerts for Prometheus: of metrics that the server prints, and at the right moments."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import serving
from serving.telemetry import monitoring
from tests.helpers import manifest_checks

PLACE = Path(serving.__file__).parent / "prometheus_rules.yaml"
# Words of PromQL and its functions that the rules use; anything else that looks like a name is a metric or a label.
WORDS = {"sum", "by", "rate", "increase", "histogram_quantile", "absent", "or", "unless", "offset"}
# What Prometheus itself writes.
ITS_OWN = {"up": {"job"}}
DURATION = r"\d+[smhd]"


def alerts():
    (document,) = manifest_checks.documents(PLACE.read_text())
    (group,) = document["groups"]
    assert document.keys() == {"groups"} and group.keys() == {"name", "rules"}
    return {each["alert"]: each for each in group["rules"]}


def printed():
    """The labels of each metric that a server prints which did everything once."""
    monitor = monitoring.Monitor()
    monitor.count_request("m", "OK")
    monitor.time_request("m", "Predict", "GRPC", 0.1)
    monitor.time_run("m", "Predict", "TF1", 0.1)
    monitor.warmed_up("m", 0.1, 3)
    monitor.loaded("m", 1, True, 0.1)
    monitor.loaded("m", 2, False, 0.1)
    monitor.batch("m", [0.1], 1, 2)
    metrics = {}
    for line in monitor.text().decode().splitlines():
        found = re.match(r"([a-zA-Z_:][\w:]*)(?:{(.*)})? \S+$", line)
        if found and not line.startswith("#"):
            metrics[found[1]] = {name for name, _ in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or "")}
    return metrics


def used(expression):
    """The metrics of an expression with the labels that are asked of each; labels of `by (...)` under the name by."""
    metrics, bare = {}, re.sub(r"offset\s+" + DURATION, "offset", re.sub(r"\[" + DURATION + r"\]", "", expression))
    metrics["by"] = {name.strip() for group in re.findall(r"\bby\s*\(([^)]*)\)", bare) for name in group.split(",")}
    bare = re.sub(r"\bby\s*\([^)]*\)", "", bare)
    for name, matchers in re.findall(r"(?<![\w:])([a-zA-Z_:][\w:]*)\s*({[^}]*})?", bare):
        if name not in WORDS:
            metrics.setdefault(name, set()).update(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers))
    return metrics


def balanced(expression):
    stack = []
    for character in re.sub(r'"(?:[^"\\]|\\.)*"', "", expression):
        if character in "([{":
            stack.append({"(": ")", "[": "]", "{": "}"}[character])
        elif character in ")]}" and (not stack or stack.pop() != character):
            return False
    return not stack


def test_alerts_have_what_whoever_is_woken_needs():
    for name, alert in alerts().items():
        assert alert.keys() == {"alert", "expr", "for", "labels", "annotations"}, name
        assert re.fullmatch(DURATION, alert["for"]), name
        assert alert["labels"] in ({"severity": "critical"}, {"severity": "warning"}), name
        assert alert["annotations"].keys() == {"summary", "runbook"}, name
        assert all(text.strip() for text in alert["annotations"].values()), name


@pytest.mark.parametrize("name", sorted(alerts()))
def test_expressions_are_of_metrics_that_are_printed(name):
    metrics = printed() | ITS_OWN
    assert balanced(alerts()[name]["expr"])
    found = used(alerts()[name]["expr"])
    grouped = found.pop("by")
    assert found
    for metric, labels in found.items():
        assert labels <= metrics[metric] and grouped <= metrics[metric], metric
    shown = set(re.findall(r"\$labels\.(\w+)", str(alerts()[name]["annotations"])))
    assert shown <= grouped


def test_the_reading_of_expressions():
    assert used('sum by (le, a) (rate(x_bucket{b="c{d", e=~"f"}[5m])) / y offset 15m > 2e6') == {
        "by": {"le", "a"}, "x_bucket": {"b", "e"}, "y": set()}
    assert balanced('f(x{a=")"}[5m])') and not balanced("f(x[5m)]") and not balanced("f(x")
    metrics = printed()
    assert metrics[":tensorflow:serving:request_count"] == {"model_name", "status"}
    assert "le" in metrics[":tensorflow:serving:request_latency_bucket"]


def requests(status, values):
    return {"series": f':tensorflow:serving:request_count{{model_name="m", status="{status}"}}', "values": values}


def latency(bound, values):
    return {"series": ":tensorflow:serving:request_latency_bucket"
                      f'{{model_name="m", API="Predict", entrypoint="GRPC", le="{bound}"}}', "values": values}


def queuing(bound, values):
    return {"series": f':tensorflow:serving:batching_session:queuing_latency_bucket{{model_name="m", le="{bound}"}}',
            "values": values}


def loads(values):
    series = ':tensorflow:cc:saved_model:load_attempt_count{model_path="m/2", status="fail"}'
    return {"series": series, "values": values}


UP = {"series": 'up{job="segmentation", instance="a"}', "values": "1x40"}
WELL = [UP, requests("OK", "0+60x40"), latency("1e+06", "0+60x40"), latency("+Inf", "0+60x40")]
# Series of a minute's steps, and the alerts that are on after half an hour of them.
CASES = {
    "all is well": (WELL, []),
    "a mistake now and then": (WELL + [requests("INVALID_ARGUMENT", "0+6x40"), requests("INTERNAL", "0+1x40")], []),
    "nobody is there": ([UP | {"values": "1x10 0x30"}], ["SegmentationDown"]),
    "no target at all": ([requests("OK", "0+60x40")], ["SegmentationDown"]),
    "one of two is there": (WELL + [{"series": 'up{job="segmentation", instance="b"}', "values": "0x40"}], []),
    "failures": (WELL + [requests("INTERNAL", "0+6x40")], ["SegmentationServerErrors"]),
    "wrong requests": (WELL + [requests("INVALID_ARGUMENT", "0+60x40")], ["SegmentationClientErrors"]),
    "slow": ([UP, latency("2e+06", "0+58x40"), latency("4e+06", "0+60x40"), latency("+Inf", "0+60x40")],
             ["SegmentationSlow"]),
    "turned away": (WELL + [requests("UNAVAILABLE", "0+1x40")], ["SegmentationQueueFull"]),
    "waiting": (WELL + [queuing("100000", "0+50x40"), queuing("400000", "0+60x40"), queuing("+Inf", "0+60x40")],
                ["SegmentationLongWaiting"]),
    "no version": ([UP, requests("OK", "0+60x10 600x30"), requests("NOT_FOUND", "0x10 0+60x30")],
                   ["SegmentationNoVersion"]),
    "an unknown label besides": (WELL + [requests("NOT_FOUND", "0+6x40")], []),
    "the first load that fails": (WELL + [loads("_x20 1x20")], ["SegmentationLoadFailed"]),
    "one more load that fails": (WELL + [loads("1x20 2x20")], ["SegmentationLoadFailed"]),
    "a load that failed long ago": (WELL + [loads("_x5 1x35")], [])}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool, which comes with Prometheus, is not installed")
def test_alerts_are_on_when_they_should_be(tmp_path):
    shutil.copy(PLACE, tmp_path)
    names = sorted(alerts())
    tests = []
    for name, (series, on) in CASES.items():
        # Of an alert that is on, only that it is.
        tests.append({"name": name, "interval": "1m", "input_series": series, "promql_expr_test": [
            {"expr": f'count by (alertname) (ALERTS{{alertname="{alert}", alertstate="firing"}})', "eval_time": "30m",
             "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert in on else []}
            for alert in names]})
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(
        {"rule_files": [PLACE.name], "evaluation_interval": "1m", "tests": tests}))
    result = subprocess.run(["promtool", "test", "rules", "cases.yaml"], cwd=tmp_path, capture_output=True, text=True,
                            timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
