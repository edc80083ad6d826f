"""The formats that can be converted, by name."""

from collections.abc import Callable
from pathlib import Path

from kseg.annotations.annotated_images import Annotations, Findings, Options
from kseg.annotations.coco import read_coco
from kseg.annotations.color_masks import read_color_masks
from kseg.annotations.cvat import read_cvat
from kseg.annotations.hugging_face import read_hugging_face
from kseg.annotations.label_studio import read_label_studio
from kseg.annotations.labelme import read_labelme
from kseg.annotations.yolo import read_yolo

KINDS: dict[str, Callable[[Path, Options, Findings], Annotations]] = {
    "coco": read_coco,
    "cvat": read_cvat,
    "hugging-face": read_hugging_face,
    "label-studio": read_label_studio,
    "labelme": read_labelme,
    "rgb": read_color_masks,
    "yolo": read_yolo,
}
