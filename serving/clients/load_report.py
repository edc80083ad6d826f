"""Run a load for several numbers of clients, and report rates and latencies."""

import sys
from collections.abc import Sequence

import numpy as np

# Percent.
QUANTILES = (50, 95, 99)
ROW = "{:>11}{:>13}{:>10}{:>10}{:>10}{:>10}{:>14}  {}"
HEAD = ROW.format("concurrency", "requests/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "clients busy", "errors")


def row(load) -> str:
    """Return a line of the table."""
    times = [f"{1000 * value:.1f}" for value in quantiles(load)] if load.latencies else ["-"] * (len(QUANTILES) + 1)
    errors = ", ".join(f"{count} {code}" for code, count in sorted(load.failures.items())) or "0"
    return ROW.format(load.clients, f"{load.rate:.1f}", *times, f"{100 * load.busy:.0f} %", errors)


def quantiles(load) -> list[float]:
    """Return QUANTILES and the maximum of what answers took, seconds."""
    return [*np.percentile(load.latencies, QUANTILES).tolist(), max(load.latencies)]


def as_json(load) -> dict:
    """Return a line of the table for a file; times in seconds."""
    times = quantiles(load) if load.latencies else [None] * (len(QUANTILES) + 1)
    return {"concurrency": load.clients, "seconds": load.seconds, "answers": len(load.latencies),
            "requests_per_second": load.rate, "failures": dict(load.failures), "messages": load.messages,
            "clients_busy": load.busy, **dict(zip([*(f"p{number}" for number in QUANTILES), "max"], times))}


def measure(clients, concurrency: Sequence[int], seconds: float, warm_up: float) -> list:
    """Print the table line by line, and return its Loads."""
    from serving.clients.load_generator import LIMIT

    print(HEAD)
    loads = []
    for number in concurrency:
        told = _Told(number, seconds)
        loads.append(clients.run(number, seconds, warm_up, told))
        # Over the last line that told how far it is.
        print(("\r\x1b[K" if told.live else "") + row(loads[-1]))
        for code, message in sorted(loads[-1].messages.items()):
            print(f"{'':11}  {code}: {' '.join(message.split())[:200]}")
    if any(load.busy > LIMIT for load in loads):
        print(f"the clients were busy more than {LIMIT:.0%} of the time: the server may answer more; see --processes")
    return loads


class _Told:
    """Tells how far a run is, in one line that is rewritten on a terminal, every 5 seconds elsewhere."""

    def __init__(self, clients: int, seconds: float):
        self.clients, self.seconds, self.live = clients, seconds, sys.stdout.isatty()
        self.said = 0.0

    def __call__(self, passed: float, answers: int, failures: int) -> None:
        if passed - self.said < (0.2 if self.live else 5.0):
            return
        self.said = passed
        line = (f"{self.clients} clients: {passed:.0f} of {self.seconds:g} s, {answers / passed:.1f} requests/s, "
                f"{failures} failed")
        print(f"\r\x1b[K{line}" if self.live else line, end="" if self.live else "\n", flush=True)
