"""A progress line with rate and time left: rewritten on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """Counts towards a total and says so, at most every `interval` seconds and at the end."""

    def __init__(self, total: int, unit: str, report: Callable[[str], None] = print, interval: float | None = None):
        self.total, self.unit, self.report = total, unit, report
        self.live = report is print and sys.stdout.isatty()
        self.interval = interval if interval is not None else (0.2 if self.live else 10.0)
        self.started = self.said = time.monotonic()

    def update(self, done: int) -> None:
        """Note that `done` of the total are finished."""
        now = time.monotonic()
        if now - self.said < self.interval and done < self.total:
            return
        self.said = now
        rate = done / max(now - self.started, 1e-9)
        line = f"{done}/{self.total} {self.unit}  {rate:.1f}/s  eta {duration((self.total - done) / max(rate, 1e-9))}"
        if self.live:
            print(f"\r\x1b[K{line}", end="\n" if done >= self.total else "", flush=True)
        else:
            self.report(line)
