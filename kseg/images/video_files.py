"""Read and write videos with OpenCV."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from kseg.errors import DataError, UserError
from kseg.images import image_files, video_length
from kseg.system.paths import is_utf8

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
# Frames per second of videos that do not declare a frame rate.
DEFAULT_RATE = 25.0
# MPEG-4's clock ticks at most 65535 times per second.
MAX_RATE = 65535.0


class Video:
    """An open video file.

    Attributes:
        path: The file.
        frame_count: Number of frames that the file declares; None if it declares none.
        rate: Frames per second.
        rate_known: Whether the file declares `rate`.
    """

    def __init__(self, path: Path | str):
        """Open a video; raises DataError if the file is missing or OpenCV cannot read it."""
        # Importing OpenCV takes a while, and images do not need it.
        import cv2

        self.path = Path(path)
        try:
            self._length = video_length.container_length(self.path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None
        # OpenCV's bindings crash the process on other paths.
        if not is_utf8(os.path.abspath(self.path)):
            raise DataError(f"{path}: OpenCV cannot read files whose path is not UTF-8; rename it")
        # FFmpeg takes text before a colon for a protocol, unless the path is absolute.
        self._capture = cv2.VideoCapture(os.path.abspath(self.path))
        if not self._capture.isOpened():
            missing = self._length.missing_bytes
            truncation = f"; it is cut off {missing} bytes before its end" if missing else ""
            raise DataError(f"{path}: not a video that OpenCV can read, or damaged at its start{truncation}")
        # Applying the file's rotation is OpenCV's documented default, but not the default of every build.
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        count, rate = self._capture.get(cv2.CAP_PROP_FRAME_COUNT), self._capture.get(cv2.CAP_PROP_FPS)
        self.frame_count = int(count) if 0 < count < 2**53 else None
        self.rate_known = 0 < rate <= MAX_RATE
        self.rate = rate if self.rate_known else DEFAULT_RATE

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames once.

        A frame count that OpenCV estimated from the duration may be too large by one second, because a sound track may
        be longer than the video. A truncated bare stream, which declares no length, goes unnoticed.

        Yields:
            RGB frames, uint8 of shape (H, W, 3), rotated as the file declares.

        Raises:
            DataError: after the last readable frame, if the file is truncated, has fewer frames than it declares, or
                changes the frame size.
        """
        count, size = 0, None
        while True:
            success, frame = self._capture.read()
            if not success:
                break
            size = size or frame.shape
            if frame.shape != size:
                raise DataError(
                    f"{self.path}: frame {count} has {frame.shape[1]} x {frame.shape[0]} pixels, the "
                    f"previous frames have {size[1]} x {size[0]}; {self._describe_count(count)}"
                )
            # OpenCV's channel order is BGR.
            yield np.ascontiguousarray(frame[..., ::-1])
            count += 1
        self._capture.release()
        if self._length.missing_bytes:
            raise DataError(
                f"{self.path}: the file is cut off {self._length.missing_bytes} bytes before its end; "
                + self._describe_count(count)
            )
        tolerance = 0 if self._length.has_frame_count else math.ceil(self.rate)
        if not count or self.frame_count is not None and count < self.frame_count - tolerance:
            raise DataError(
                f"{self.path}: {self._describe_count(count)}; it is damaged, hides frames as a trimmed "
                "video does, or has a longer sound track"
            )

    def _describe_count(self, count: int) -> str:
        if self.frame_count is not None and count <= self.frame_count:
            return f"{count} of {self.frame_count} declared frames were read"
        return f"{count} frames were read; the file does not declare their number"


@contextlib.contextmanager
def video_writer(path: Path | str, size: tuple[int, int], rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an MPEG-4 video (.mp4) frame by frame.

    The file appears, complete, when the block ends without an error. OpenCV writes only even sizes, so the last row or
    column of an odd size is written twice.

    Args:
        path: The file to write.
        size: (height, width) of the frames in pixels.
        rate: Frames per second.

    Yields:
        A function that appends a frame, uint8 RGB of shape (height, width, 3).

    Raises:
        UserError: the file cannot be written.
    """
    import cv2

    if not is_utf8(os.path.abspath(path)):
        raise UserError(f"cannot write {path}: OpenCV cannot write files whose path is not UTF-8; choose another path")
    height, width = size
    with image_files.replacing_file(path, suffix=".mp4") as temporary:
        # OpenCV does not report a missing permission or a full disk; creating the file does.
        temporary.touch()
        video = cv2.VideoWriter(
            str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width + width % 2, height + height % 2)
        )
        if not video.isOpened():
            raise UserError(
                f"cannot write {path}: OpenCV cannot write an MPEG-4 video of {width} x {height} pixels at "
                f"{rate:g} frames per second"
            )
        count = 0

        def append(frame: np.ndarray) -> None:
            nonlocal count
            if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
                raise ValueError(f"a frame must be uint8 {(height, width, 3)}, got {frame.dtype} {frame.shape}")
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            video.write(np.ascontiguousarray(even[..., ::-1]))
            count += 1

        try:
            yield append
        finally:
            video.release()
        # OpenCV does not report a disk that fills up while writing.
        written = cv2.VideoCapture(str(temporary))
        if int(written.get(cv2.CAP_PROP_FRAME_COUNT)) != count:
            raise UserError(f"cannot write {path}: OpenCV wrote only a part of it; is the disk full?")
