"""What video files say of their own length, without decoding: whether one ends before its own end.

OpenCV tells nobody that the last frame it gave was cut through. The containers' outermost parts each begin with their
length, which the file's must reach: boxes in MP4 and MOV (ISO/IEC 14496-12, 4.2), RIFF chunks in AVI, EBML elements in
Matroska and WebM (RFC 8794, sections 4 to 6), packets in MPEG program streams (ISO/IEC 13818-1, 2.5.3).
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

EBML, SEGMENT = 0x1A45DFA3, 0x18538067
PACK = b"\0\0\1\xba"
# Types of boxes with which MP4 and MOV files begin.
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


class Lengths(NamedTuple):
    """What a file says of its length.

    `missing` is the number of bytes it is shorter than it says, 0 where it is whole or does not say. `counted` is
    whether a whole file of its kind holds the number of its frames, which elsewhere is estimated from its duration.
    """

    missing: int
    counted: bool


def lengths(path: Path | str) -> Lengths:
    """Return what a video file says of its length; raises OSError where it cannot be read."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(12)
        if start[4:8] in FIRST_BOXES:
            return Lengths(max(_end(file, _box) - size, 0), True)
        if start[:4] == b"RIFF" and start[8:] == b"AVI ":
            return Lengths(max(_end(file, _chunk) - size, 0), True)
        if start[:4] == EBML.to_bytes(4):
            return Lengths(max(_end(file, _element) - size, 0), False)
        if start[:4] == PACK:
            return Lengths(max(_end(file, _packet) - size, 0), False)
    return Lengths(0, False)


def _end(file: BinaryIO, read_length: Callable[[BinaryIO], int | None]) -> int:
    """Return where the last of the parts that follow each other from the file's start ends, as far as they say."""
    position = 0
    while True:
        file.seek(position)
        length = read_length(file)
        if length is None:
            return position
        position += length


def _box(file: BinaryIO) -> int | None:
    """Return the length of the box that begins here; None where it does not say."""
    header = file.read(8)
    length = int.from_bytes(header[:4])
    # 0 reaches to the end of the file, 1 has the length in the 8 bytes that follow.
    if length == 1:
        length = int.from_bytes(file.read(8))
    # Bytes without a type, which some programs append, are no part of the video.
    return length if length >= 8 and header[4:].isascii() and header[4:].decode().isprintable() else None


def _chunk(file: BinaryIO) -> int | None:
    """Return the length of the RIFF chunk that begins here, header and padding included; None where it has none."""
    header = file.read(8)
    length = int.from_bytes(header[4:], "little")
    # What was never finished has 0 or all bits set; what follows the chunks is no part of the video.
    if header[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
        return None
    return 8 + length + length % 2


def _element(file: BinaryIO) -> int | None:
    """Return the length of the EBML header or segment that begins here; None for what else, or where it is unknown."""
    start = file.tell()
    if int.from_bytes(file.read(4)) not in (EBML, SEGMENT):
        return None
    first = file.read(1)
    if not first or not first[0]:
        return None
    # The number of leading zero bits is the number of bytes that follow; the marking bit is no part of the number.
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    value = int.from_bytes(first + rest) - (1 << 7 * (extra + 1))
    unknown = (1 << 7 * (extra + 1)) - 1
    return None if value == unknown or len(rest) < extra else file.tell() - start + value


def _packet(file: BinaryIO) -> int | None:
    """Return the length of the pack header or packet that begins here; None for what is neither."""
    header = file.read(14)
    if header[:4] == PACK:
        # MPEG-2 tells how many stuffing bytes follow its pack headers; MPEG-1 has none.
        return 14 + (header[13] & 7 if len(header) == 14 else 0) if header[4:5] >= b"\x40" else 12
    if header[:4] == b"\0\0\1\xb9":
        return 4
    if header[:3] != b"\0\0\1" or header[3:4] < b"\xbb":
        return None
    return 6 + int.from_bytes(header[4:6])
