"""Draw image and label files of every kind at random, from a seed."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, ImageOps

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGBA: (8, 16)}
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
# First column and row, and steps, of Adam7's passes (PNG specification, section 8.2).
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def smooth(random, height, width, channels=3):
    """Return a smooth random image, uint8 (height, width, channels)."""
    small = random.integers(0, 256, (-(-height // 8) + 1, -(-width // 8) + 1, channels)).astype(np.uint8)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)
    return np.clip(large + random.integers(-9, 10, large.shape), 0, 255).astype(np.uint8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def exif(random, orientation):
    """Return TIFF-formatted EXIF data with an orientation, in a random byte order and with other entries around it."""
    order = random.choice(["<", ">"])
    entries = [
        (0x010F, 2, 4, b"abc\0"),
        (0x0112, 3, 1, struct.pack(order + "HH", orientation, 0)),
        (0x0128, 3, 1, struct.pack(order + "HH", 2, 0)),
    ]
    if random.random() < 0.3:
        entries = entries[1:2]
    start = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    return start + struct.pack(order + "IH", 8, len(entries)) + body + bytes(4)


def xmp(orientation):
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    ).encode()


def filtered_rows(random, values, depth):
    """Return rows of sample values (h, w, channels), packed and filtered as in a PNG."""
    height, width, channels = values.shape
    if depth < 8:
        bits = (values[..., 0, None] >> np.arange(depth)[::-1]) & 1
        packed = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        packed = values.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1).view(np.uint8)
    bytes_per_pixel = max(channels * depth // 8, 1)
    rows, above = [], np.zeros(packed.shape[1], int)
    for row in packed.astype(int):
        left = np.concatenate([np.zeros(bytes_per_pixel, int), row])[: len(row)]
        corner = np.concatenate([np.zeros(bytes_per_pixel, int), above])[: len(row)]
        estimate = left + above - corner
        distances = [np.abs(estimate - other) for other in (left, above, corner)]
        paeth = np.where(
            (distances[0] <= distances[1]) & (distances[0] <= distances[2]),
            left,
            np.where(distances[1] <= distances[2], above, corner),
        )
        kind = random.integers(5)
        predicted = (0, left, above, (left + above) // 2, paeth)[kind]
        rows.append(bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(rows)


def png(random, kind=None, depth=None, orientation=1, label=False, headers=1):
    """Return a PNG with random filters, interlace, transparency, chunks, and the orientation in a random place."""
    kind = random.choice(list(DEPTHS)) if kind is None else kind
    depth = random.choice(DEPTHS[kind]) if depth is None else depth
    height, width = random.integers(1, 70, 2)
    if depth == 16:
        largest = random.choice([4080, 65535])
        values = random.integers(0, largest + 1, (height, width, CHANNELS[kind]))
    elif depth == 8 and not label:
        values = smooth(random, height, width, CHANNELS[kind])
    else:
        values = random.integers(0, 2**depth, (height, width, CHANNELS[kind]))
    interlaced = bool(random.random() < 0.3)
    parts = [values[row::down, column::across] for column, row, across, down in PASSES] if interlaced else [values]
    data = zlib.compress(b"".join(filtered_rows(random, part, depth) for part in parts if part.size))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
    before, after = [], []
    other = [
        chunk(b"tEXt", b"Comment\0IHDR and eXIf"),
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"pHYs", struct.pack(">IIB", 1000, 1000, 1)),
        chunk(b"zTXt", b"Title\0\0" + zlib.compress(b"x" * 99)),
        chunk(b"tIME", bytes(7)),
    ]
    for extra in other:
        if random.random() < 0.2:
            (before if random.random() < 0.6 or extra[4:8] in (b"gAMA", b"pHYs") else after).append(extra)
    if kind == PALETTE:
        size = 2**depth if random.random() < 0.7 else random.integers(1, 2**depth + 1)
        before.append(chunk(b"PLTE", random.integers(0, 256, 3 * size).astype(np.uint8).tobytes()))
        if random.random() < 0.3:
            before.append(
                chunk(b"tRNS", random.integers(0, 256, random.integers(1, size + 1)).astype(np.uint8).tobytes())
            )
    elif kind in (GRAY, RGB) and random.random() < 0.3:
        before.append(chunk(b"tRNS", struct.pack(f">{CHANNELS[kind]}H", *values[0, 0])))
    if orientation != 1:
        form = random.integers(4)
        content = [
            chunk(b"eXIf", exif(random, orientation)),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation)),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(orientation))),
            chunk(
                b"zTXt",
                b"Raw profile type exif\0\0"
                + zlib.compress(b"\nexif\n      99\n" + (b"Exif\0\0" + exif(random, orientation)).hex().encode()),
            ),
        ][form]
        (before if random.random() < 0.5 else after).append(content)
    before += [header] * (headers - 1)
    # A palette precedes its transparency.
    palette = [part for part in before if part[4:8] in (b"PLTE", b"tRNS")]
    rest = [part for part in before if part[4:8] not in (b"PLTE", b"tRNS")]
    random.shuffle(rest)
    cut = random.integers(len(rest) + 1) if not any(part[4:8] in (b"gAMA",) for part in rest) else len(rest)
    step = random.choice([7, 100, 8192, 1 << 20])
    pixels = [chunk(b"IDAT", data[start : start + step]) for start in range(0, len(data), step)]
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", header, *rest[:cut], *palette, *rest[cut:], *pixels, *after, chunk(b"IEND", b"")]
    )


def saved(image, form, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def jpeg(random, orientation=1, cmyk=False):
    """Return a JPEG with random subsampling, progression, application segments and position of the orientation."""
    height, width = random.integers(1, 90, 2)
    image = Image.fromarray(smooth(random, height, width))
    image = image.convert("CMYK" if cmyk else random.choice(["RGB", "RGB", "RGB", "L"]))
    options = {"quality": int(random.integers(20, 98)), "progressive": bool(random.random() < 0.3)}
    if image.mode == "RGB":
        options |= {"keep_rgb": True} if random.random() < 0.1 else {"subsampling": int(random.integers(3))}
    if random.random() < 0.2:
        options |= {"restart_marker_blocks": int(random.integers(1, 5))}
    data = saved(image, "JPEG", **options)
    if cmyk and (position := data.find(b"Adobe")) > 0:
        form = random.integers(3)
        if form == 0:
            # Remove the segment, or make the file claim to be YCCK.
            data = data[: position - 4] + data[position + 12 :]
        elif form == 1:
            data = data[: position + 11] + b"\2" + data[position + 12 :]
    segments = []
    if random.random() < 0.2:
        segments.append(b"\xff\xfe" + struct.pack(">H", 8) + b"Exif\0\0")
    if random.random() < 0.2:
        length = int(random.choice([100, 3000, 60000]))
        segments.append(b"\xff\xe2" + struct.pack(">H", length + 2) + bytes(length))
    if orientation != 1 or random.random() < 0.2:
        content = random.choice(
            [b"Exif\0\0" + exif(random, orientation), b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation)]
        )
        segments.append(b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content)
    random.shuffle(segments)
    # Segments may lie before or after any other one in front of the scan.
    positions = [2]
    while data[positions[-1] + 1] != 0xDA:
        positions.append(positions[-1] + 2 + int.from_bytes(data[positions[-1] + 2 : positions[-1] + 4], "big"))
    position = int(random.choice(positions[:2] if random.random() < 0.7 else positions))
    return data[:position] + b"".join(segments) + data[position:]


def bmp(random):
    """Return a BMP of 1, 4, 8, 16, 24 or 32 bits, some with their rows from the top."""
    height, width = (int(side) for side in random.integers(1, 50, 2))
    bits = int(random.choice([1, 4, 8, 16, 24, 24, 32]))
    colors = 2**bits if bits <= 8 else 0
    row_bytes = -(-width * bits // 32) * 4
    rows = random.integers(0, 256, (height, row_bytes)).astype(np.uint8)
    offset = 54 + 4 * colors
    down = -height if random.random() < 0.3 else height
    header = struct.pack("<2sIHHI", b"BM", offset + rows.size, 0, 0, offset) + struct.pack(
        "<IiiHHIIiiII", 40, width, down, 1, bits, 0, rows.size, 2835, 2835, colors, 0
    )
    return header + random.integers(0, 256, 4 * colors).astype(np.uint8).tobytes() + rows.tobytes()


def tiff(random, orientation):
    height, width = random.integers(1, 60, 2)
    image = Image.fromarray(smooth(random, height, width))
    form = random.integers(4)
    if form == 0:
        values = random.integers(0, 4096, (height, width, 3)).astype(np.uint16)
        _, data = cv2.imencode(
            ".tif",
            values if random.random() < 0.5 else values[..., 0],
            [cv2.IMWRITE_TIFF_COMPRESSION, int(random.choice([1, 5, 8]))],
        )
        return data.tobytes()
    if form == 1:
        deep = Image.fromarray(random.integers(0, 65536, (height, width)).astype(np.uint16))
        return saved(deep, "TIFF", compression=str(random.choice(["raw", "tiff_lzw"])))
    image = image.convert(random.choice(["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"]))
    options = {"compression": str(random.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]))}
    if orientation != 1:
        options["exif"] = pillow_exif(orientation)
    if random.random() < 0.2:
        options |= {"save_all": True, "append_images": [image.copy()]}
    return saved(image, "TIFF", **options)


def pillow_exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def other(random, orientation):
    """Return a WebP, GIF, AVIF or JPEG 2000, some of them animated, or an animated PNG."""
    height, width = random.integers(16, 60, 2)
    image = Image.fromarray(
        smooth(random, height, width, 4) if random.random() < 0.3 else smooth(random, height, width)
    )
    form = random.choice(["WEBP", "GIF", "AVIF", "JPEG2000", "PNG"])
    options = {}
    if form == "WEBP":
        options["lossless"] = bool(random.random() < 0.5)
    if form in ("WEBP", "AVIF") and orientation != 1:
        options["exif"] = pillow_exif(orientation)
    if form == "PNG" or form in ("WEBP", "GIF") and random.random() < 0.4:
        options |= {"save_all": True, "append_images": [ImageOps.mirror(image)]}
    return saved(image, form, **options)


def damaged(random, data):
    """Return a file that is cut off or has a few other bytes."""
    if random.random() < 0.4:
        return data[: random.integers(len(data))]
    changed = bytearray(data)
    for position in random.integers(
        0, len(data) if random.random() < 0.5 else min(len(data), 120), random.integers(1, 4)
    ):
        changed[position] = random.integers(256)
    return bytes(changed)


def image_file(random):
    """Return (description, encoded bytes) of a random image."""
    orientation = int(random.integers(1, 9)) if random.random() < 0.4 else 1
    kind = random.choice(
        ["png", "jpeg", "cmyk jpeg", "bmp", "tiff", "other", "two headers"], p=[0.34, 0.25, 0.06, 0.1, 0.11, 0.1, 0.04]
    )
    data = {
        "png": lambda: png(random, orientation=orientation),
        "jpeg": lambda: jpeg(random, orientation),
        "cmyk jpeg": lambda: jpeg(random, orientation, cmyk=True),
        "bmp": lambda: bmp(random),
        "tiff": lambda: tiff(random, orientation),
        "other": lambda: other(random, orientation),
        "two headers": lambda: png(random, headers=2),
    }[kind]()
    return f"{kind}, orientation {orientation}", data


def label_file(random):
    """Return (description, encoded bytes) of a random label, some of them of a kind that is refused."""
    orientation = int(random.integers(1, 9)) if random.random() < 0.3 else 1
    kind = int(random.choice([GRAY, PALETTE, PALETTE, random.choice(list(DEPTHS))]))
    depth = 8 if kind == GRAY and random.random() < 0.8 else None
    headers = 2 if random.random() < 0.1 else 1
    return (
        f"label of kind {kind}, orientation {orientation}, headers {headers}",
        png(random, kind, depth, orientation, label=True, headers=headers),
    )
