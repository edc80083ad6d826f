"""The batches that a run trains on, one step after another, and the examples it leaves out because none can read them.

The working directory keeps the list of what is left out, each example with the step whose batch it made fail. A run
that is continued before that step reaches it with the same batches as the first time.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorflow as tf

from kseg.config import Config
from kseg.datasets.registry import Split
from kseg.distributed import hosts
from kseg.errors import DataError, WorkdirError
from kseg.input_pipeline import batching
from kseg.system import atomic_files, retries

LIST = "unreadable.json"
# Above this share of unreadable examples it is no stray file but the data set: a failing disk, another label format.
LARGEST_SHARE = 0.1


@dataclass(frozen=True)
class SkippedExample:
    """An example that stands in no batch from `step` on: its place in the split, its file, and what is wrong."""

    index: int
    name: str
    step: int
    reason: str


class BatchReader:
    """Reads the batches of a run; with data.unreadable "skip", without the examples that made one fail.

    An example is left out from the step on whose batch it made fail, so that batches are pure functions of the seed,
    the step and the files. The list is stored in `workdir`, if there is one, before the next batch is read.
    """

    def __init__(self, config: Config, split: Split, workdir: Path | None, strategy: tf.distribute.Strategy,
                 report: Callable[[str], None]):
        """Read the list that `workdir` may hold; raises WorkdirError where it does not fit the training `split`."""
        self.config, self.split, self.strategy, self.report = config, split, strategy, report
        self.path = workdir / LIST if workdir else None
        self.names = split.names
        self.left_out: list[SkippedExample] = []
        if config.data.unreadable == "skip" and self.path and self.path.exists():
            self.left_out = read_skipped_examples(self.path, self.names)
            report(f"left out as unreadable: {len(self.left_out)} of {len(self.names)} examples in {self.path}; "
                   "remove it to try them again")
        self.iterator: Iterator | None = None
        # How often in a row storage failed, and at which step.
        self.failures, self.failed_step = 0, -1
        # The step whose batch the iterator gives next, and what it reads without.
        self.position = 0
        self.reading_without: frozenset[int] = frozenset()

    def batches(self, step: int, count: int) -> Iterator:
        """Return an iterator whose next batches are the distributed ones of `count` steps, all of which are to be read.

        Until `changes(step)` at most.
        """
        left_out = self.left_out_at(step)
        if self.iterator is None or step != self.position or left_out != self.reading_without:
            self.iterator, self.reading_without = self._open(step, left_out), left_out
        self.position = step + count
        return self.iterator

    def _open(self, step: int, left_out: frozenset[int]) -> Iterator:
        if hosts.num_hosts(self.strategy) == 1:
            return iter(self.strategy.experimental_distribute_dataset(
                batching.train_batches(self.split, self.config, step, left_out=left_out)))
        # Were there an end, all hosts would ask each other before each batch whether it is there.
        return iter(self.strategy.distribute_datasets_from_function(
            lambda host: batching.train_batches(self.split, self.config, step, host, left_out).repeat()))

    def changes(self, step: int) -> int:
        """Return the next step from which batches are made without more examples, or the last step of all."""
        return min((each.step for each in self.left_out if each.step > step), default=self.config.train.steps)

    def read(self, step: int) -> dict:
        """Return the distributed batch of a step; raises DataError as `note` does."""
        while True:
            try:
                return next(self.batches(step, 1))
            except tf.errors.OpError as error:
                self.note(step, error)

    def left_out_at(self, step: int) -> frozenset[int]:
        """Return the places of the examples that the batch of a step is made without."""
        return frozenset(each.index for each in self.left_out if each.step <= step)

    def counts(self) -> dict[str, int]:
        """Return what the log counts: {"left_out": examples} with data.unreadable "skip", else nothing."""
        return {"left_out": len(self.left_out)} if self.config.data.unreadable == "skip" else {}

    def files(self, step: int) -> list[str]:
        """Return the names of the examples in a step's batch."""
        return [self.names[index] for index in self._indices(step)]

    def _indices(self, step: int) -> list[int]:
        return batching.batch_indices(len(self.names), self.config.train, step, self.left_out_at(step))

    def _waits(self, step: int, error: tf.errors.OpError) -> bool:
        """Wait a while if the storage has not failed too often at this step; return whether it is to be asked again."""
        self.failures = self.failures + 1 if step == self.failed_step else 1
        self.failed_step = step
        if self.failures >= retries.ATTEMPTS:
            return False
        seconds = retries.FIRST_WAIT * 2 ** (self.failures - 1)
        self.report(f"reading the batch of step {step + 1} failed ({retries.first_line(error)}); attempt "
                    f"{self.failures + 1} of {retries.ATTEMPTS} in {seconds:.1f} s")
        time.sleep(seconds)
        return True

    def note(self, step: int, error: tf.errors.OpError) -> None:
        """Put the example that made the batch of a step fail on the list, so that it can be asked for again.

        Where storage has failed for a moment, wait and note nothing. Raises DataError naming the file that cannot be
        read, or, with data.unreadable "skip", where there are more of them than LARGEST_SHARE.
        """
        self.iterator = None
        if retries.is_transient(error) and self._waits(step, error):
            return
        index, fault = batching.find_faulty_example(self.split, self._indices(step), error)
        if index is None or self.config.data.unreadable == "stop":
            raise fault from None
        left_out = [*self.left_out, SkippedExample(index, self.names[index], step, str(fault))]
        if len(left_out) > LARGEST_SHARE * len(self.names):
            raise DataError(f"{len(left_out)} of {len(self.names)} examples of {self.split.name} cannot be read, more than "
                            f"{LARGEST_SHARE:.0%}; the last one: {fault}") from None
        self.left_out = left_out
        if self.path:
            atomic_files.write_text(self.path, json.dumps([asdict(each) for each in left_out], indent=1) + "\n")
        self.report(f"left out from step {step + 1} on: {fault}; {len(left_out)} of {len(self.names)} examples so far")


def read_skipped_examples(path: Path, names: tuple[str, ...]) -> list[SkippedExample]:
    """Return the list of left out examples in a file; raises WorkdirError where it does not fit the split's `names`."""
    try:
        left_out = [SkippedExample(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
        for each in left_out:
            # The data may have moved, but not changed: then other examples would be left out than could not be read.
            if Path(names[each.index]).stem != Path(each.name).stem:
                raise WorkdirError(f"{path} leaves out example {each.index} as {each.name}, which is now "
                                   f"{names[each.index]}; remove it to try all examples again")
    except (ValueError, LookupError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged or of another data set ({type(error).__name__}: {error}); remove it to "
                           "try all examples again") from None
    return left_out
