"""The training loop: steps, their log, validation and checkpoints, and what it does when a loss is not finite."""

import contextlib
import math
import signal
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kseg.distributed import hosts, memory
from kseg.errors import DataError, UserError
from kseg.input_pipeline.batch_reader import BatchReader
from kseg.system.signals import Signals, Stopped
from kseg.training import checkpoints, working_directory
from kseg.training.profiler import Profile
from kseg.training.recorder import Recorder, StepLog
from kseg.training.schedule import schedule
from kseg.training.step import StepResults, Steps

# What TensorFlow raises where a GPU falls off the bus, its driver fails, or a transfer between devices breaks.
DEVICE_ERRORS = (tf.errors.InternalError, tf.errors.UnknownError, tf.errors.UnavailableError, tf.errors.AbortedError,
                 tf.errors.DataLossError)
# Seconds that a call of several steps shall take at most, where one host decides for itself.
LONGEST_CALL = 4.0


class NonFiniteLoss(UserError):
    """The loss became nan or infinite."""


class OutOfMemory(UserError):
    """A step does not fit into the memory of its device."""


class DeviceLost(UserError):
    """A device, or its driver, failed in the middle of a step."""


class Pending(NamedTuple):
    """What the steps from `step` on gave, not yet looked at."""

    step: int
    taken: StepResults


class NotFinite(Exception):
    """The loss of a step, counted from 0, or its update is nan or infinite."""

    def __init__(self, step: int, losses: dict[str, float]):
        super().__init__(step)
        self.step, self.losses = step, losses


