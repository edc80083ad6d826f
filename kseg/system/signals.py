"""Handle SIGTERM and SIGINT, so that a command saves the work in progress before it stops."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

STOPPING = (signal.SIGTERM, signal.SIGINT)
# Seconds that compiled code has to return to Python before the process exits.
PATIENCE = 5.0


class Stopped(Exception):
    """A signal stopped the run; its state has been saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Interrupted(BaseException):
    """Leaves an `at_once` block; a BaseException, so that no handler of errors in the block catches it."""


class Signals:
    """A context that records SIGTERM and SIGINT in `received`, so that the current step can finish and be saved."""

    def __enter__(self) -> "Signals":
        self.received: int | None = None
        self.interruptible = False
        self.previous_handlers = {number: signal.signal(number, self._record) for number in STOPPING}
        return self

    def _record(self, number: int, frame) -> None:
        # A second Ctrl-C stops without saving.
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self.interruptible:
            self.interruptible = False
            raise _Interrupted

    @contextlib.contextmanager
    def at_once(self, report: Callable[[int], None], patience: float = PATIENCE) -> Iterator[None]:
        """Leave the block as soon as a signal arrives; for work that can be discarded, such as compiling.

        Python code is left by raising Stopped, after `report(number)`. Compiled code cannot be interrupted: if it has
        not returned after `patience` seconds, the process reports and exits with status 128 + number, the status that
        the command would have.
        """
        with _ExitAfterSignal(report, patience):
            try:
                self.interruptible = True
                # The signal may have arrived before the block.
                if self.received is not None:
                    raise _Interrupted
                yield
            except BaseException:
                self.interruptible = False
                # TensorFlow may have turned the interruption into an error of its own.
                if self.received is None:
                    raise
            finally:
                self.interruptible = False
        if self.received is not None:
            report(self.received)
            raise Stopped(self.received)

    def __exit__(self, kind: type[BaseException] | None, *rest) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        # The signal arrived while Python was entering or leaving an `at_once` block.
        if kind is _Interrupted:
            raise Stopped(self.received) from None


class _ExitAfterSignal:
    """A context that exits the process some seconds after a signal, unless the context is left before.

    Python runs signal handlers only between bytecode instructions. The wakeup file descriptor receives the number of a
    signal even while compiled code runs, so a thread waits for it.
    """

    def __init__(self, report: Callable[[int], None], patience: float):
        self.report, self.patience = report, patience

    def __enter__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self.previous_descriptor = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        # Reading returns nothing when __exit__ closes the pipe.
        while number := os.read(self.reading, 1):
            if number[0] in STOPPING and not self.left.wait(self.patience):
                self.report(number[0])
                sys.stdout.flush()
                os._exit(128 + number[0])

    def __exit__(self, *exception) -> None:
        self.left.set()
        signal.set_wakeup_fd(self.previous_descriptor)
        os.close(self.writing)
        self.thread.join()
        os.close(self.reading)
