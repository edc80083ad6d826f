"""Report progress with rate and remaining time: one updated line on a terminal, occasional lines elsewhere."""

import sys
import time
from collections.abc import Callable

# Moves to the start of the terminal's line and clears it.
CLEAR_LINE = "\r\x1b[K"


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """A counter that reports its progress at most every `interval` seconds, and at the end.

    `total` is None if it is unknown.
    """

    def __init__(
        self, total: int | None, unit: str, report: Callable[[str], None] = print, interval: float | None = None
    ):
        self.total, self.unit, self.report = total, unit, report
        # An object that replaces stdout in a notebook or a test may lack isatty.
        self.live = report is print and getattr(sys.stdout, "isatty", bool)()
        self.interval = interval if interval is not None else (0.2 if self.live else 10.0)
        self.started = self.reported = time.monotonic()

    def update(self, done: int, last: bool = False) -> None:
        """Set the count to `done`; `last` marks the last update, whether or not the total is reached."""
        now = time.monotonic()
        last = last or done == self.total
        if now - self.reported < self.interval and not last:
            return
        self.reported = now
        rate = done / max(now - self.started, 1e-9)
        # An announced total, such as a video's number of frames, may be too small.
        if self.total is None or done > self.total:
            line = f"{done} {self.unit}  {rate:.1f}/s{'' if last else '  of an unknown number'}"
        else:
            left = f"eta {duration((self.total - done) / max(rate, 1e-9))}"
            line = f"{done}/{self.total} {self.unit}  {rate:.1f}/s  {'ended' if last and done < self.total else left}"
        if self.live:
            print(f"{CLEAR_LINE}{line}", end="\n" if last else "", flush=True)
        else:
            self.report(line)
