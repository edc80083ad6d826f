"""The formats that can be converted, by name."""

from collections.abc import Callable
from pathlib import Path

from kseg.annotations.annotated_images import Annotations, Findings, Options
from kseg.annotations.coco import read_coco
from kseg.annotations.labelme import read_labelme

KINDS: dict[str, Callable[[Path, Options, Findings], Annotations]] = {"coco": read_coco, "labelme": read_labelme}
