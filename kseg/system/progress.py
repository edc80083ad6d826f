"""A progress line with rate and time left: rewritten on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """Counts towards a total (None: unknown) and says so, at most every `interval` seconds and at the end."""

    def __init__(self, total: int | None, unit: str, report: Callable[[str], None] = print,
                 interval: float | None = None):
        self.total, self.unit, self.report = total, unit, report
        self.live = report is print and sys.stdout.isatty()
        self.interval = interval if interval is not None else (0.2 if self.live else 10.0)
        self.started = self.said = time.monotonic()

    def update(self, done: int, last: bool = False) -> None:
        """Note that `done` of the total are finished; `last` says that no more will follow, however many they are."""
        now = time.monotonic()
        last = last or done == self.total
        if now - self.said < self.interval and not last:
            return
        self.said = now
        rate = done / max(now - self.started, 1e-9)
        # What is counted may be more than was announced.
        if self.total is None or done > self.total:
            line = f"{done} {self.unit}  {rate:.1f}/s{'' if last else '  of an unknown number'}"
        else:
            left = f"eta {duration((self.total - done) / max(rate, 1e-9))}"
            line = f"{done}/{self.total} {self.unit}  {rate:.1f}/s  {'ended' if last and done < self.total else left}"
        if self.live:
            print(f"\r\x1b[K{line}", end="\n" if last else "", flush=True)
        else:
            self.report(line)


# To the line's start, and the rest of it away.
CLEAR_LINE = "\r\x1b[K"
