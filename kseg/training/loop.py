"""Run the training loop: steps, log, validation, checkpoints, and recovery from non-finite losses.

Steps are counted from 1 in messages, metrics.jsonl and the names of checkpoints: "step 5" is the fifth step, and a
checkpoint of step 5 is the state after it. The number of steps taken is therefore also the index, from 0, of the next
step. Schedules, batches and skipped.json use that index.
"""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
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

# TensorFlow raises these if a GPU falls off the bus, its driver fails, or a transfer between devices breaks.
DEVICE_ERRORS = (
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DataLossError,
)
COMPILING = "compiling the training step: usually 20 to 60 s on a CPU"
# On a single host, signals are handled after at most this many seconds of a call of several steps.
LONGEST_CALL = 4.0


class NonFiniteLoss(UserError):
    """The loss became nan or infinite."""


class OutOfMemory(UserError):
    """A step does not fit into the memory of its device."""


class DeviceLost(UserError):
    """A device or its driver failed during a step."""


class PendingResults(NamedTuple):
    """Hold the unread results of a call whose first step has the index `step`."""

    step: int
    results: StepResults


class NonFiniteStep(Exception):
    """The loss or the update of the step with the index `step` is nan or infinite."""

    def __init__(self, step: int, losses: dict[str, float]):
        super().__init__(step)
        self.step, self.losses = step, losses


