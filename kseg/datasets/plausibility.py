"""Find what the examples of a dataset show only together, such as palettes that differ from label to label.

`check` and `prepare` look at all examples, training and evaluation at a few when they start.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kseg.config.sections import IGNORED
from kseg.datasets import diagnosis, file_lists, statistics
from kseg.datasets.palettes import PaletteComparison, used_colors
from kseg.datasets.registry import Dataset, Split
from kseg.errors import DataError
from kseg.images import picture_reader
from kseg.images.picture_reader import Picture
from kseg.system.paths import printable

# Number of examples of each split that `sampled_notes` reads.
SAMPLED = 16


class Plausibility:
    """Collects facts about single images and labels; several threads may add images.

    Attributes:
        dataset: The dataset.
        palettes: The colors of the palettes of its labels.
    """

    def __init__(self, dataset: Dataset, value_range: tuple[float, ...]):
        """Take the dataset, and (low, high) by which values of more than 8 bits are reduced, or ()."""
        self.dataset = dataset
        self.palettes = PaletteComparison(dataset.label_table, len(dataset.classes))
        self._value_range = value_range
        self._extents: list[tuple[float, float]] = []
        self._several_pages: list[str] = []
        self._counts = np.zeros(256, np.int64)

    def add_picture(self, name: str, picture: Picture) -> None:
        """Add an image."""
        if picture.values is not None:
            self._extents.append((picture.values.min(), picture.values.max()))
        if picture.pages > 1:
            self._several_pages.append(name)

    def add_counts(self, counts: np.ndarray) -> None:
        """Add the number of pixels of each raw value of a label, (256,)."""
        self._counts += counts

    def warnings(self) -> list[str]:
        """Return sentences on what is lost of the images, and on a class whose pixels are probably ignored."""
        notes = []
        if not self._value_range and (note := picture_reader.range_note(self._extents)):
            notes.append(note)
        if self._several_pages:
            notes.append(
                f"only the first page or frame is read of {len(self._several_pages)} "
                f"image{'s' * (len(self._several_pages) > 1)}: {file_lists.first_three(self._several_pages)}"
            )
        if note := self._ignored_class_note():
            notes.append(note)
        return notes

    def _ignored_class_note(self) -> str:
        """Return a sentence if the only class in the labels has none but ignored pixels of the value 255 beside it."""
        dataset = self.dataset
        pixels = statistics.counts_by_class(np.array(dataset.label_table), self._counts, len(dataset.classes))
        unseen = [name for name, count in zip(dataset.classes, pixels, strict=True) if not count]
        if (
            dataset.name != "folder"
            or dataset.label_colors
            or len(unseen) != len(dataset.classes) - 1
            or dataset.label_table[IGNORED] != IGNORED
            or not self._counts[IGNORED]
        ):
            return ""
        [seen] = set(dataset.classes) - set(unseen)
        fraction = self._counts[IGNORED] / self._counts.sum()
        return (
            f"the labels have pixels of one class only, {seen!r}, and {fraction:.1%} of their pixels have the "
            f"value {IGNORED}, which is ignored; if that is {unseen[0]!r}, write `{IGNORED} {unseen[0]}` in "
            "classes.txt"
        )

    def palette_fault(self) -> str:
        """Return a message on palettes that make the labels ambiguous, or ""."""
        return "" if self.dataset.label_colors else self.palettes.fault()

    def notes(self) -> list[str]:
        """Return the warnings and the fault of the palettes."""
        return self.warnings() + [fault for fault in [self.palette_fault()] if fault]


def report_notes(splits: Sequence[Split], report: Callable[[str], None]) -> None:
    """Report what is skipped of some splits of a dataset, and what `sampled_notes` finds, each once."""
    for note in dict.fromkeys([note for split in splits for note in split.notes] + sampled_notes(splits)):
        report(printable(f"warning: {note}"))


def sampled_notes(splits: Sequence[Split]) -> list[str]:
    """Return sentences on what is unusual in `SAMPLED` examples of each of some splits of a dataset.

    The examples are spread evenly. Files that cannot be read are left to the code that needs them.

    Args:
        splits: The opened splits; those with decoded pixels are skipped, because such files are all alike.
    """
    findings = Plausibility(splits[0].dataset, splits[0].value_range)
    total = looked_at = turned = 0
    for split in {split.name: split for split in splits if not split.is_pixels}.values():
        total += len(split.names)
        for index in sorted({int(index) for index in np.linspace(0, len(split.names) - 1, SAMPLED)}):
            looked_at += 1
            try:
                turned += _look_at(split, index, findings)
            except DataError:
                continue
    notes = findings.notes() + [statistics.orientation_note(turned)] * (turned > 0)
    bound = f"in a sample of {looked_at} of {total} examples " if looked_at < total else ""
    return [bound + note for note in notes]


def _look_at(split: Split, index: int, findings: Plausibility) -> bool:
    """Add an example to the findings; return whether its image was turned. Usual images are not decoded."""
    image_data, label_data = diagnosis.read_pair(split, index)
    if not split.dataset.label_colors:
        counts = statistics.value_counts(diagnosis.read_label(split.dataset, split.label_names[index], label_data))
        findings.add_counts(counts)
        findings.palettes.add(split.label_names[index], used_colors(label_data.numpy(), counts))
    try:
        if not diagnosis.needs_care(image_data):
            return False
    # A damaged image.
    except tf.errors.OpError:
        return False
    picture = diagnosis.read_picture(split.names[index], image_data, split.value_range)
    findings.add_picture(split.names[index], picture)
    return picture.orientation != 1
