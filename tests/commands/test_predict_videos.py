"""kseg.predict on videos, with a brightness threshold instead of a model."""

import cv2
import numpy as np
import pytest
from PIL import Image

from kseg.errors import DataError, UserError
from kseg.images import drawing, image_files, video_files
from kseg.inference.file_prediction import predict_files
from kseg.inference.input_files import find_input_files
from tests.helpers.small_videos import DATASET, FRAMES, cut, draw, files, frame, read, set_matrix, silent, threshold


@pytest.mark.parametrize(
    "matrix, turns",
    [((0, 1, 0, -1, 0, 0, 32, 0, 1), -1), ((-1, 0, 0, 0, -1, 0, 48, 32, 1), 2), ((0, -1, 0, 1, 0, 0, 0, 48, 1), 1)],
)
def test_rotation_is_applied(tmp_path, matrix, turns):
    """The matrix maps x' = a x + c y + tx and y' = b x + d y + ty; the first one rotates clockwise."""
    path = set_matrix(draw(tmp_path / "clip.mp4"), matrix)
    frames, error = read(path)
    assert error is None
    expected = np.rot90(frame(3), turns)
    assert frames[3].shape == expected.shape
    assert np.abs(frames[3].astype(int) - expected).mean() < 12
    predict_files(threshold, [path], tmp_path / "out", DATASET, silent)
    assert read(tmp_path / "out/overlay/clip.mp4")[0][3].shape == expected.shape


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".webm", ".mpg"])
@pytest.mark.parametrize("fraction", [0.6, 0.85])
def test_truncated_video(tmp_path, suffix, fraction, capfd):
    path = draw(tmp_path / f"clip{suffix}", count=20)
    whole = read(path)[0]
    cut(path, int(path.stat().st_size * fraction))
    lines = []
    failures = predict_files(threshold, [path], tmp_path / "out", DATASET, lines.append, ("ids", "overlay"))
    assert [failure.path for failure in failures] == [path]
    assert failures[0].message.startswith(f"{path}: ") and "cut off" in failures[0].message
    kept = read(tmp_path / "out/overlay/clip.mp4")[0]
    # An MPEG stream truncated in its last packets may still contain all frames.
    assert 0 < len(kept) < 20 + (suffix == ".mpg")
    # The last frame may be damaged.
    for number in range(len(kept) - 1):
        with Image.open(tmp_path / f"out/ids/clip/{number:06d}.png") as image:
            np.testing.assert_array_equal(image, threshold(whole[number]))
    assert len(files(tmp_path / "out/ids")) == len(kept)
    if suffix != ".mpg":
        assert f"{len(kept)} of 20 " in failures[0].message
    assert f"incomplete: {path}: " in capfd.readouterr().err
    assert lines[-1] == f"wrote results of {len(kept)} frames of 1 video to {tmp_path / 'out'}"


@pytest.mark.parametrize("content", [b"", b"no video at all", bytes(3000)])
def test_files_that_are_no_videos(tmp_path, content, capfd):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    failures = predict_files(threshold, [path], tmp_path / "out", DATASET, silent)
    assert [failure.path for failure in failures] == [path]
    assert failures[0].message.startswith(f"{path}: not a video")
    assert f"skipped: {path}: not a video" in capfd.readouterr().err
    assert files(tmp_path / "out") == ["legend.png"]


def test_unknown_number_of_frames(tmp_path):
    """A bare stream of JPEGs declares neither a frame count nor a frame rate."""
    stream = b"".join(cv2.imencode(".jpg", frame(number))[1].tobytes() for number in range(5))
    (tmp_path / "clip.avi").write_bytes(stream)
    video = video_files.Video(tmp_path / "clip.avi")
    assert video.frame_count is None
    lines = []
    assert predict_files(threshold, [tmp_path / "clip.avi"], tmp_path / "out", DATASET, lines.append) == []
    assert lines[-2].startswith("5 frames of clip.avi  ") and "eta" not in lines[-2]
    assert len(read(tmp_path / "out/overlay/clip.mp4")[0]) == 5


def test_ids_of_a_video_of_odd_size_are_not_padded(tmp_path):
    path = draw(tmp_path / "clip.avi", size=(31, 47), interface=cv2.CAP_OPENCV_MJPEG)
    assert read(path)[0][0].shape == (31, 47, 3)
    predict_files(threshold, [path], tmp_path / "out", DATASET, silent, ("ids", "overlay"))
    assert image_files.read_image(tmp_path / "out/ids/clip/000011.png").shape == (31, 47, 3)
    assert read(tmp_path / "out/overlay/clip.mp4")[0][0].shape == (32, 48, 3)


