"""Signals that ask a command to end: noted, so that what is in progress can end first."""

import signal

ENDING = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal asked the run to stop; its state has been saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Notes SIGTERM and SIGINT while in force, so that the step in progress can end and be saved."""

    def __enter__(self) -> "Signals":
        self.received: int | None = None
        self.before = {number: signal.signal(number, self._note) for number in ENDING}
        return self

    def _note(self, number: int, frame) -> None:
        # A second Ctrl-C means it.
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
