"""kseg.predict with a brightness threshold in the place of a model."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kseg import cli
from kseg.config import Config
from kseg.config.files import config_names
from kseg.errors import UserError
from kseg.images import image_files
from kseg.inference.file_prediction import predict_files
from kseg.inference.input_files import find_pictures
from kseg.predict import main

DATASET = SimpleNamespace(classes=("dark", "bright"), palette=((0, 0, 255), (255, 255, 0)))


def threshold(image):
    assert image.dtype == np.uint8 and image.ndim == 3
    return (image.mean(axis=2) >= 128).astype(np.uint8)


def draw(path, size=(4, 3), value=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)
    return path


def files(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def ids_of(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.array(image)


def silent(text):
    pass


def test_results_by_hand(tmp_path):
    array = np.array([[[200, 200, 200], [10, 20, 30], [255, 255, 255]]], np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert predict_files(threshold, [tmp_path / "a.png"], tmp_path / "out", DATASET, silent) == []
    assert files(tmp_path / "out") == ["ids/a.png", "legend.png", "overlay/a.png"]
    assert ids_of(tmp_path / "out/ids/a.png").tolist() == [[1, 0, 1]]
    # Halves of picture and colour: (200 + 255) / 2 = 227.5, rounded to even.
    mixed = image_files.read_image(tmp_path / "out/overlay/a.png").tolist()
    assert mixed == [[[228, 228, 100], [5, 10, 142], [255, 255, 128]]]
    legend = image_files.read_image(tmp_path / "out/legend.png")
    assert all((legend == colour).all(axis=2).any() for colour in DATASET.palette)


def test_results_have_the_inputs_sizes(tmp_path):
    sizes = {"wide.jpg": (97, 13), "tall.png": (5, 40), "dot.bmp": (1, 1), "scan.tif": (33, 65), "web.webp": (20, 30)}
    for name, size in sizes.items():
        draw(tmp_path / "in" / name, size)
    predict_files(threshold, [tmp_path / "in"], tmp_path / "out", DATASET, silent)
    for name, (width, height) in sizes.items():
        result = Path(name).with_suffix(".png")
        assert ids_of(tmp_path / "out/ids" / result).shape == (height, width)
        assert image_files.read_image(tmp_path / "out/overlay" / result).shape == (height, width, 3)


def test_directory_with_spaces_is_searched_recursively(tmp_path):
    source = tmp_path / "my pictures"
    for name in ("b.JPG", "a.png", "deep er/still/c.tiff", "deep er/d.gif", "._a.png", ".hidden/e.png"):
        draw(source / name)
    (source / "notes.txt").write_text("no picture")
    predict_files(threshold, [source], tmp_path / "out dir", DATASET, silent)
    assert files(tmp_path / "out dir/ids") == ["a.png", "b.png", "deep er/d.png", "deep er/still/c.png"]
    assert files(tmp_path / "out dir/overlay") == files(tmp_path / "out dir/ids")


def test_pictures_are_taken_in_sorted_order(tmp_path):
    for name in ("c.png", "a.png", "b/z.png"):
        draw(tmp_path / name)
    found = find_pictures([tmp_path], tmp_path / "out")
    assert [picture.path.relative_to(tmp_path).as_posix() for picture in found] == ["a.png", "b/z.png", "c.png"]


@pytest.mark.parametrize("pattern, names", [
    ("*.jpg", ["a.png"]), ("**/*.jpg", ["a.png", "one/b.png", "one/two/c.png"]), ("*/*", ["one/b.png", "one/d.png"]),
    ("one/**", ["b.png", "d.png", "two/c.png"]), ("one/[bd].*", ["b.png", "d.png"]), ("one/t?o/c.jpg", ["two/c.png"])])
def test_patterns(tmp_path, monkeypatch, pattern, names):
    for name in ("in/a.jpg", "in/one/b.jpg", "in/one/two/c.jpg", "in/one/d.png"):
        draw(tmp_path / name)
    (tmp_path / "in/one/notes.txt").touch()
    assert sorted(str(name) for _, name in find_pictures([f"{tmp_path}/in/{pattern}"], tmp_path / "out")) == names
    monkeypatch.chdir(tmp_path / "in")
    assert sorted(str(name) for _, name in find_pictures([pattern], Path("out"))) == names


def test_home_directory(tmp_path, monkeypatch):
    draw(tmp_path / "in/a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [str(path) for path, _ in find_pictures(["~/in/*.jpg"], tmp_path / "out")] == [str(tmp_path / "in/a.jpg")]


def test_brackets_in_a_files_own_name(tmp_path):
    path = draw(tmp_path / "a[1].jpg")
    assert find_pictures([str(path)], tmp_path / "out") == [(path, Path("a[1].png"))]


def test_named_file_is_taken_whatever_its_suffix(tmp_path):
    draw(tmp_path / "a.png").rename(tmp_path / "a.picture")
    assert predict_files(threshold, [tmp_path / "a.picture"], tmp_path / "out", DATASET, silent) == []
    assert files(tmp_path / "out/ids") == ["a.png"]


def names_of(inputs):
    return [name.as_posix() for _, name in find_pictures(inputs, Path("nowhere"))]


def test_equal_names_keep_their_suffix(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg", "c/a.jpg"):
        draw(tmp_path / name)
    assert names_of([tmp_path]) == ["a.jpg.png", "a.png.png", "b.png", "c/a.png"]
    # From two directories.
    assert names_of([tmp_path / "c/a.jpg", tmp_path / "a.png"]) == ["a.jpg.png", "a.png.png"]


def test_names_that_keep_their_suffix_may_meet_others(tmp_path):
    for name in ("a.jpg", "a.png", "a.jpg.bmp"):
        draw(tmp_path / name)
    assert sorted(names_of([tmp_path])) == ["a.jpg.bmp.png", "a.jpg.png", "a.png.png"]


def test_name_of_a_file_and_of_a_directory(tmp_path):
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "a.png/b.jpg")
    predict_files(threshold, [tmp_path], tmp_path / "out", DATASET, silent)
    assert files(tmp_path / "out/ids") == ["a.jpg.png", "a.png/b.png"]


def test_names_that_stay_equal_are_refused_before_anything_is_written(tmp_path):
    one, two = draw(tmp_path / "one/a.jpg"), draw(tmp_path / "two/a.jpg")
    for inputs in ([one, two], [one.parent, two.parent]):
        with pytest.raises(UserError, match=r"called a\.jpg\.png") as caught:
            predict_files(threshold, inputs, tmp_path / "out", DATASET, silent)
        assert str(one) in str(caught.value) and str(two) in str(caught.value)
    assert not (tmp_path / "out").exists()
    # The directory above keeps them apart.
    assert names_of([tmp_path]) == ["one/a.png", "two/a.png"]


def test_same_file_given_twice_is_one_picture(tmp_path):
    path = draw(tmp_path / "a.jpg")
    assert names_of([tmp_path, path, path, f"{tmp_path}/*.jpg"]) == ["a.png"]


def test_corrupt_files_are_named_and_skipped(tmp_path, capsys):
    for index in range(20):
        draw(tmp_path / f"in/{index:02d}.png")
    cut, text, empty = (tmp_path / f"in/{index:02d}.png" for index in (0, 7, 19))
    cut.write_bytes(cut.read_bytes()[:50])
    text.write_text("no picture")
    empty.write_bytes(b"")
    failures = predict_files(threshold, [tmp_path / "in"], tmp_path / "out", DATASET, silent)
    assert [failure.path for failure in failures] == [cut, text, empty]
    assert len(files(tmp_path / "out/ids")) == len(files(tmp_path / "out/overlay")) == 17
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"skipped: {path}: ") for line, path in zip(lines, (cut, text, empty))] == [True] * 3
    assert lines[3:] == [f"3 of 20 files failed: {cut}, {text}, {empty}"]


def test_broken_link_is_named_and_skipped(tmp_path):
    draw(tmp_path / "in/a.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "in/b.png")
    failures = predict_files(threshold, [tmp_path / "in"], tmp_path / "out", DATASET, silent)
    assert [failure.path.name for failure in failures] == ["b.png"]


def test_existing_results_are_overwritten_and_no_inputs_of_the_next_run(tmp_path):
    draw(tmp_path / "a.png", value=200)
    for value, expected in ((200, 1), (50, 0)):
        draw(tmp_path / "a.png", value=value)
        predict_files(threshold, [tmp_path], tmp_path / "out", DATASET, silent)
        assert (ids_of(tmp_path / "out/ids/a.png") == expected).all()
    assert files(tmp_path) == ["a.png", "out/ids/a.png", "out/legend.png", "out/overlay/a.png"]
    # Nor where results and inputs share a directory.
    predict_files(threshold, [tmp_path], tmp_path, DATASET, silent)
    predict_files(threshold, [tmp_path], tmp_path, DATASET, silent)
    assert files(tmp_path / "ids") == ["a.png", "out/ids/a.png", "out/legend.png", "out/overlay/a.png"]


def test_result_never_overwrites_an_input(tmp_path):
    for inputs in ([draw(tmp_path / "ids/a.png")], [tmp_path / "ids"]):
        with pytest.raises(UserError, match="overwrite an input"):
            predict_files(threshold, inputs, tmp_path, DATASET, silent)
    assert files(tmp_path) == ["ids/a.png"]


def test_nothing_found_is_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    for value, reason in ((tmp_path, "no pictures or videos in"), (f"{tmp_path}/*.jpg", "no pictures or videos in"),
                          (tmp_path / "gone.jpg", "no file or directory"), ("a*/../b*.jpg", r"'\.\.'")):
        with pytest.raises(UserError, match=reason) as caught:
            find_pictures([value], tmp_path / "out")
        assert str(value) in str(caught.value)
    with pytest.raises(UserError, match="no input"):
        find_pictures([], tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every directory")
def test_directory_that_may_not_be_listed(tmp_path):
    draw(tmp_path / "in/closed/a.png").parent.chmod(0)
    with pytest.raises(UserError, match="cannot list"):
        find_pictures([tmp_path / "in"], tmp_path / "out")


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_that_cannot_be_written(tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    path = draw(tmp_path / "a.png")

    def never(image):
        raise AssertionError("predicted before --out was tried")

    with pytest.raises(UserError, match="cannot write"):
        predict_files(never, [path], tmp_path / out, DATASET, silent)


def test_failing_predictor_names_the_picture(tmp_path):
    path = draw(tmp_path / "a.png", (6, 5))
    for broken in (lambda image: np.zeros((2, 2), np.uint8), lambda image: np.zeros((5, 6), np.int64)):
        with pytest.raises(ValueError) as caught:
            predict_files(broken, [path], tmp_path / "out", DATASET, silent)
        assert caught.value.__notes__ == [f"while predicting {path}, 6 x 5 pixels"]
    assert files(tmp_path / "out") == ["legend.png"]


def test_report_counts_all_files(tmp_path):
    for name in "abc":
        draw(tmp_path / f"in/{name}.png")
    lines = []
    predict_files(threshold, [tmp_path / "in"], tmp_path / "out", DATASET, lines.append)
    assert lines[-2].startswith("3/3 images") and "/s" in lines[-2] and "eta 0:00" in lines[-2]
    assert lines[-1] == f"wrote results of 3 images to {tmp_path / 'out'}"


@pytest.fixture
def trained(monkeypatch):
    """A threshold wherever a command would load a model."""
    from kseg.inference import prediction

    asked = []

    def load_model(arguments):
        asked.append(arguments)
        return "model", Config(), DATASET

    monkeypatch.setattr(cli, "load_model", load_model)
    monkeypatch.setattr(prediction, "predictor", lambda model, config: threshold)
    return asked


def test_main_gives_the_exit_status(tmp_path, trained, capsys):
    draw(tmp_path / "in/a.png")
    arguments = [str(tmp_path / "in"), "--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert trained[0].workdir == tmp_path / "run"
    (tmp_path / "in/b.jpg").write_bytes(b"")
    assert main(arguments) == 1
    assert f"1 of 2 files failed: {tmp_path / 'in/b.jpg'}" in capsys.readouterr().err
    assert ids_of(tmp_path / "out/ids/a.png").shape == (3, 4)


def test_main_looks_for_inputs_before_it_loads_a_model(tmp_path, trained):
    with pytest.raises(UserError, match="no file or directory"):
        main([str(tmp_path / "gone"), "--workdir", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not trained


def run_command(*arguments):
    return subprocess.run([sys.executable, "-m", "kseg.predict", *map(str, arguments)], capture_output=True, text=True)


def test_command_line_statuses(tmp_path):
    result = run_command("--help")
    assert result.returncode == 0 and config_names()
    described = "".join(result.stdout.split())
    assert all(name in described for name in (*config_names(), "--workdir", "--weights", "--set", "--out"))
    result = run_command(tmp_path, "--workdir", tmp_path, "--out", tmp_path / "out")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: no pictures or videos in {tmp_path}; ")
    assert not (tmp_path / "out").exists()


def test_help_needs_no_tensorflow():
    program = ("import sys, kseg.predict\ntry: kseg.predict.main(['--help'])\nexcept SystemExit: pass\n"
               "assert 'tensorflow' not in sys.modules")
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
