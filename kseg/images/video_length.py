"""Detect truncated video files from the lengths in their containers, without decoding.

OpenCV does not report that the last frame it decoded was truncated. The outermost parts of a container begin with their
length, which is compared with the file's size: boxes in MP4 and MOV (ISO/IEC 14496-12, 4.2), RIFF chunks in AVI, EBML
elements in Matroska and WebM (RFC 8794, sections 4 to 6), packets in MPEG program streams (ISO/IEC 13818-1, 2.5.3).
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

EBML, SEGMENT = 0x1A45DFA3, 0x18538067
PACK = b"\0\0\1\xba"
# Types of the boxes that may begin an MP4 or MOV file.
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


class ContainerLength(NamedTuple):
    """The length that a video's container declares.

    Attributes:
        missing_bytes: Number of declared bytes that the file lacks; 0 if it is complete or declares no length.
        has_frame_count: Whether this container format stores the number of frames. Otherwise OpenCV estimates the
            number from the duration.
    """

    missing_bytes: int
    has_frame_count: bool


def container_length(path: Path | str) -> ContainerLength:
    """Read the length that a video's container declares; raises OSError if the file cannot be read."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(12)
        if start[4:8] in FIRST_BOXES:
            return ContainerLength(max(_declared_end(file, _box_length) - size, 0), True)
        if start[:4] == b"RIFF" and start[8:] == b"AVI ":
            return ContainerLength(max(_declared_end(file, _chunk_length) - size, 0), True)
        if start[:4] == EBML.to_bytes(4):
            return ContainerLength(max(_declared_end(file, _element_length) - size, 0), False)
        if start[:4] == PACK:
            return ContainerLength(max(_declared_end(file, _packet_length) - size, 0), False)
    return ContainerLength(0, False)


def _declared_end(file: BinaryIO, read_length: Callable[[BinaryIO], int | None]) -> int:
    """Return the position where the last part with a known length ends, which may be beyond the file's end."""
    position = 0
    while True:
        file.seek(position)
        length = read_length(file)
        if length is None:
            return position
        position += length


def _box_length(file: BinaryIO) -> int | None:
    """Return the length of the box at the current position; None if it has none."""
    header = file.read(8)
    length = int.from_bytes(header[:4])
    # Length 0 means that the box extends to the end of the file; 1 means that 8 bytes of length follow.
    if length == 1:
        length = int.from_bytes(file.read(8))
    # Some programs append bytes without a box type, which are not part of the video.
    return length if length >= 8 and header[4:].isascii() and header[4:].decode().isprintable() else None


def _chunk_length(file: BinaryIO) -> int | None:
    """Return the length of the RIFF chunk at the current position, with header and padding; None if it has none."""
    header = file.read(8)
    length = int.from_bytes(header[4:], "little")
    # A writer that was interrupted leaves the length 0 or all bits set. Bytes after the chunks are not part of the
    # video.
    if header[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
        return None
    return 8 + length + length % 2


def _element_length(file: BinaryIO) -> int | None:
    """Return the length of the EBML header or segment at the current position.

    None means another element or an unknown length.
    """
    start = file.tell()
    if int.from_bytes(file.read(4)) not in (EBML, SEGMENT):
        return None
    first = file.read(1)
    if not first or not first[0]:
        return None
    # The number of leading zero bits is the number of following bytes; the marker bit is not part of the value.
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    value = int.from_bytes(first + rest) - (1 << 7 * (extra + 1))
    unknown = (1 << 7 * (extra + 1)) - 1
    return None if value == unknown or len(rest) < extra else file.tell() - start + value


def _packet_length(file: BinaryIO) -> int | None:
    """Return the length of the pack header or packet at the current position; None for other bytes."""
    header = file.read(14)
    if header[:4] == PACK:
        # An MPEG-2 pack header declares its stuffing bytes; MPEG-1 has none.
        return 14 + (header[13] & 7 if len(header) == 14 else 0) if header[4:5] >= b"\x40" else 12
    if header[:4] == b"\0\0\1\xb9":
        return 4
    if header[:3] != b"\0\0\1" or header[3:4] < b"\xbb":
        return None
    return 6 + int.from_bytes(header[4:6])
