"""Read complete, damaged and unusual videos, and write videos."""

import resource
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kseg.errors import DataError, UserError
from kseg.images import video_files, video_length
from tests.helpers.small_videos import FRAMES, KINDS, cut, draw, files, frame, read


@pytest.mark.parametrize("suffix", KINDS)
def test_frames_are_read_in_order_as_rgb(tmp_path, suffix):
    frames, error = read(draw(tmp_path / f"clip{suffix}"))
    assert error is None and len(frames) == FRAMES
    for number, image in enumerate(frames):
        assert image.dtype == np.uint8
        # A wrong channel order or frame would differ by far more than lossy compression.
        assert np.abs(image.astype(int) - frame(number)).mean() < 12
        assert image[2:6, 2:6, 0].mean() > 150 > image[2:6, 2:6, 2].mean()


def test_frame_count_and_rate(tmp_path):
    video = video_files.Video(draw(tmp_path / "clip.mp4", rate=12.5))
    assert (video.frame_count, video.rate, video.rate_known) == (FRAMES, 12.5, True)


@pytest.mark.parametrize("name", ["my clip.mp4", "12:30 clip.mp4", "%03d [1].mp4", "für.mp4"])
def test_unusual_file_names(tmp_path, monkeypatch, name):
    draw(tmp_path / "clip.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read(Path(name))[0]) == FRAMES


def test_path_that_is_not_utf8(tmp_path):
    path = tmp_path / "clip\udcff.mp4"
    draw(tmp_path / "clip.mp4").rename(path)
    with pytest.raises(DataError, match="UTF-8"):
        video_files.Video(path)
    with pytest.raises(UserError, match="UTF-8"), video_files.video_writer(path, (4, 4), 25):
        pass


def test_missing_bytes_are_counted(tmp_path):
    for suffix in KINDS:
        path = draw(tmp_path / f"clip{suffix}")
        size = path.stat().st_size
        assert video_length.container_length(path) == (0, suffix in (".mp4", ".mov", ".m4v", ".avi"))
        assert video_length.container_length(cut(path, size - 5)).missing_bytes == 5
    (tmp_path / "text.mp4").write_text("no video")
    assert video_length.container_length(tmp_path / "text.mp4") == (0, False)


def test_appended_bytes_are_not_part_of_the_video(tmp_path):
    for suffix in (".mp4", ".avi", ".mkv", ".mpg"):
        for more in (bytes(100), bytes(range(128, 255)), b"\0\0\0"):
            path = draw(tmp_path / f"clip{suffix}")
            path.write_bytes(path.read_bytes() + more)
            assert video_length.container_length(path).missing_bytes == 0, (suffix, more)


def test_boxes_with_64_bit_and_open_length(tmp_path):
    start = struct.pack(">I4s8s", 16, b"ftyp", b"isom0000")
    for box, missing in (
        (struct.pack(">I4sQ", 1, b"mdat", 1000), 984),
        (struct.pack(">I4s", 0, b"mdat"), 0),
        (struct.pack(">I4s", 1000, b"mdat"), 992),
    ):
        (tmp_path / "a.mp4").write_bytes(start + box)
        assert video_length.container_length(tmp_path / "a.mp4").missing_bytes == missing


def test_truncated_last_frame_is_detected(tmp_path):
    """OpenCV reads all declared frames here; only the container's length reveals the damaged last frame."""
    path = draw(tmp_path / "clip.avi", codec="mp4v")
    data = path.read_bytes()
    # The last "dc" chunk before the index is the last frame.
    index = data.index(b"idx1")
    cut(path, (data.rindex(b"00dc", 0, index) + index) // 2 + 4)
    frames, error = read(path)
    assert error and "cut off" in error and f"{len(frames)} of {FRAMES}" in error


def test_fewer_frames_than_declared(tmp_path):
    """An AVI stores the frame count in its header, which is raised here."""
    path = draw(tmp_path / "clip.avi")
    data = bytearray(path.read_bytes())
    header, stream = data.index(b"avih") + 8, data.index(b"strh") + 8
    for position in (header + 16, stream + 32):
        assert struct.unpack_from("<I", data, position) == (FRAMES,)
        struct.pack_into("<I", data, position, 20)
    path.write_bytes(data)
    frames, error = read(path)
    assert len(frames) == FRAMES
    assert error.startswith(f"{path}: {FRAMES} of 20 ")


def test_estimated_frame_count_may_exceed_frames_by_one_second(tmp_path):
    """OpenCV estimates a WebM's frame count from its duration, which a sound track may prolong."""
    path = draw(tmp_path / "clip.webm")
    for declared, is_error in ((FRAMES + 25, False), (FRAMES + 26, True)):
        video = video_files.Video(path)
        video.frame_count = declared
        frames = video.frames()
        for _ in range(FRAMES):
            next(frames)
        with pytest.raises(DataError if is_error else StopIteration):
            next(frames)


def test_missing_index_and_missing_file(tmp_path):
    """OpenCV writes an MP4's index at the end; without the index no frame can be read."""
    path = cut(draw(tmp_path / "clip.mp4"), 500)
    with pytest.raises(DataError, match=r"clip\.mp4: .*cut off \d+ bytes"):
        video_files.Video(path)
    with pytest.raises(DataError, match=r"gone\.mp4: No such file"):
        video_files.Video(tmp_path / "gone.mp4")


@pytest.mark.parametrize("size", [(31, 47), (1, 1), (2, 5), (33, 20)])
def test_odd_sizes_are_padded(tmp_path, size):
    images = [np.full((*size, 3), 90, np.uint8) for _ in range(3)]
    with video_files.video_writer(tmp_path / "clip.mp4", size, 10) as append:
        for image in images:
            append(image)
    frames, error = read(tmp_path / "clip.mp4")
    assert error is None and len(frames) == 3
    # The last row or column is repeated, not dropped.
    assert frames[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert np.abs(frames[0].astype(int) - 90).max() < 8


def test_failed_writer_leaves_no_file(tmp_path):
    draw(tmp_path / "clip.mp4", count=2)
    before = (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ZeroDivisionError), video_files.video_writer(tmp_path / "clip.mp4", (32, 48), 25) as append:
        append(frame(0))
        raise ZeroDivisionError
    assert (tmp_path / "clip.mp4").read_bytes() == before and files(tmp_path) == ["clip.mp4"]
    for size, rate in (((60, 9000), 25), ((60, 60), 1e6)):
        with pytest.raises(UserError, match=r"wide\.mp4: OpenCV cannot write"):
            with video_files.video_writer(tmp_path / "wide.mp4", size, rate):
                pass
    with video_files.video_writer(tmp_path / "clip.mp4", (32, 48), 25) as append:
        for image in (frame(0)[:-1], frame(0).astype(float)):
            with pytest.raises(ValueError, match="uint8"):
                append(image)
        append(frame(0))
    (tmp_path / "file").touch()
    below_file = tmp_path / "file/clip.mp4"
    with pytest.raises(UserError, match="file/clip.mp4"), video_files.video_writer(below_file, (4, 4), 25):
        pass


def test_full_disk_is_reported(tmp_path):
    """OpenCV itself does not report an incomplete write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"clip\.mp4: .*disk full"):
            with video_files.video_writer(tmp_path / "clip.mp4", (64, 96), 25) as append:
                for _ in range(100):
                    append(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == []


def test_changed_frame_size_is_an_error(tmp_path):
    video = video_files.Video(draw(tmp_path / "clip.mp4"))
    raw_frames = iter([frame(0), frame(1), frame(2, (16, 24)), frame(3)])
    video._capture = SimpleNamespace(read=lambda: (True, next(raw_frames)))
    frames = video.frames()
    assert [next(frames).shape for _ in range(2)] == [(32, 48, 3)] * 2
    with pytest.raises(DataError, match=f"frame 2 has 24 x 16 pixels, .* 48 x 32; 2 of {FRAMES} "):
        next(frames)
