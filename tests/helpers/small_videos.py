"""Draw, truncate and read small videos with OpenCV."""

import struct
from types import SimpleNamespace

import cv2
import numpy as np

from kseg.errors import DataError
from kseg.images import video_files

DATASET = SimpleNamespace(name="two", classes=("dark", "bright"), palette=((0, 0, 255), (255, 255, 0)))
FRAMES = 12
# The codec that OpenCV's FFmpeg can write for each suffix.
KINDS = {
    ".mp4": "mp4v",
    ".mov": "mp4v",
    ".m4v": "mp4v",
    ".avi": "MJPG",
    ".mkv": "mp4v",
    ".webm": "VP80",
    ".mpg": "MPG1",
    ".mpeg": "MPG1",
}


def threshold(image):
    assert image.dtype == np.uint8 and image.ndim == 3
    return (image.mean(axis=2) >= 128).astype(np.uint8)


def silent(text):
    pass


def frame(number, size=(32, 48)):
    """Return a dark frame, uint8 RGB, with a red upper left corner and bright columns that grow with its number."""
    image = np.full((*size, 3), 20, np.uint8)
    image[:, size[1] - 2 * number - 2 :] = 240
    image[:8, :8] = (230, 20, 20)
    return image


def draw(path, count=FRAMES, size=(32, 48), rate=25, codec=None, interface=cv2.CAP_FFMPEG):
    path.parent.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoWriter(
        str(path), interface, cv2.VideoWriter_fourcc(*(codec or KINDS[path.suffix])), rate, size[::-1]
    )
    assert video.isOpened()
    for number in range(count):
        video.write(np.ascontiguousarray(frame(number, size)[..., ::-1]))
    video.release()
    return path


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def read(path):
    """Return all readable frames, and the error message after them or None."""
    frames = []
    try:
        for image in video_files.Video(path).frames():
            frames.append(image)
    except DataError as error:
        return frames, str(error)
    return frames, None


def files(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def set_matrix(path, matrix):
    """Replace the display matrix in an MP4's track header (ISO/IEC 14496-12, 8.3.2), and return the path."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(
        ">9i", *(round(value * unit) for value, unit in zip(matrix, (1 << 16, 1 << 16, 1 << 30) * 3))
    )
    path.write_bytes(data)
    return path