class Loop:
    """Take the remaining steps of a run, on this host's part of the batches.

    `step` is the number of steps taken. `skipped` lists the steps whose batch is skipped because of a non-finite loss.
    """

    def __init__(
        self,
        recorder: Recorder,
        reader: BatchReader,
        steps: Steps,
        checkpoint: tf.train.Checkpoint,
        signals: Signals,
        profile: Profile,
    ):
        self.recorder, self.reader, self.steps, self.checkpoint = recorder, reader, steps, checkpoint
        self.signals, self.profile, self.settings = signals, profile, recorder.config.train
        self.strategy, self.optimizer = steps.strategy, steps.optimizer
        self.learning_rate = schedule(self.settings)
        self.log = StepLog(self.settings)
        self.skipped = working_directory.read_skipped_steps(recorder.workdir)
        # The results of a call are read while the device executes the next one.
        self.pending: PendingResults | None = None
        self.step, self.stopping, self.last_losses, self.compiled = 0, False, {}, False

    def run(self, step: int) -> None:
        """Take steps until the last one or until train.patience is exhausted, after `step` steps have been taken.

        Raises:
            Stopped: The process received a signal, or another host did; the state has been saved.
            DataError, NonFiniteLoss, OutOfMemory, DeviceLost, HostLost, WorkdirError: Training cannot continue.
        """
        self.step = step
        if step and self._is_due(self.settings.validate_every) and not self.recorder.has_validation(step):
            # The previous process was interrupted between the checkpoint and its validation.
            self._validate()
        self.log.restart()
        while self.step < self.settings.steps and not self.out_of_patience():
            try:
                self._advance()
            except NonFiniteStep as failure:
                self._recover(failure)

    def out_of_patience(self) -> bool:
        """Return whether the last train.patience validations have brought no improvement."""
        since_best = self.step - self.recorder.best["step"]
        return 0 < self.settings.patience * self.settings.validate_every <= since_best

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0 or self.step == self.settings.steps

    def _advance(self) -> None:
        """Take the steps of one call, then log, save, validate or stop if that is due."""
        settings = self.settings
        if self.step in (skipped["step"] for skipped in self.skipped):
            self.step += 1
            self.optimizer.iterations.assign(self.step)
        elif not self._call_steps():
            return
        logging, validating = self._is_due(settings.log_every), self._is_due(settings.validate_every)
        saving = validating or self._is_due(settings.checkpoint_every)
        if logging or saving:
            self._check_pending()
        if logging and self.log.count:
            self.recorder.log(
                self.step,
                self.log.flush(self.step)
                | self.reader.log_values()
                | memory.memory_in_use()
                | {"learning_rate": float(self.learning_rate(self.step - 1))},
            )
            memory.reset_peak_memory()
        if hosts.num_hosts(self.strategy) == 1:
            # A single read: a signal that arrives later must not be reported with a state that is not saved.
            self.stopping = self.signals.received is not None
        if saving or self.stopping:
            self._check_pending()
            # Saving first loses no steps if the validation fails on an unreadable file.
            self._save()
            if hosts.num_hosts(self.strategy) == 1:
                # A signal that arrived during the save needs no further step.
                self.stopping = self.signals.received is not None
        if validating:
            self._validate()
        if self.stopping and self.step < settings.steps:
            self._stop()

    def _call_steps(self) -> bool:
        """Take steps in one call and return True; if a batch is unreadable, take those before it and return False."""
        count = self._steps_per_call()
        iterator = self.reader.batches(self.step, count)
        self.profile.step(self.step)
        try:
            # The first call compiles for up to minutes. A signal may abort it, because its initial state is saved.
            with contextlib.nullcontext() if self.compiled else self.signals.at_once(self._report_signal):
                results = (self._take if self.compiled else self._compile)(iterator, count)
        except tf.errors.OpError as error:
            self._handle_failed_call(error)
            return False
        previous, self.pending = self.pending, PendingResults(self.step, results)
        self.step += count
        self._check_losses(previous)
        return True

    def _take(self, iterator: Iterator, count: int) -> StepResults:
        return self.steps.take(iterator, count, self.signals.received is not None)

    def _compile(self, iterator: Iterator, count: int) -> StepResults:
        """Take the steps of the first call, which compiles, and leave it out of the speed and the time left."""
        self.recorder.report(COMPILING)
        started = time.monotonic()
        results = self._take(iterator, count)
        # A GPU computes on after the call has returned.
        results.losses.numpy()
        seconds = time.monotonic() - started
        self.log.exclude(count, seconds)
        self.log.waited -= float(results.waited)
        self.compiled = True
        self.recorder.report(
            f"compiled in {seconds:.0f} s, with the first {'step' if count == 1 else f'{count} steps'}"
        )
        return results

    def _steps_per_call(self) -> int:
        """Return the number of steps until the next event, at most train.steps_per_call."""
        events = [
            (self.step // interval + 1) * interval
            for interval in (self.settings.log_every, self.settings.validate_every, self.settings.checkpoint_every)
        ]
        events += [skipped["step"] for skipped in self.skipped if skipped["step"] > self.step]
        events += [self.reader.next_skip(self.step), self.profile.boundary(self.step), self.settings.steps]
        limit = self.settings.steps_per_call
        if hosts.num_hosts(self.strategy) == 1 and self.log.seconds_per_step:
            # Signals are handled between calls.
            limit = min(limit, max(1, int(LONGEST_CALL / self.log.seconds_per_step)))
        return min(limit, min(events) - self.step)

    def _handle_failed_call(self, error: tf.errors.OpError) -> None:
        """Record the example that a call could not read, or raise the error that explains the failure."""
        hosts.raise_host_loss(self.strategy, error)
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise OutOfMemory(
                f"a step does not fit into the memory of its device: "
                f"{error.message.splitlines()[0][:200]}; lower train.global_batch or augment.crop, raise "
                "train.accumulate, or set train.recompute=true"
            ) from None
        if "GetNext" not in str(error):
            # The error is not about a batch, and the state after a partial step must not be saved.
            if isinstance(error, DEVICE_ERRORS):
                raise DeviceLost(
                    f"the device failed after step {self.step}: {error.message.splitlines()[0][:300]}. "
                    "The checkpoints are intact; run the same command again to resume"
                ) from None
            raise error
        self._check_pending()
        self.step = int(self.optimizer.iterations.numpy())
        try:
            self.reader.handle_failure(self.step, error)
        except DataError:
            # The steps before the unreadable batch are valid.
            if self.step:
                self._save()
            raise

    def _check_pending(self) -> None:
        """Read the pending results."""
        pending, self.pending = self.pending, None
        self._check_losses(pending)

    def _check_losses(self, pending: PendingResults | None) -> None:
        """Add the losses of a call to the log; raises NonFiniteStep for the first one that is not finite."""
        if pending is None:
            return
        rows = pending.results.losses.numpy()
        for index, row in enumerate(rows):
            self.last_losses = dict(zip(self.steps.names, row.tolist(), strict=True))
            if not math.isfinite(self.last_losses["loss"]):
                raise NonFiniteStep(pending.step + index, self.last_losses)
            self.log.add(self.last_losses)
        self.log.waited += float(pending.results.waited)
        if hosts.num_hosts(self.strategy) > 1:
            # All hosts read the same number here, so all of them stop at the same step.
            self.stopping = self.stopping or int(pending.results.stop_requests) > 0

    def _save(self) -> None:
        # An update can be infinite although the loss before it was finite; such a state must not be saved.
        values = map(keras.ops.convert_to_numpy, self.recorder.model.trainable_variables)
        if not all(np.isfinite(value).all() for value in values):
            raise NonFiniteStep(self.step - 1, self.last_losses)
        if self.recorder.is_chief:
            checkpoints.save_checkpoint(
                self.recorder.workdir, self.checkpoint, self.step, self.settings.keep_checkpoints, self.recorder.report
            )

    def _validate(self) -> None:
        started = time.monotonic()
        # A signal may abort the validation: the step is saved, and the resumed run repeats the validation.
        with self.signals.at_once(self._report_signal):
            self.recorder.validate(self.step)
        self.log.started += time.monotonic() - started

    def _report_signal(self, number: int) -> None:
        state = f"saved step {self.step} of {self.settings.steps}" if self.step else "no step was taken"
        self.recorder.report(
            f"{signal.Signals(number).name}: {state} in {self.recorder.workdir}; run the same command again to resume"
        )

    def _stop(self) -> None:
        number = signal.SIGTERM if self.signals.received is None else self.signals.received
        self._report_signal(number)
        raise Stopped(number)

    def _recover(self, failure: NonFiniteStep) -> None:
        """Restore the newest checkpoint and skip the batch of a step; raises NonFiniteLoss if that is not allowed."""
        settings, workdir = self.settings, self.recorder.workdir
        files = self.reader.example_names(failure.step)
        losses = ", ".join(f"{name} {value:g}" for name, value in failure.losses.items())
        fault = (
            f"the loss or its update is not finite at step {failure.step + 1} ({losses}), "
            f"learning rate {float(self.learning_rate(failure.step)):g}"
        )
        if len(self.skipped) >= settings.nonfinite_batches or not checkpoints.checkpoint_steps(workdir):
            limit = (
                f" {len(self.skipped)} batches have already been skipped (train.nonfinite_batches="
                f"{settings.nonfinite_batches})."
                if self.skipped
                else ""
            )
            raise NonFiniteLoss(
                f"{fault}.{limit} The previous checkpoints are intact. Lower train.learning_rate, or check the files "
                "of this batch:\n" + "\n".join(f"  {name}" for name in files)
            )
        self.skipped = [
            *self.skipped,
            {
                "step": failure.step,
                "files": files,
                "losses": {name: repr(value) for name, value in failure.losses.items()},
            },
        ]
        if self.recorder.is_chief:
            working_directory.write_skipped_steps(workdir, self.skipped, self.recorder.report)
        self.step = checkpoints.restore_newest(workdir, self.checkpoint, self.recorder.report)
        self.pending = None
        self.log.restart()
        self.recorder.discard_after(self.step)
        self.recorder.report(
            f"{fault}; restored the checkpoint of step {self.step}, and that batch will be skipped "
            f"({len(self.skipped)} of at most {settings.nonfinite_batches}): {', '.join(files)}"
        )
