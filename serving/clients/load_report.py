"""Run a load for several numbers of clients, and report rates and latencies."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kseg.system.progress import CLEAR_LINE

if TYPE_CHECKING:
    from serving.clients.load_generator import Clients, Load

PERCENTILES = (50, 95, 99)
ROW = "{:>11}{:>13}{:>10}{:>10}{:>10}{:>10}{:>14}  {}"
HEAD = ROW.format("concurrency", "requests/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "clients busy", "errors")


def report_row(load: "Load") -> str:
    """Return the table row of a load."""
    times = (
        [f"{1000 * value:.1f}" for value in latency_quantiles(load)]
        if load.latencies
        else ["-"] * (len(PERCENTILES) + 1)
    )
    errors = ", ".join(f"{count} {code}" for code, count in sorted(load.failures.items())) or "0"
    return ROW.format(load.clients, f"{load.rate:.1f}", *times, f"{100 * load.busy:.0f} %", errors)


def latency_quantiles(load: "Load") -> list[float]:
    """Return the PERCENTILES and the maximum of the latencies, in seconds."""
    return [*np.percentile(load.latencies, PERCENTILES).tolist(), max(load.latencies)]


def report_json(load: "Load") -> dict:
    """Return the JSON object of a load, with times in seconds."""
    times = latency_quantiles(load) if load.latencies else [None] * (len(PERCENTILES) + 1)
    return {
        "concurrency": load.clients,
        "seconds": load.seconds,
        "answers": len(load.latencies),
        "requests_per_second": load.rate,
        "failures": dict(load.failures),
        "messages": load.messages,
        "clients_busy": load.busy,
        **dict(zip([*(f"p{number}" for number in PERCENTILES), "max"], times)),
    }


def run_loads(clients: "Clients", concurrency: Sequence[int], seconds: float, warm_up: float) -> list["Load"]:
    """Run one load for each number of clients, print the table row by row, and return the loads."""
    # Importing gRPC only here keeps `python -m serving.load_test --help` fast.
    from serving.clients.load_generator import BUSY_LIMIT

    print(HEAD)
    loads = []
    for number in concurrency:
        progress = _ProgressLine(number, seconds)
        loads.append(clients.run(number, seconds, warm_up, progress))
        # The row replaces the progress line.
        print((CLEAR_LINE if progress.live else "") + report_row(loads[-1]))
        for code, message in sorted(loads[-1].messages.items()):
            print(f"{'':11}  {code}: {' '.join(message.split())[:200]}")
    if any(load.busy > BUSY_LIMIT for load in loads):
        print(
            f"the clients were busy more than {BUSY_LIMIT:.0%} of the time, so the server may be able to answer "
            "more; see --processes"
        )
    return loads


class _ProgressLine:
    """Progress of a load: one line rewritten on a terminal, a new line every 5 seconds elsewhere."""

    def __init__(self, clients: int, seconds: float):
        self.clients, self.seconds, self.live = clients, seconds, sys.stdout.isatty()
        self.last_report = 0.0

    def __call__(self, elapsed: float, answers: int, failures: int) -> None:
        if elapsed - self.last_report < (0.2 if self.live else 5.0):
            return
        self.last_report = elapsed
        line = (
            f"{self.clients} clients: {elapsed:.0f} of {self.seconds:g} s, {answers / elapsed:.1f} requests/s, "
            f"{failures} failed"
        )
        print(f"{CLEAR_LINE}{line}" if self.live else line, end="" if self.live else "\n", flush=True)
