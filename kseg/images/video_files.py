"""Videos in and out by OpenCV: frames as RGB, and new videos that appear when they are whole."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from kseg.errors import DataError, UserError
from kseg.images import image_files, video_length

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
# For videos that do not say how many frames a second they have.
USUAL_RATE = 25.0
# The most that MPEG-4 can say (its clock ticks at most 65535 times a second).
MAX_RATE = 65535.0


class Video:
    """An open video file: what it says of itself, and its frames.

    `announced` is the number of frames it says it has, None where it says none, and `rate` how many there are a second.
    """

    def __init__(self, path: Path | str):
        """Open the file; raises DataError naming it where it is missing or no video that OpenCV reads."""
        # Takes a while, and pictures need it not.
        import cv2

        self.path = Path(path)
        try:
            self._lengths = video_length.lengths(self.path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None
        if not _is_text(self.path):
            raise DataError(f"{str(path)!r}: OpenCV reads no file whose path is not UTF-8; rename it")
        # FFmpeg takes what stands before a colon for a protocol, unless the path begins with a slash.
        self._capture = cv2.VideoCapture(os.path.abspath(self.path))
        if not self._capture.isOpened():
            cut = f"; it is cut off {self._lengths.missing} bytes before its end" if self._lengths.missing else ""
            raise DataError(f"{path}: not a video of a kind that OpenCV reads, or damaged at its start{cut}")
        # Rows and columns change places as the file says, which is the default, but not of every build.
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        count, rate = self._capture.get(cv2.CAP_PROP_FRAME_COUNT), self._capture.get(cv2.CAP_PROP_FPS)
        self.announced = int(count) if 0 < count < 2 ** 53 else None
        self.rate_known = 0 < rate <= MAX_RATE
        self.rate = rate if self.rate_known else USUAL_RATE

    def frames(self) -> Iterator[np.ndarray]:
        """Give the frames as RGB, uint8 (H, W, 3), upright as the file says, once.

        Raises DataError after the last one that can be read where there should be more: where the file is cut off, has
        fewer frames than it announces, or changes their size. A number that is only estimated from the duration may be
        missed by a second, since a sound track may be longer. A cut through a bare stream, which says nothing of its
        length, is not noticed.
        """
        done, size = 0, None
        while True:
            grabbed, frame = self._capture.read()
            if not grabbed:
                break
            size = size or frame.shape
            if frame.shape != size:
                raise DataError(f"{self.path}: frame {done} has {frame.shape[1]} x {frame.shape[0]} pixels, those "
                                f"before it {size[1]} x {size[0]}; {self._counted(done)}")
            # OpenCV's own order is BGR.
            yield np.ascontiguousarray(frame[..., ::-1])
            done += 1
        self._capture.release()
        if self._lengths.missing:
            raise DataError(f"{self.path}: the file is cut off {self._lengths.missing} bytes before its end; "
                            + self._counted(done))
        doubt = 0 if self._lengths.counted else math.ceil(self.rate)
        if not done or self.announced is not None and done < self.announced - doubt:
            raise DataError(f"{self.path}: {self._counted(done)}; it is damaged, or hides frames (as a trimmed video "
                            "does), or its sound is longer")

    def _counted(self, done: int) -> str:
        if self.announced is not None and done <= self.announced:
            return f"{done} of {self.announced} announced frames were read"
        return f"{done} frames were read, and it does not say how many there are"


@contextlib.contextmanager
def writer(path: Path | str, size: tuple[int, int], rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that appends uint8 RGB frames (height, width, 3) of that size to a new MPEG-4 video, an .mp4.

    OpenCV writes even sizes only: the last row or column of an odd one is written twice. The file appears where the
    block ends without an error, whole. Raises UserError where it cannot be written.
    """
    import cv2

    if not _is_text(path):
        raise UserError(f"cannot write {str(path)!r}: OpenCV writes no file whose path is not UTF-8; take another one")
    height, width = size
    with image_files.replacing(path, suffix=".mp4") as temporary:
        # OpenCV itself would not say that there is no room, or no right to write.
        temporary.touch()
        video = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate,
                                (width + width % 2, height + height % 2))
        if not video.isOpened():
            raise UserError(f"cannot write {path}: OpenCV writes no MPEG-4 video of {width} x {height} pixels at "
                            f"{rate:g} frames a second")
        done = 0

        def write(frame: np.ndarray) -> None:
            nonlocal done
            if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
                raise ValueError(f"a frame must be uint8 {(height, width, 3)}, got {frame.dtype} {frame.shape}")
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            video.write(np.ascontiguousarray(even[..., ::-1]))
            done += 1

        try:
            yield write
        finally:
            video.release()
        # It says nothing of a full disk, either.
        written = cv2.VideoCapture(str(temporary))
        if int(written.get(cv2.CAP_PROP_FRAME_COUNT)) != done:
            raise UserError(f"cannot write {path}: OpenCV wrote only a part of it; is the disk full?")


def _is_text(path: Path | str) -> bool:
    """Return whether an absolute path is UTF-8, without which OpenCV's bindings end the process."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True
