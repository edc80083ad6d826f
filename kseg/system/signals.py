"""Handle SIGTERM and SIGINT, so that a command saves the work in progress before it stops."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

STOPPING = (signal.SIGTERM, signal.SIGINT)
# Seconds that compiled code has to return to Python before the process exits.
PATIENCE = 5.0
# A second signal within this many seconds counts as the first one: a launcher such as `uv run` passes on a Ctrl-C that
# the terminal has sent to this process as well.
REPEAT = 2.0


class Stopped(Exception):
    """A signal stopped the run; its state has been saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Interrupted(BaseException):
    """Leaves an `at_once` block; a BaseException, so that no handler of errors in the block catches it."""


class Signals:
    """A context that records SIGTERM and SIGINT in `received`, so that the current step can finish and be saved.

    A SIGINT that follows another signal after REPEAT seconds or more raises KeyboardInterrupt, which stops without
    saving.

    Args:
        answer: A line for stderr, written as soon as the first signal arrives, even while compiled code runs; "" for
            none. The name of the signal precedes it.
    """

    def __init__(self, answer: str = ""):
        self.answer = answer

    def __enter__(self) -> "Signals":
        self.received: int | None = None
        self.received_at = 0.0
        self.interruptible = False
        self.watcher = _Watcher(self.answer)
        self.previous_handlers = {number: signal.signal(number, self._record) for number in STOPPING}
        return self

    def _record(self, number: int, frame) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received_at = now
        elif number == signal.SIGINT and now - self.received_at >= REPEAT:
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
        with self.watcher.exit_after_signal(report, patience):
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
        self.watcher.close()
        # The signal arrived while Python was entering or leaving an `at_once` block.
        if kind is _Interrupted:
            raise Stopped(self.received) from None


class _Watcher:
    """A thread that answers a signal at once, and exits the process if compiled code does not return after one.

    Python runs signal handlers only between bytecode instructions. The wakeup file descriptor receives the number of a
    signal even while compiled code runs, so a thread waits for it.
    """

    def __init__(self, answer: str):
        self.answer, self.block = answer, None
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self.previous_descriptor = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        answered = not self.answer
        # Reading returns nothing after `close` has closed the pipe.
        while number := os.read(self.reading, 1):
            if number[0] not in STOPPING:
                continue
            if not answered:
                answered = True
                # Without a buffer: the interrupted code may be in the middle of a print.
                with contextlib.suppress(OSError):
                    os.write(2, f"{signal.Signals(number[0]).name}: {self.answer}\n".encode())
            # The main thread may leave the block at any moment.
            block = self.block
            if block is not None:
                left, report, patience = block
                if not left.wait(patience):
                    report(number[0])
                    sys.stdout.flush()
                    os._exit(128 + number[0])

    @contextlib.contextmanager
    def exit_after_signal(self, report: Callable[[int], None], patience: float) -> Iterator[None]:
        """Report and exit the process `patience` seconds after a signal, unless the block is left before."""
        left = threading.Event()
        self.block = left, report, patience
        try:
            yield
        finally:
            self.block = None
            left.set()

    def close(self) -> None:
        """Stop watching, and restore the previous wakeup file descriptor."""
        signal.set_wakeup_fd(self.previous_descriptor)
        os.close(self.writing)
        self.thread.join()
        os.close(self.reading)
