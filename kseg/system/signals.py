"""Signals that ask a command to end: noted, so that what is in progress can end first."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

ENDING = (signal.SIGTERM, signal.SIGINT)
# Seconds that compiled code has to come back to Python; then the process ends without it.
PATIENCE = 5.0


class Stopped(Exception):
    """A signal asked the run to stop; its state has been saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Left(BaseException):
    """Leaves a block in which nothing is unsaved; no handler of errors on the way shall take it for one."""


class Signals:
    """Notes SIGTERM and SIGINT while in force, so that the step in progress can end and be saved."""

    def __enter__(self) -> "Signals":
        self.received: int | None = None
        self.leaving = False
        self.before = {number: signal.signal(number, self._note) for number in ENDING}
        return self

    def _note(self, number: int, frame) -> None:
        # A second Ctrl-C means it.
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self.leaving:
            self.leaving = False
            raise Left

    @contextlib.contextmanager
    def at_once(self, say: Callable[[int], None], patience: float = PATIENCE) -> Iterator[None]:
        """Leave the block as soon as a signal comes; for work that loses nothing by it, such as compiling.

        Python code is left by Stopped, after `say(number)`. Compiled code cannot be left: where it has not come back
        after `patience` seconds, the process says so and ends with status 128 + number, as the command would have.
        """
        with _Watch(say, patience):
            try:
                self.leaving = True
                # It may have come before.
                if self.received is not None:
                    raise Left
                yield
            except BaseException:
                self.leaving = False
                # Whatever Left became on its way through TensorFlow.
                if self.received is None:
                    raise
            finally:
                self.leaving = False
        if self.received is not None:
            say(self.received)
            raise Stopped(self.received)

    def __exit__(self, kind: type[BaseException] | None, *rest) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        # It came while Python was entering or leaving the block.
        if kind is Left:
            raise Stopped(self.received) from None


class _Watch:
    """Ends the process some seconds after a signal, unless the block is left before: Python itself has no say then.

    A handler in Python runs between two lines of Python only; the number of a signal that came is written to a pipe
    even while compiled code runs.
    """

    def __init__(self, say: Callable[[int], None], patience: float):
        self.say, self.patience = say, patience

    def __enter__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self.before = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        # An end of the pipe comes with the end of the block.
        while number := os.read(self.reading, 1):
            if number[0] in ENDING and not self.left.wait(self.patience):
                self.say(number[0])
                sys.stdout.flush()
                os._exit(128 + number[0])

    def __exit__(self, *exception) -> None:
        self.left.set()
        signal.set_wakeup_fd(self.before)
        os.close(self.writing)
        self.thread.join()
        os.close(self.reading)
