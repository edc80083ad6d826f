"""Write a small `folder` dataset with known pixel counts."""

import numpy as np

from tests.helpers.small_sets import folder

CLASSES = "0 background\n255 object\n3 rare\n9 unseen\n7 ignore\n"


def counted(tmp_path):
    # Pixels in the 2x4 and the 2x2 image: value 0 six times and value 255 four times in both together, value 3 once in
    # the second image.
    first = np.array([[0, 0, 0, 7], [0, 255, 255, 255]], np.uint8)
    second = np.array([[0, 0], [255, 3]], np.uint8)
    return folder(tmp_path, {"train": [first, second]}, CLASSES)