def test_overlay_video_shows_each_frame_and_its_classes(tmp_path):
    path = draw(tmp_path / "my videos/clip one.mov", rate=12.5)
    assert predict_files(threshold, [path.parent], tmp_path / "out", DATASET, silent) == []
    # By default the ids of frames are not written.
    assert files(tmp_path / "out") == ["legend.png", "overlay/clip one.mp4"]
    result = video_files.Video(tmp_path / "out/overlay/clip one.mp4")
    assert (result.frame_count, result.rate) == (FRAMES, 12.5)
    for image, blended in zip(read(path)[0], result.frames(), strict=True):
        expected = drawing.overlay(image, threshold(image), DATASET.palette)
        assert np.abs(blended.astype(int) - expected).mean() < 12


def test_error_of_predictor_names_the_frame_and_leaves_no_video(tmp_path):
    path = draw(tmp_path / "clip.mp4")
    seen = []

    def broken(image):
        seen.append(image)
        return threshold(image) if len(seen) < 4 else seen[99]

    with pytest.raises(IndexError) as caught:
        predict_files(broken, [path], tmp_path / "out", DATASET, silent)
    assert caught.value.__notes__ == [f"while predicting frame 3 of {path}, 48 x 32 pixels"]
    assert files(tmp_path / "out") == ["legend.png"]


def test_images_and_videos_in_a_directory(tmp_path):
    draw(tmp_path / "in/b/clip.mp4").rename(tmp_path / "in/b/clip.MP4")
    Image.new("RGB", (4, 3)).save(tmp_path / "in/a.png")
    lines = []
    assert predict_files(threshold, [tmp_path / "in"], tmp_path / "in/out", DATASET, lines.append) == []
    expected = ["ids/a.png", "legend.png", "overlay/a.png", "overlay/b/clip.mp4"]
    assert files(tmp_path / "in/out") == expected
    assert lines[-1] == f"wrote results of 1 images and {FRAMES} frames of 1 video to {tmp_path / 'in/out'}"
    # The results of a run are not inputs of the next one.
    predict_files(threshold, [tmp_path / "in"], tmp_path / "in/out", DATASET, silent)
    assert files(tmp_path / "in/out") == expected


def test_named_file_may_have_any_suffix(tmp_path, capfd):
    draw(tmp_path / "clip.mp4").rename(tmp_path / "clip.video")
    assert predict_files(threshold, [tmp_path / "clip.video"], tmp_path / "out", DATASET, silent) == []
    assert files(tmp_path / "out") == ["legend.png", "overlay/clip.mp4"]
    (tmp_path / "notes.txt").write_text("neither")
    failures = predict_files(threshold, [tmp_path / "notes.txt"], tmp_path / "out", DATASET, silent)
    assert "not a video" in failures[0].message
    assert "not an image" in capfd.readouterr().err


def names_of(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return {
        file.path.relative_to(directory).as_posix(): file.name.as_posix()
        for file in find_input_files([directory], directory / "nowhere")
    }


@pytest.mark.parametrize(
    "names, expected",
    [
        (["a.mp4", "a.avi", "a.png"], {"a.avi": "a.avi.mp4", "a.mp4": "a.mp4.mp4", "a.png": "a.png"}),
        # The frames of a.mp4 would be in the directory a.
        (["a.mp4", "a/b.png"], {"a.mp4": "a.mp4.mp4", "a/b.png": "a/b.png"}),
        # The frames of a.png.mp4 would be in the directory a.png, but the result of a.jpg has that name.
        (["a.png.mp4", "a.jpg"], {"a.jpg": "a.jpg.png", "a.png.mp4": "a.png.mp4.mp4"}),
        (["a.mov", "a.mp4/b.png"], {"a.mov": "a.mov.mp4", "a.mp4/b.png": "a.mp4/b.png"}),
    ],
)
def test_names_of_videos_and_of_their_frames(tmp_path, names, expected):
    assert names_of(tmp_path, *names) == expected


def test_result_never_overwrites_an_input(tmp_path):
    path = draw(tmp_path / "overlay/clip.mp4")
    frames = tmp_path / "ids/clip/000000.png"
    frames.parent.mkdir(parents=True)
    Image.new("L", (4, 3)).save(frames)
    for inputs in ([path], [path.parent], [draw(tmp_path / "clip.mp4"), frames]):
        with pytest.raises(UserError, match="overwrite an input"):
            predict_files(threshold, inputs, tmp_path, DATASET, silent)


def test_files_that_the_model_rejects_are_reported(tmp_path, capfd):
    """A model rejects images that are too large, for example."""
    clip = draw(tmp_path / "in/clip.mp4")
    for name, width in (("a.png", 48), ("b.png", 4)):
        Image.new("RGB", (width, 3)).save(tmp_path / "in" / name)

    def narrow(image):
        if image.shape[1] > 40:
            raise DataError("too wide")
        return threshold(image)

    failures = predict_files(narrow, [tmp_path / "in"], tmp_path / "out", DATASET, silent)
    assert failures == [
        (tmp_path / "in/a.png", f"{tmp_path / 'in/a.png'}: too wide"),
        (clip, f"frame 0 of {clip}: too wide"),
    ]
    assert files(tmp_path / "out") == ["ids/b.png", "legend.png", "overlay/b.png"]
