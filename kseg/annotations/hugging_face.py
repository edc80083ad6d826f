"""Read pairs of images and masks of Hugging Face's datasets: parquet files, or a directory written by save_to_disk."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kseg.annotations.annotated_images import AnnotatedImage, AnnotatedObject, Annotations, Findings, LabelMap, Options
from kseg.annotations.color_masks import ColorTable, read_table
from kseg.annotations.json_files import member, read_json
from kseg.config.sections import IGNORED
from kseg.datasets.class_list import UNMAPPED
from kseg.errors import DataError
from kseg.images import picture_reader

IMAGE_COLUMNS = ("image", "pixel_values")
MASK_COLUMNS = ("label", "mask", "annotation", "labels", "segmentation_mask")
# Parquet files are named after their split, as in train-00000-of-00001.parquet.
SHARD = re.compile(r"(.+?)-\d+-of-\d+(-\w+)?")
ROWS_READ = 16


@dataclass(frozen=True)
class _Shard:
    """A file of rows: its split and the names of its columns."""

    path: Path
    split: str
    image: str
    mask: str
    rows: int


def read_hugging_face(path: Path, options: Options, findings: Findings) -> Annotations:
    """Return the annotations of a dataset with encoded images and masks of class ids.

    Args:
        path: A parquet file, a directory of them, or a directory written by `save_to_disk`.
        options: `classes` names the ids in order, by default class-0, class-1, and so on. `colors` is for color masks.
        findings: Receives faulty masks.

    Raises:
        DataError: There is no such dataset, or its masks store no class ids.
    """
    shards = [_open_shard(file, split) for file, split in _files(path)]
    colors = read_table(options.colors) if options.colors else None
    names = colors.names if colors else tuple(options.classes) or _numbered_classes(shards)

    def read_images() -> Iterator[AnnotatedImage]:
        numbers: dict[str, int] = {}
        for shard in shards:
            for image, mask in _rows(shard):
                number = numbers[shard.split] = numbers.get(shard.split, -1) + 1
                place = f"{shard.path}: {shard.split or 'row'} {number}"
                try:
                    ids = _class_ids(place, mask, colors, len(names))
                    content = _content(f"{place}: {shard.image}", image)
                except DataError as error:
                    findings.fault(str(error))
                    continue
                item = AnnotatedObject(place, "", LabelMap(ids))
                # Rows have no names, or names that are not unique.
                yield AnnotatedImage(str(shard.path), f"{number:06d}", content, None, (item,), shard.split)

    return Annotations(names, read_images(), sum(shard.rows for shard in shards), complete=True)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("Hugging Face's datasets need pyarrow: pip install 'kseg[convert]'") from None
    return pyarrow


def _files(path: Path) -> list[tuple[Path, str]]:
    """Return the files of rows with their splits."""
    if path.is_file():
        return [(path, _split_of_shard(path))]
    if (path / "dataset_dict.json").is_file():
        splits = member(str(path), read_json(path / "dataset_dict.json", dict), "splits", list)
        return [(file, split) for split in splits for file in _saved_files(path / split)]
    if (path / "state.json").is_file():
        return [(file, "") for file in _saved_files(path)]
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"{path} has no .parquet file, dataset_dict.json or state.json")
    return [(file, _split_of_shard(file)) for file in files]


def _saved_files(directory: Path) -> list[Path]:
    state = directory / "state.json"
    entries = member(str(state), read_json(state, dict), "_data_files", list)
    return [directory / member(str(state), entry, "filename", str) for entry in entries]


def _split_of_shard(file: Path) -> str:
    match = SHARD.fullmatch(file.stem)
    return match[1] if match else ""


def _open_shard(file: Path, split: str) -> _Shard:
    arrow = _arrow()
    try:
        if file.suffix == ".parquet":
            opened = arrow.parquet.ParquetFile(file)
            columns, rows = opened.schema_arrow.names, opened.metadata.num_rows
        else:
            with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as stream:
                columns, rows = stream.schema.names, sum(batch.num_rows for batch in stream)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    found = [next((name for name in wanted if name in columns), "") for wanted in (IMAGE_COLUMNS, MASK_COLUMNS)]
    if not all(found):
        raise DataError(
            f"{file} has the columns {', '.join(columns)}; needed are one of {', '.join(IMAGE_COLUMNS)} and one of "
            f"{', '.join(MASK_COLUMNS)}"
        )
    return _Shard(file, split, *found, rows)


def _rows(shard: _Shard) -> Iterator[tuple[Any, Any]]:
    arrow, columns = _arrow(), [shard.image, shard.mask]
    if shard.path.suffix == ".parquet":
        for batch in arrow.parquet.ParquetFile(shard.path).iter_batches(ROWS_READ, columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns))
        return
    with arrow.memory_map(str(shard.path)) as source, arrow.ipc.open_stream(source) as stream:
        for batch in stream:
            for start in range(0, batch.num_rows, ROWS_READ):
                part = batch.slice(start, ROWS_READ)
                yield from zip(*(part.column(name).to_pylist() for name in columns))


def _content(place: str, value: Any) -> bytes:
    """Return the encoded image of a cell; raises DataError for a cell without one."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.get("path") and Path(value["path"]).is_file():
        return Path(value["path"]).read_bytes()
    stated = (
        f", only the path {value['path']}, which is missing" if isinstance(value, dict) and value.get("path") else ""
    )
    raise DataError(f"{place}: the cell has no encoded image{stated}; save the dataset with embedded images")


def _class_ids(place: str, value: Any, colors: ColorTable | None, classes: int) -> np.ndarray:
    """Return a mask's class ids, uint8 (H, W)."""
    content = _content(f"{place}: mask", value)
    if colors:
        return colors.ids(place, picture_reader.read_picture(content, place).pixels)
    ids = _indices(place, content)
    wrong = np.unique(ids[(ids >= classes) & (ids != IGNORED)]).tolist()
    if wrong:
        raise DataError(f"{place}: the mask has the value {wrong[0]}, and there are {classes} classes")
    return ids


def _indices(place: str, content: bytes) -> np.ndarray:
    try:
        return picture_reader.read_indices(content, f"{place}: mask")
    except DataError as error:
        raise DataError(f"{error}; list the colors of color masks with --colors FILE") from None


def _numbered_classes(shards: list[_Shard]) -> tuple[str, ...]:
    """Return class-0 to the largest id that occurs; raises DataError for masks that are 0 and 255."""
    found = np.zeros(256, bool)
    for shard in shards:
        for number, (_, mask) in enumerate(_rows(shard)):
            place = f"{shard.path}: row {number}"
            found[np.unique(_indices(place, _content(f"{place}: mask", mask)))] = True
    values = np.flatnonzero(found[:IGNORED]).tolist()
    if values in ([], [0]):
        raise DataError(
            "the masks have the values 0 and 255 only, and 255 is ignored; for masks of one object, write lines such "
            "as `#000000 background` and `#ffffff object` into a file and name it with --colors"
        )
    return tuple(f"class-{number}" for number in range(min(values[-1] + 1, UNMAPPED + 1)))
