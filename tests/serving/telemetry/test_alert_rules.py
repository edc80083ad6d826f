"""The Prometheus alerts: they use metrics that the server exports, and fire at the right times."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import serving
from serving.telemetry.monitoring import Monitor

RULES = Path(serving.__file__).parent / "prometheus_rules.yaml"
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool, which comes with Prometheus, is not installed"
)


def promtool(*arguments, directory):
    result = subprocess.run(["promtool", *arguments], cwd=directory, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_metrics_of_the_rules_are_exported():
    monitor = Monitor()
    monitor.count_request("m", "OK")
    monitor.time_request("m", "Predict", "GRPC", 0.1)
    monitor.time_run("m", "Predict", "TF1", 0.1)
    monitor.loaded("m", 1, False, 0.1)
    monitor.batch("m", [0.1], 1, 2)
    exported = set(re.findall(r"^(:tensorflow[\w:]+)", monitor.text().decode(), re.MULTILINE))
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]:
        assert set(re.findall(r":tensorflow[\w:]+", rule["expr"])) <= exported, rule["alert"]


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path):
    promtool("check", "rules", str(RULES), directory=tmp_path)


def requests(status, values):
    return {"series": f':tensorflow:serving:request_count{{model_name="m", status="{status}"}}', "values": values}


def latency(bound, values):
    return {
        "series": ":tensorflow:serving:request_latency_bucket"
        f'{{model_name="m", API="Predict", entrypoint="GRPC", le="{bound}"}}',
        "values": values,
    }


def queuing(bound, values):
    return {
        "series": f':tensorflow:serving:batching_session:queuing_latency_bucket{{model_name="m", le="{bound}"}}',
        "values": values,
    }


def loads(values):
    series = ':tensorflow:cc:saved_model:load_attempt_count{model_path="m/2", status="fail"}'
    return {"series": series, "values": values}


UP = {"series": 'up{job="segmentation", instance="a"}', "values": "1x40"}
HEALTHY = [UP, requests("OK", "0+60x40"), latency("1e+06", "0+60x40"), latency("+Inf", "0+60x40")]
# Series with one value per minute, and the alerts that fire after 30 minutes.
CASES = {
    "healthy": (HEALTHY, []),
    "occasional errors": (HEALTHY + [requests("INVALID_ARGUMENT", "0+6x40"), requests("INTERNAL", "0+1x40")], []),
    "server down": ([UP | {"values": "1x10 0x30"}], ["SegmentationDown"]),
    "no target": ([requests("OK", "0+60x40")], ["SegmentationDown"]),
    "one of two servers down": (HEALTHY + [{"series": 'up{job="segmentation", instance="b"}', "values": "0x40"}], []),
    "internal errors": (HEALTHY + [requests("INTERNAL", "0+6x40")], ["SegmentationServerErrors"]),
    "wrong requests": (HEALTHY + [requests("INVALID_ARGUMENT", "0+60x40")], ["SegmentationClientErrors"]),
    "slow": (
        [UP, latency("2e+06", "0+58x40"), latency("4e+06", "0+60x40"), latency("+Inf", "0+60x40")],
        ["SegmentationSlow"],
    ),
    "queue full": (HEALTHY + [requests("UNAVAILABLE", "0+1x40")], ["SegmentationQueueFull"]),
    "long waiting": (
        HEALTHY + [queuing("100000", "0+50x40"), queuing("400000", "0+60x40"), queuing("+Inf", "0+60x40")],
        ["SegmentationLongWaiting"],
    ),
    "no version": (
        [UP, requests("OK", "0+60x10 600x30"), requests("NOT_FOUND", "0x10 0+60x30")],
        ["SegmentationNoVersion"],
    ),
    "an unknown label": (HEALTHY + [requests("NOT_FOUND", "0+6x40")], []),
    "the first failed load": (HEALTHY + [loads("_x20 1x20")], ["SegmentationLoadFailed"]),
    "another failed load": (HEALTHY + [loads("1x20 2x20")], ["SegmentationLoadFailed"]),
    "an old failed load": (HEALTHY + [loads("_x5 1x35")], []),
}


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path):
    shutil.copy(RULES, tmp_path)
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    tests = []
    for name, (series, firing) in CASES.items():
        # Counting the alerts leaves out their labels and values.
        tests.append(
            {
                "name": name,
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": f'count by (alertname) (ALERTS{{alertname="{rule["alert"]}", alertstate="firing"}})',
                        "eval_time": "30m",
                        "exp_samples": [{"labels": f'{{alertname="{rule["alert"]}"}}', "value": 1}]
                        if rule["alert"] in firing
                        else [],
                    }
                    for rule in group["rules"]
                ],
            }
        )
    (tmp_path / "cases.yaml").write_text(
        yaml.safe_dump({"rule_files": [RULES.name], "evaluation_interval": "1m", "tests": tests})
    )
    promtool("test", "rules", "cases.yaml", directory=tmp_path)
