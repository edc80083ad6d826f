"""Read the batches of a training run in order, and skip unreadable examples.

The working directory stores the list of skipped examples, each with the step whose batch it made fail. A run that
resumes before that step reads the same batches as before.
"""

import functools
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
# A larger fraction of unreadable examples points to a systematic fault, such as a failing disk or a wrong label format.
MAX_SKIPPED = 0.1


@dataclass(frozen=True)
class SkippedExample:
    """An example that batches skip from `step` on.

    Attributes:
        index: Index in the split.
        name: Name of the image.
        step: First step whose batch skips the example.
        reason: Its fault.
    """

    index: int
    name: str
    step: int
    reason: str


class BatchReader:
    """Reads the batches of a run, and skips unreadable examples with data.unreadable "skip".

    An example is skipped from the step whose batch it made fail, so that batches are pure functions of the seed, the
    step and the files. The list is stored in `workdir`, if given, before the next batch is read.
    """

    def __init__(
        self,
        config: Config,
        split: Split,
        workdir: Path | None,
        strategy: tf.distribute.Strategy,
        report: Callable[[str], None],
    ):
        """Read the list of skipped examples in `workdir`, if any.

        Raises WorkdirError if it does not match the training split.
        """
        self.config, self.split, self.strategy, self.report = config, split, strategy, report
        self.path = workdir / LIST if workdir else None
        self.names = split.names
        self.skipped: list[SkippedExample] = []
        if config.data.unreadable == "skip" and self.path and self.path.exists():
            self.skipped = read_skipped_examples(self.path, self.names)
            report(
                f"skipping the {len(self.skipped)} of {len(self.names)} examples listed as unreadable in "
                f"{self.path}; delete the file to retry them"
            )
        self.iterator: Iterator | None = None
        # Number of consecutive storage failures, and their step.
        self.failures, self.failed_step = 0, -1
        # Step of the iterator's next batch, and the indices that it skips.
        self.position = 0
        self.iterator_skips: frozenset[int] = frozenset()

    @functools.cached_property
    def compiled(self) -> tf.types.experimental.ConcreteFunction:
        """The function that reads one example, which every iterator uses."""
        return batching.compile_example(self.split, self.config)

    def batches(self, step: int, count: int) -> Iterator:
        """Return an iterator over the distributed batches from `step` on.

        The caller must read exactly `count` batches, and not beyond the step `next_skip(step)`.
        """
        skipped = self.skipped_at(step)
        if self.iterator is None or step != self.position or skipped != self.iterator_skips:
            self.iterator, self.iterator_skips = self._open(step, skipped), skipped
        self.position = step + count
        return self.iterator

    def _open(self, step: int, skipped: frozenset[int]) -> Iterator:
        if hosts.num_hosts(self.strategy) == 1:
            return iter(
                self.strategy.experimental_distribute_dataset(
                    batching.train_batches(self.split, self.config, step, None, skipped, self.compiled)
                )
            )
        # With a finite dataset, the hosts would agree before each batch on whether there is one.
        return iter(
            self.strategy.distribute_datasets_from_function(
                lambda host: batching.train_batches(
                    self.split, self.config, step, host, skipped, self.compiled
                ).repeat()
            )
        )

    def next_skip(self, step: int) -> int:
        """Return the first later step whose batch skips more examples.

        Without one, this is the number of steps.
        """
        return min((example.step for example in self.skipped if example.step > step), default=self.config.train.steps)

    def read(self, step: int) -> dict:
        """Return the distributed batch of a step; raises DataError, see `handle_failure`."""
        while True:
            try:
                return next(self.batches(step, 1))
            except tf.errors.OpError as error:
                self.handle_failure(step, error)

    def skipped_at(self, step: int) -> frozenset[int]:
        """Return the indices of the examples that a step's batch skips."""
        return frozenset(example.index for example in self.skipped if example.step <= step)

    def log_values(self) -> dict[str, int]:
        """Return {"left_out": number of skipped examples} with data.unreadable "skip", otherwise {}."""
        return {"left_out": len(self.skipped)} if self.config.data.unreadable == "skip" else {}

    def example_names(self, step: int) -> list[str]:
        """Return the names of the examples in a step's batch."""
        return [self.names[index] for index in self._indices(step)]

    def _indices(self, step: int) -> list[int]:
        return batching.batch_indices(len(self.names), self.config.train, step, self.skipped_at(step))

    def _retry(self, step: int, error: tf.errors.OpError) -> bool:
        """Return whether to retry a step after a storage failure, after waiting."""
        self.failures = self.failures + 1 if step == self.failed_step else 1
        self.failed_step = step
        if self.failures >= retries.ATTEMPTS:
            return False
        seconds = retries.FIRST_WAIT * 2 ** (self.failures - 1)
        self.report(
            f"reading the batch of step {step + 1} failed ({retries.first_line(error)}); attempt "
            f"{self.failures + 1} of {retries.ATTEMPTS} in {seconds:.1f} s"
        )
        time.sleep(seconds)
        return True

    def handle_failure(self, step: int, error: tf.errors.OpError) -> None:
        """Prepare a retry of a step whose batch failed.

        A transient storage error only waits. Otherwise the unreadable example is added to the skipped ones.

        Raises:
            DataError: With data.unreadable "stop", naming the unreadable file. With "skip", if more than MAX_SKIPPED
                of the examples are unreadable.
        """
        self.iterator = None
        if retries.is_transient(error) and self._retry(step, error):
            return
        index, fault = batching.find_faulty_example(self.split, self._indices(step), error)
        if index is None or self.config.data.unreadable == "stop":
            raise fault from None
        skipped = [*self.skipped, SkippedExample(index, self.names[index], step, str(fault))]
        if len(skipped) > MAX_SKIPPED * len(self.names):
            raise DataError(
                f"{len(skipped)} of {len(self.names)} examples of {self.split.name} cannot be read, more "
                f"than {MAX_SKIPPED:.0%}; the last one: {fault}"
            ) from None
        self.skipped = skipped
        if self.path:
            atomic_files.write_text(self.path, json.dumps([asdict(example) for example in skipped], indent=1) + "\n")
        self.report(f"skipping from step {step + 1} on: {fault}; {len(skipped)} of {len(self.names)} examples so far")


def read_skipped_examples(path: Path, names: tuple[str, ...]) -> list[SkippedExample]:
    """Return the list of skipped examples in a file.

    Raises WorkdirError if it does not match the split's `names`.
    """
    try:
        skipped = [SkippedExample(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        for example in skipped:
            # Data may move to another directory, but a changed order would make the list skip readable examples.
            if Path(names[example.index]).stem != Path(example.name).stem:
                raise WorkdirError(
                    f"{path} skips example {example.index} as {example.name}, which is now "
                    f"{names[example.index]}; delete the file to retry all examples"
                )
    except (ValueError, LookupError, TypeError) as error:
        raise WorkdirError(
            f"{path} is damaged or of another dataset ({type(error).__name__}: {error}); delete the "
            "file to retry all examples"
        ) from None
    return skipped