class Loop:
    """Takes the steps of a run that are left, on this host's part of all."""

    def __init__(self, run: Recorder, reader: BatchReader, steps: Steps, checkpoint: tf.train.Checkpoint,
                 signals: Signals, profile: Profile):
        self.run, self.reader, self.steps, self.checkpoint = run, reader, steps, checkpoint
        self.signals, self.profile, self.settings = signals, profile, run.config.train
        self.strategy, self.optimizer = steps.strategy, steps.optimizer
        self.rate = schedule(self.settings)
        self.log = StepLog(self.settings)
        # Steps whose batch is passed over.
        self.skipped = working_directory.read_skipped(run.workdir)
        # The results of a call are read while the device works at the next one.
        self.pending: Pending | None = None
        self.step, self.stopping, self.losses, self.compiled = 0, False, {}, False

    def take_all(self, step: int) -> int:
        """Take the steps from `step` to the last one, or to where train.patience ends; return the last one's number.

        Raises Stopped after a signal, DataError, NonFiniteLoss, HostLost and WorkdirError.
        """
        self.step = step
        if step and self._due(self.settings.validate_every) and not self.run.validated(step):
            # Something cut off the validation of the step that was saved.
            self._validate()
        self.log.restart()
        while self.step < self.settings.steps and not self.out_of_patience():
            try:
                self._advance()
            except NotFinite as found:
                self._go_back(found)
        return self.step

    def out_of_patience(self) -> bool:
        """Return whether train.patience validations have passed without a better one."""
        waited = self.step - self.run.best["step"]
        return 0 < self.settings.patience * self.settings.validate_every <= waited

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _advance(self) -> None:
        """Take the steps up to the next at which there is something to do, and do it."""
        settings = self.settings
        if self.step in (each["step"] for each in self.skipped):
            self.step += 1
            self.optimizer.iterations.assign(self.step)
        elif not self._call():
            return
        logging, validating = self._due(settings.log_every), self._due(settings.validate_every)
        saving = validating or self._due(settings.checkpoint_every)
        if logging or saving:
            self._settle()
        if logging and self.log.count:
            self.run.log(self.step, self.log.flush(self.step) | self.reader.log_values() | memory.memory_in_use()
                         | {"learning_rate": float(self.rate(self.step - 1))})
            memory.reset_peak_memory()
        if hosts.num_hosts(self.strategy) == 1:
            # Asked once, so that what is said to be saved has been.
            self.stopping = self.signals.received is not None
        if saving or self.stopping:
            self._settle()
            # Before the validation, which may meet a bad file: nothing of the steps is lost then.
            self._save()
            if hosts.num_hosts(self.strategy) == 1:
                # What came while it was written need not wait for more steps.
                self.stopping = self.signals.received is not None
        if validating:
            self._validate()
        if self.stopping and self.step < settings.steps:
            self._stop()

    def _call(self) -> bool:
        """Take steps in one call; where a batch cannot be read, those before it, and return False."""
        count = self._count()
        iterator = self.reader.batches(self.step, count)
        self.profile.step(self.step)
        try:
            # The first call compiles, for up to minutes; what it begins with is stored.
            with contextlib.nullcontext() if self.compiled else self.signals.at_once(self._tell):
                taken = self.steps.take(iterator, count, self.signals.received is not None)
            self.compiled = True
        except tf.errors.OpError as error:
            self._failed(error)
            return False
        before, self.pending = self.pending, Pending(self.step, taken)
        self.step += count
        self._look_at(before)
        return True

    def _count(self) -> int:
        """Return how many steps can be taken before something is to be done."""
        ends = [(self.step // every + 1) * every for every in (
            self.settings.log_every, self.settings.validate_every, self.settings.checkpoint_every)]
        ends += [each["step"] for each in self.skipped if each["step"] > self.step]
        ends += [self.reader.next_skip(self.step), self.profile.boundary(self.step), self.settings.steps]
        most = self.settings.steps_per_call
        if hosts.num_hosts(self.strategy) == 1 and self.log.seconds_per_step:
            # A signal is heard after a call.
            most = min(most, max(1, int(LONGEST_CALL / self.log.seconds_per_step)))
        return min(most, min(ends) - self.step)

    def _failed(self, error: tf.errors.OpError) -> None:
        """Note the example that a call could not read, or raise what is wrong."""
        hosts.raise_host_loss(self.strategy, error)
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise OutOfMemory(f"the device's memory is not enough for a step: {error.message.splitlines()[0][:200]}; "
                              "lower train.global_batch or augment.crop, raise train.accumulate, or set "
                              "train.recompute=true") from None
        if "GetNext" not in str(error):
            # No batch is at fault, and what the step has left is not to be kept.
            if isinstance(error, DEVICE_ERRORS):
                raise DeviceLost(f"a step failed on its device after step {self.step}: "
                                 f"{error.message.splitlines()[0][:300]}. What was saved is whole; the same command "
                                 "continues there") from None
            raise error
        self._settle()
        self.step = int(self.optimizer.iterations.numpy())
        try:
            self.reader.handle_failure(self.step, error)
        except DataError:
            # The steps so far are sound.
            if self.step:
                self._save()
            raise

    def _settle(self) -> None:
        """Look at all results there are."""
        pending, self.pending = self.pending, None
        self._look_at(pending)

    def _look_at(self, pending: Pending | None) -> None:
        """Add the losses of steps to the log; raises NotFinite where one is not."""
        if pending is None:
            return
        rows = pending.taken.losses.numpy()
        for number, row in enumerate(rows):
            self.losses = dict(zip(self.steps.names, row.tolist(), strict=True))
            if not math.isfinite(self.losses["loss"]):
                raise NotFinite(pending.step + number, self.losses)
            self.log.add(self.losses)
        self.log.waited += float(pending.taken.waited)
        if hosts.num_hosts(self.strategy) > 1:
            # All hosts read the same number here, and stop at the same step.
            self.stopping = self.stopping or int(pending.taken.stop_requests) > 0

    def _save(self) -> None:
        # An update may be infinite although the loss before it was not; such a state is not to be kept.
        values = map(keras.ops.convert_to_numpy, self.run.model.trainable_variables)
        if not all(np.isfinite(value).all() for value in values):
            raise NotFinite(self.step - 1, self.losses)
        if self.run.writes:
            checkpoints.save_checkpoint(self.run.workdir, self.checkpoint, self.step, self.settings.keep_checkpoints,
                                        self.run.report)

    def _validate(self) -> None:
        started = time.monotonic()
        # The step is stored; the validation is made up for when the run continues.
        with self.signals.at_once(self._tell):
            self.run.validate(self.step)
        self.log.started += time.monotonic() - started

    def _tell(self, number: int) -> None:
        state = f"saved step {self.step} of {self.settings.steps}" if self.step else "no step was taken yet"
        self.run.report(f"{signal.Signals(number).name}: {state} in {self.run.workdir}; the same command continues "
                        "there")

    def _stop(self) -> None:
        number = signal.SIGTERM if self.signals.received is None else self.signals.received
        self._tell(number)
        raise Stopped(number)

    def _go_back(self, found: NotFinite) -> None:
        """Continue at the newest checkpoint without the batch of a step; raises NonFiniteLoss if that is not to be."""
        settings, workdir = self.settings, self.run.workdir
        files = self.reader.example_names(found.step)
        parts = ", ".join(f"{name} {value:g}" for name, value in found.losses.items())
        fault = (f"the loss or its update is not finite at step {found.step + 1} ({parts}), "
                 f"learning rate {float(self.rate(found.step)):g}")
        if len(self.skipped) >= settings.nonfinite_batches or not checkpoints.checkpoint_steps(workdir):
            before = f" {len(self.skipped)} batches were left out before, as train.nonfinite_batches allows;" \
                if self.skipped else ""
            raise NonFiniteLoss(
                f"{fault}.{before} The checkpoints before it are whole. Lower train.learning_rate, or look at the "
                "files of this batch:\n" + "\n".join(f"  {name}" for name in files))
        self.skipped = [*self.skipped, {"step": found.step, "files": files, "losses": {
            name: repr(value) for name, value in found.losses.items()}}]
        if self.run.writes:
            working_directory.write_skipped(workdir, self.skipped, self.run.report)
        self.step = checkpoints.restore_newest(workdir, self.checkpoint, self.run.report)
        self.pending = None
        self.log.restart()
        self.run.go_back(self.step)
        self.run.report(f"{fault}; going back to the checkpoint of step {self.step} and on without that batch "
                        f"({len(self.skipped)} of at most {settings.nonfinite_batches}; {', '.join(files)})")
