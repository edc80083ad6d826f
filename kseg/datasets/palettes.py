"""Compare the palettes of a split's labels, of which only the indices are read, with each other and with the ids."""

from collections.abc import Sequence

import numpy as np

from kseg.datasets.registry import UNMAPPED
from kseg.images import png


def used_colors(label: bytes, counts: np.ndarray) -> dict[int, bytes]:
    """Return the RGB color of each index that occurs in a palette PNG; empty for other labels.

    Args:
        label: The encoded label.
        counts: Number of pixels of each index, (256,).
    """
    palette = png.palette(label)
    return {
        int(index): palette[3 * index : 3 * index + 3]
        for index in np.flatnonzero(counts)
        if len(palette) >= 3 * index + 3
    }


class PaletteComparison:
    """Collect the colors of a split's labels.

    `table` has the train id of each of the 256 raw values, and the train ids below `classes` are classes.
    """

    def __init__(self, table: Sequence[int], classes: int):
        self._table, self._classes = table, classes
        # Color of each index, and the first label that has it.
        self._first: dict[int, tuple[bytes, str]] = {}
        self._difference = ""

    def add(self, name: str, colors: dict[int, bytes]) -> None:
        """Add the colors of the indices that occur in a label."""
        for index, color in colors.items():
            known, first = self._first.setdefault(index, (color, name))
            if known != color and self._table[index] < self._classes and not self._difference:
                self._difference = (
                    f"the palettes differ: index {index} is #{known.hex()} in {first} and #{color.hex()} in {name}, so "
                    "that one index may mean several classes. If the colors are right, list them in classes.txt, as in "
                    f"`#{known.hex()} NAME`; if the indices are right, save the labels as gray PNGs"
                )

    def fault(self) -> str:
        """Return a message on palettes that do not fit, or ""."""
        return self._difference or self._reordered_grays()

    def _reordered_grays(self) -> str:
        """Return a message if the palette is gray and its values are ids, but others than the indices."""
        grays = {index: color[0] for index, (color, _) in self._first.items() if len(set(color)) == 1}
        if (
            not grays
            or len(grays) < len(self._first)
            or any(self._table[value] == UNMAPPED for value in grays.values())
        ):
            return ""
        moved = [index for index, value in sorted(grays.items()) if index != value]
        # A palette whose grays are multiples of the indices only makes the classes visible.
        if not moved or all(value * max(grays) == index * grays[max(grays)] for index, value in grays.items()):
            return ""
        pairs = ", ".join(f"{index} is gray {grays[index]}" for index in moved[:3])
        return (
            f"the palette's grays are other ids than its indices ({pairs}; see {self._first[moved[0]][1]}), as "
            "after an optimizer that sorts palettes: viewers and most tools read the grays, kseg the indices. If "
            "the grays are right, save the labels as 8-bit gray PNGs; if the indices are, remove the palette"
        )
