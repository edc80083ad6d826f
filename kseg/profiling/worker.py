"""Run measurements in fresh processes that answer messages over a pipe."""

import contextlib
import multiprocessing
import pickle
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from kseg.system import quiet_start


class Worker:
    """A new process that runs `target(connection, *arguments)` and shares no state with this one.

    `target` has to be a function of a module. It sends its answers through `connection`; a text is an error message.
    """

    def __init__(self, target: Callable, *arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, remote_end = context.Pipe()
        self.process = context.Process(target=_run, args=(remote_end, pickle.dumps((target, arguments))), daemon=True)
        self.process.start()
        # The process now holds the only remote end, so the pipe closes when the process dies.
        remote_end.close()

    def ask(self, message):
        """Send a message and return the answer; raises RuntimeError for the reasons that `answer` names."""
        # The answer below reports a dead process.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(message)
        return self.answer()

    def answer(self):
        """Return the next answer; raises RuntimeError if it is an error message or if the process has died."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            hint = ", usually because of too little memory" if self.process.exitcode == -signal.SIGKILL else ""
            raise RuntimeError(f"its process exited with status {self.process.exitcode}{hint}") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """Stop the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _run(connection: Connection, work: bytes) -> None:
    # The target is unpickled here and not by multiprocessing, because unpickling imports its module and TensorFlow.
    quiet_start.import_tensorflow()
    target, arguments = pickle.loads(work)
    target(connection, *arguments)
