"""The upper rows of a PNG, at half of what reading it all costs: a fast inflation that ends where the rows do.

A PNG is one stream of rows, which decoders inflate to its end by zlib. Inflated by ISA-L as far as is wanted, and put
back into a PNG without compression, it is left to the decoder to undo the rows' filters.
"""

import struct
import zlib

from isal import isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Where things stand in a PNG: its sides, and what follows them up to the first chunk's checksum.
SIDES, KIND, IHDR_END, FIRST_CHUNK = 16, 24, 29, 33
# 8 bits of red, green and blue; deflated, with filters that adapt to each row, not interlaced.
RGB = bytes([8, 2, 0, 0, 0])
# As many bytes can be stored as they are in one block.
BLOCK = 65535
END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def sides(data: bytes) -> tuple[int, int]:
    """Return (height, width) of a PNG by its header; (0, 0) where that is cut off."""
    return struct.unpack_from(">II", data, SIDES)[::-1] if len(data) >= KIND else (0, 0)


def first_rows(data: bytes, rows: int) -> bytes:
    """Return a PNG of the first `rows` rows of an 8-bit RGB PNG, which decodes to the same pixels.

    Whatever is no such file, or not whole up to there, is returned as it is, for a decoder to say what is wrong.
    """
    if data[:8] != SIGNATURE or data[KIND:IHDR_END] != RGB:
        return data
    width, height = struct.unpack_from(">II", data, SIDES)
    wanted = min(rows, height) * (1 + 3 * width)
    try:
        inflated = isal_zlib.decompressobj().decompress(b"".join(_deflated(data)), wanted)
    except (ValueError, struct.error, isal_zlib.error):
        return data
    return _stored(width, min(rows, height), inflated) if wanted and len(inflated) == wanted else data


def _deflated(data: bytes) -> list[memoryview]:
    """Return the contents of the chunks that hold pixels; raises ValueError for one whose checksum is wrong."""
    view, start, found = memoryview(data), FIRST_CHUNK, []
    while True:
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if kind == b"IDAT":
            if (isal_zlib.crc32(view[start + 4:end]),) != struct.unpack_from(">I", data, end):
                raise ValueError("checksum")
            found.append(view[start + 8:end])
        elif found or kind == b"IEND":
            return found
        start = end + 4


def _stored(width: int, height: int, rows: bytes) -> bytes:
    """Return the PNG of filtered rows, which are stored as they are."""
    view, parts = memoryview(rows), [b"IDAT\x78\x01"]
    for start in range(0, len(rows), BLOCK):
        block = view[start:start + BLOCK]
        parts += [struct.pack("<BHH", start + BLOCK >= len(rows), len(block), len(block) ^ 0xFFFF), block]
    parts.append(struct.pack(">I", isal_zlib.adler32(rows)))
    checksum = 0
    for part in parts:
        checksum = isal_zlib.crc32(part, checksum)
    header = struct.pack(">4sII", b"IHDR", width, height) + RGB
    return b"".join([
        SIGNATURE, struct.pack(">I", len(header) - 4), header, struct.pack(">I", zlib.crc32(header)),
        struct.pack(">I", sum(map(len, parts)) - 4), *parts, struct.pack(">I", checksum), END])
