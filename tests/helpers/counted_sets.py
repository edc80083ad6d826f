"""A small `folder` data set whose counts are known by hand."""

import numpy as np

from tests.helpers.small_sets import folder

CLASSES = "0 background\n255 object\n3 rare\n9 unseen\n7 ignore\n"


def counted(tmp_path):
    # 2x4 and 2x2 pixels: 0 six times in both, 255 four times in the first and the second, 3 once in the second.
    first = np.array([[0, 0, 0, 7], [0, 255, 255, 255]], np.uint8)
    second = np.array([[0, 0], [255, 3]], np.uint8)
    return folder(tmp_path, {"train": [first, second]}, CLASSES)
