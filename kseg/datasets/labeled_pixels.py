"""Find out, before hours of training, whether a split has labeled pixels at all."""

import numpy as np

from kseg.config.sections import IGNORED
from kseg.datasets import diagnosis
from kseg.datasets.registry import Split
from kseg.errors import DataError


def require_labeled_pixels(split: Split) -> None:
    """Raise DataError if every readable label of a split has ignored pixels only.

    The scores of such a split are undefined, and training on it learns nothing. The search ends at the first label
    with a labeled pixel, which usually is the first one. Labels that cannot be read are left to the code that reads
    whole examples, which names their fault.

    Args:
        split: the opened split.

    Raises:
        DataError: No label has a labeled pixel; the message names the split, the values and the first label.

    Example:
        >>> from kseg.config.sections import Data
        >>> from kseg.datasets import registry
        >>> require_labeled_pixels(registry.open_split(Data(name="shapes", directory=str(data)), "val"))
    """
    table = np.array(split.dataset.label_table)
    found: set[int] = set()
    for index, name in enumerate(split.label_names):
        try:
            label = diagnosis.read_label(split.dataset, name, diagnosis.read_pair(split, index)[1])
        except DataError:
            continue
        values = np.unique(label)
        if (table[values] != IGNORED).any():
            return
        found.update(values.tolist())
    if found:
        defined = sorted(value for value, train_id in enumerate(table) if train_id < len(split.dataset.classes))
        raise DataError(
            f"split {split.name!r} of {split.location} has no labeled pixel: its labels ({len(split.label_names)}), "
            f"such as {split.label_names[0]}, hold only the ignored value{'s' * (len(found) > 1)} "
            f"{', '.join(map(str, sorted(found)))}. The values of classes are "
            f"{', '.join(map(str, defined[:10]))}{', ...' if len(defined) > 10 else ''}; correct the labels, or choose "
            "other splits: data.train_split and data.val_split in training, --split in evaluation"
        )
