"""Follow the chunks of a PNG: find what decoders read differently, and shorten it to its upper rows.

A PNG is one deflate stream of filtered rows, and decoders inflate all of it. ISA-L inflates only the wanted rows, which
are then stored in a new PNG without compression; the decoder still reverses the row filters. This takes about half the
time of decoding the whole file.
"""

import os
import struct
import zlib
from typing import BinaryIO

from isal import isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Byte positions: IHDR's sides, the bytes after them, the end of IHDR's content, and the first chunk after IHDR.
SIDES, KIND, IHDR_END, FIRST_CHUNK = 16, 24, 29, 33
# IHDR's content after the sides for 8 bits of RGB: deflated, adaptive filters, not interlaced.
RGB = bytes([8, 2, 0, 0, 0])
# Maximum length of a stored deflate block (RFC 1951, section 3.2.4).
BLOCK = 65535
# Text chunks, and the keywords of those that may hold an orientation.
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTED_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def png_size(data: bytes) -> tuple[int, int]:
    """Return the (height, width) in a PNG's header, or (0, 0) if the header is cut off."""
    return struct.unpack_from(">II", data, SIDES)[::-1] if len(data) >= KIND else (0, 0)


def first_rows(data: bytes, rows: int) -> bytes:
    """Return a PNG of the first `rows` rows of an 8-bit RGB PNG.

    Any other file, and a PNG that is damaged within these rows, is returned unchanged, so that the decoder reports the
    error.
    """
    if data[:8] != SIGNATURE or data[KIND:IHDR_END] != RGB:
        return data
    width, height = struct.unpack_from(">II", data, SIDES)
    wanted = min(rows, height) * (1 + 3 * width)
    try:
        inflated = isal_zlib.decompressobj().decompress(b"".join(_pixel_chunks(data)), wanted)
    except (ValueError, struct.error, isal_zlib.error):
        return data
    return _stored_png(width, min(rows, height), inflated) if wanted and len(inflated) == wanted else data


def _pixel_chunks(data: bytes) -> list[memoryview]:
    """Return the contents of the IDAT chunks; raises ValueError for a wrong checksum."""
    view, start, chunks = memoryview(data), FIRST_CHUNK, []
    while True:
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if kind == b"IDAT":
            if (isal_zlib.crc32(view[start + 4 : end]),) != struct.unpack_from(">I", data, end):
                raise ValueError("checksum")
            chunks.append(view[start + 8 : end])
        elif chunks or kind == b"IEND":
            return chunks
        start = end + 4


def _stored_png(width: int, height: int, rows: bytes) -> bytes:
    """Return a PNG that holds filtered rows without compression."""
    view, parts = memoryview(rows), [b"IDAT\x78\x01"]
    for start in range(0, len(rows), BLOCK):
        block = view[start : start + BLOCK]
        parts += [struct.pack("<BHH", start + BLOCK >= len(rows), len(block), len(block) ^ 0xFFFF), block]
    parts.append(struct.pack(">I", isal_zlib.adler32(rows)))
    checksum = 0
    for part in parts:
        checksum = isal_zlib.crc32(part, checksum)
    header = struct.pack(">4sII", b"IHDR", width, height) + RGB
    return b"".join(
        [
            SIGNATURE,
            struct.pack(">I", len(header) - 4),
            header,
            struct.pack(">I", zlib.crc32(header)),
            struct.pack(">I", sum(map(len, parts)) - 4),
            *parts,
            struct.pack(">I", checksum),
            END,
        ]
    )


def palette(data: bytes) -> bytes:
    """Return the RGB colors of a palette PNG, three bytes for each index, or b"" for another file."""
    start = FIRST_CHUNK
    while data[KIND + 1 : KIND + 2] == b"\x03" and start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind in (b"PLTE", b"IDAT"):
            return data[start + 8 : start + 8 + length] if kind == b"PLTE" else b""
        start += 12 + length
    return b""


def count_headers(file: BinaryIO) -> int:
    """Return the number of IHDR chunks of a PNG file."""
    file.seek(len(SIGNATURE))
    headers = 0
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        headers += kind == b"IHDR"
        file.seek(length + 4, os.SEEK_CUR)
    return headers


def needs_care(data: bytes, max_pixels: int) -> bool:
    """Return whether TensorFlow may decode a PNG to other pixels than those that `picture_reader` defines.

    Such a PNG has 16 bits, several headers or frames, an orientation, more than `max_pixels` pixels, or damage outside
    of its pixels, which only Pillow refuses.
    """
    height, width = png_size(data)
    if height * width > max_pixels or data[KIND : KIND + 1] == b"\x10":
        return True
    start, headers, kind = len(SIGNATURE), 0, b"IDAT"
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind != b"IDAT":
            headers += kind == b"IHDR"
            content, end = start + 8, start + 8 + length
            if headers > 1 or kind in (b"eXIf", b"acTL") or kind in TEXTS and data.startswith(ORIENTED_TEXTS, content):
                return True
            if isal_zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
                return True
            if kind == b"IEND":
                return False
        start += 12 + length
    # Every decoder refuses pixels that are cut off.
    return kind != b"IDAT"
