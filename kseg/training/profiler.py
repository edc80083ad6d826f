"""TensorBoard's profile of a range of training steps: `--profile FIRST:LAST`."""

import re
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from kseg.errors import ConfigError

FORM = re.compile(r"([0-9]{1,12}):([0-9]{1,12})")
# Where no boundary lies ahead.
NEVER = 10**18


def parse(text: str, steps: int) -> tuple[int, int]:
    """Return (first, last) of `--profile FIRST:LAST`, steps counted from 1 as in the log, both of them recorded.

    Raises ConfigError for another form, an empty range, or a step that a run of `steps` steps does not have.
    """
    match = FORM.fullmatch(text)
    if not match:
        raise ConfigError(f"--profile is {text!r}; it must be FIRST:LAST, such as 11:15, the first and the last step "
                          "that are recorded")
    first, last = int(match[1]), int(match[2])
    if not 1 <= first <= last:
        raise ConfigError(f"--profile is {text!r}; steps are counted from 1, and FIRST must not be above LAST")
    if last > steps:
        raise ConfigError(f"--profile is {text!r}; the last step of this run is train.steps={steps}")
    return first, last


class Profile:
    """Records steps for TensorBoard's profiler in `workdir`/tensorboard, until it is left at the latest.

    `profiled` is what `parse` returns, or None to record nothing, as does None for `workdir`. The loop calls `step`
    before each call that takes steps, and ends such a call at the next `boundary`. `report` takes a line that tells
    where the record is.
    """

    def __init__(self, profiled: tuple[int, int] | None, workdir: Path | None, report: Callable[[str], None] = print):
        self.report = report
        self.directory = workdir / "tensorboard" if workdir else None
        # Steps taken before the first recorded one and after the last one.
        self.first, self.end = (profiled[0] - 1, profiled[1]) if profiled and workdir else (0, 0)
        self.recording = False
        # What TensorBoard recognises a step by.
        self.mark: tf.profiler.experimental.Trace | None = None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception) -> None:
        self._stop()

    def boundary(self, step: int) -> int:
        """Return the number of steps taken, above `step`, at which recording next begins or ends; none: NEVER."""
        return min((each for each in (self.first, self.end) if each > step), default=NEVER)

    def step(self, step: int) -> None:
        """Begin or end recording as fits the steps that come next, `step` of them having been taken."""
        if not self.first <= step < self.end:
            self._stop()
            return
        if not self.recording:
            tf.profiler.experimental.start(str(self.directory))
            self.recording = True
        self._unmark()
        self.mark = tf.profiler.experimental.Trace("train", step_num=step + 1, _r=1)
        self.mark.__enter__()

    def _unmark(self) -> None:
        mark, self.mark = self.mark, None
        if mark:
            mark.__exit__(None, None, None)

    def _stop(self) -> None:
        if not self.recording:
            return
        # A GPU may still be at what it was given.
        tf.test.experimental.sync_devices()
        self._unmark()
        self.recording = False
        tf.profiler.experimental.stop()
        self.report(f"recorded steps for the profiler: `tensorboard --logdir {self.directory}` shows them "
                    "under Profile, where its plug-in is installed (pip install tensorboard-plugin-profile)")
