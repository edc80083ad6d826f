"""Record a range of training steps for TensorBoard's profiler: `--profile FIRST:LAST`."""

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

# Returned as the next boundary if there is none.
NEVER = 10**18


class Profile:
    """Record steps for TensorBoard's profiler into `workdir`/tensorboard.

    The loop calls `step` before each call that takes steps and ends each call at the next `boundary`. Leaving the
    context stops the recording.
    """

    def __init__(self, profiled: tuple[int, int] | None, workdir: Path | None, report: Callable[[str], None] = print):
        """Record the steps (first, last), counted from 1, or nothing if `profiled` or `workdir` is None."""
        self.report = report
        self.directory = workdir / "tensorboard" if workdir else None
        # The numbers of steps taken when recording starts and when it stops.
        self.start, self.end = (profiled[0] - 1, profiled[1]) if profiled and workdir else (0, 0)
        self.recording = False
        # TensorBoard recognizes steps by this event.
        self.step_event: tf.profiler.experimental.Trace | None = None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception) -> None:
        self._stop()

    def boundary(self, step: int) -> int:
        """Return the number of steps taken, above `step`, at which recording next starts or stops, or NEVER."""
        return min((boundary for boundary in (self.start, self.end) if boundary > step), default=NEVER)

    def step(self, step: int) -> None:
        """Start or stop recording before the next call, when `step` steps have been taken."""
        if not self.start <= step < self.end:
            self._stop()
            return
        if not self.recording:
            tf.profiler.experimental.start(str(self.directory))
            self.recording = True
        self._close_step_event()
        self.step_event = tf.profiler.experimental.Trace("train", step_num=step + 1, _r=1)
        self.step_event.__enter__()

    def _close_step_event(self) -> None:
        event, self.step_event = self.step_event, None
        if event:
            event.__exit__(None, None, None)

    def _stop(self) -> None:
        if not self.recording:
            return
        # A GPU may still be executing recorded steps.
        tf.test.experimental.sync_devices()
        self._close_step_event()
        self.recording = False
        tf.profiler.experimental.stop()
        self.report(
            f"profile recorded: `tensorboard --logdir {self.directory}` shows it under Profile if its plug-in "
            "is installed (pip install tensorboard-plugin-profile)"
        )
