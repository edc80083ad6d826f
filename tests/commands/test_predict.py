"""kseg.predict on images, with a brightness threshold instead of a model."""

import io
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
from kseg.inference.input_files import find_input_files, skipped_files_note
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
    # The mean of image and color is rounded to even: (200 + 255) / 2 = 227.5 gives 228.
    blended = image_files.read_image(tmp_path / "out/overlay/a.png").tolist()
    assert blended == [[[228, 228, 100], [5, 10, 142], [255, 255, 128]]]
    legend = image_files.read_image(tmp_path / "out/legend.png")
    assert all((legend == color).all(axis=2).any() for color in DATASET.palette)


def test_results_have_the_size_of_their_image(tmp_path):
    sizes = {"wide.jpg": (97, 13), "tall.png": (5, 40), "dot.bmp": (1, 1), "scan.tif": (33, 65), "web.webp": (20, 30)}
    for name, size in sizes.items():
        draw(tmp_path / "in" / name, size)
    predict_files(threshold, [tmp_path / "in"], tmp_path / "out", DATASET, silent)
    for name, (width, height) in sizes.items():
        result = Path(name).with_suffix(".png")
        assert ids_of(tmp_path / "out/ids" / result).shape == (height, width)
        assert image_files.read_image(tmp_path / "out/overlay" / result).shape == (height, width, 3)


def test_names_that_are_not_utf_8_are_predicted_and_printable(tmp_path, monkeypatch):
    source = tmp_path / os.fsdecode(b"in\xff")
    for name in (b"a\xff.png", b"b\xe9/c.jpg", b"d.png", b"e\xfe.png", b"f\xfe.avi", b"g.\xff"):
        draw(source / os.fsdecode(name).replace(".avi", ".png").replace(".\udcff", ".png")).rename(
            source / os.fsdecode(name)
        )
    (source / os.fsdecode(b"e\xfe.png")).write_bytes(b"no image")
    pages = [Image.new("L", (4, 3))] * 2
    pages[0].save(source / os.fsdecode(b"h\xff.tif"), save_all=True, append_images=pages[1:])
    lines, stderr = [], io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stderr", stderr)
    out = tmp_path / os.fsdecode(b"out\xff")
    failures = predict_files(threshold, [source], out, DATASET, lambda line: lines.append(line.encode()))
    results = ["a\udcff.png", "b\udce9/c.png", "d.png", "h\udcff.png"]
    assert files(out / "ids") == files(out / "overlay") == results
    assert [os.fsencode(failure.path.name) for failure in failures] == [b"e\xfe.png", b"f\xfe.avi"]
    assert all("\\xfe." in failure.message for failure in failures)
    stderr.flush()
    assert stderr.buffer.getvalue().count(rb"in\xff/e\xfe.png") == 2
    assert any(rb"h\xff.tif: only the first of 2 pages" in line for line in lines) and lines[-1].endswith(rb"out\xff")


def test_directory_with_spaces_is_searched_recursively(tmp_path):
    source = tmp_path / "my images"
    for name in ("b.JPG", "a.png", "deep er/still/c.tiff", "deep er/d.gif", "._a.png", ".hidden/e.png"):
        draw(source / name)
    (source / "notes.txt").write_text("no image")
    predict_files(threshold, [source], tmp_path / "out dir", DATASET, silent)
    assert files(tmp_path / "out dir/ids") == ["a.png", "b.png", "deep er/d.png", "deep er/still/c.png"]
    assert files(tmp_path / "out dir/overlay") == files(tmp_path / "out dir/ids")


def test_files_that_are_passed_over_are_told(tmp_path):
    for name in ("a.png", "b/c.heic", "b/d.HEIC", "notes", ".hidden.txt"):
        draw(tmp_path / "in/a.png")
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    note = skipped_files_note([tmp_path / "in", tmp_path / "in/notes"], tmp_path / "out")
    assert ": .HEIC (1), .heic (1), no suffix (1);" in note
    assert not skipped_files_note([tmp_path / "in/notes"], tmp_path / "out")


def test_images_are_found_in_sorted_order(tmp_path):
    for name in ("c.png", "a.png", "b/z.png"):
        draw(tmp_path / name)
    files_found = find_input_files([tmp_path], tmp_path / "out")
    assert [file.path.relative_to(tmp_path).as_posix() for file in files_found] == ["a.png", "b/z.png", "c.png"]


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("*.jpg", ["a.png"]),
        ("**/*.jpg", ["a.png", "one/b.png", "one/two/c.png"]),
        ("*/*", ["one/b.png", "one/d.png"]),
        ("one/**", ["b.png", "d.png", "two/c.png"]),
        ("one/[bd].*", ["b.png", "d.png"]),
        ("one/t?o/c.jpg", ["two/c.png"]),
    ],
)
def test_patterns(tmp_path, monkeypatch, pattern, names):
    for name in ("in/a.jpg", "in/one/b.jpg", "in/one/two/c.jpg", "in/one/d.png"):
        draw(tmp_path / name)
    (tmp_path / "in/one/notes.txt").touch()
    assert sorted(str(name) for _, name in find_input_files([f"{tmp_path}/in/{pattern}"], tmp_path / "out")) == names
    monkeypatch.chdir(tmp_path / "in")
    assert sorted(str(name) for _, name in find_input_files([pattern], Path("out"))) == names


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    draw(tmp_path / "in/a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    [(path, _)] = find_input_files(["~/in/*.jpg"], tmp_path / "out")
    assert path == tmp_path / "in/a.jpg"


def test_file_name_with_brackets_is_no_pattern(tmp_path):
    path = draw(tmp_path / "a[1].jpg")
    assert find_input_files([str(path)], tmp_path / "out") == [(path, Path("a[1].png"))]


def test_named_file_may_have_any_suffix(tmp_path):
    draw(tmp_path / "a.png").rename(tmp_path / "a.image")
    assert predict_files(threshold, [tmp_path / "a.image"], tmp_path / "out", DATASET, silent) == []
    assert files(tmp_path / "out/ids") == ["a.png"]


def names_of(inputs):
    return [name.as_posix() for _, name in find_input_files(inputs, Path("nowhere"))]


def test_equal_names_keep_their_suffix(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg", "c/a.jpg"):
        draw(tmp_path / name)
    assert names_of([tmp_path]) == ["a.jpg.png", "a.png.png", "b.png", "c/a.png"]
    # The two files are in different directories.
    assert names_of([tmp_path / "c/a.jpg", tmp_path / "a.png"]) == ["a.jpg.png", "a.png.png"]


def test_names_with_suffix_may_clash_with_other_names(tmp_path):
    for name in ("a.jpg", "a.png", "a.jpg.bmp"):
        draw(tmp_path / name)
    assert sorted(names_of([tmp_path])) == ["a.jpg.bmp.png", "a.jpg.png", "a.png.png"]


def test_name_shared_by_a_file_and_a_directory(tmp_path):
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "a.png/b.jpg")
    predict_files(threshold, [tmp_path], tmp_path / "out", DATASET, silent)
    assert files(tmp_path / "out/ids") == ["a.jpg.png", "a.png/b.png"]


def test_duplicate_names_are_rejected_before_anything_is_written(tmp_path):
    one, two = draw(tmp_path / "one/a.jpg"), draw(tmp_path / "two/a.jpg")
    for inputs in ([one, two], [one.parent, two.parent]):
        with pytest.raises(UserError, match=r"a\.jpg\.png") as caught:
            predict_files(threshold, inputs, tmp_path / "out", DATASET, silent)
        assert str(one) in str(caught.value) and str(two) in str(caught.value)
    assert not (tmp_path / "out").exists()
    # Names relative to the common parent directory are unique.
    assert names_of([tmp_path]) == ["one/a.png", "two/a.png"]


def test_same_file_given_twice_is_predicted_once(tmp_path):
    path = draw(tmp_path / "a.jpg")
    assert names_of([tmp_path, path, path, f"{tmp_path}/*.jpg"]) == ["a.png"]


def test_corrupt_files_are_reported_and_skipped(tmp_path, capsys):
    for index in range(20):
        draw(tmp_path / f"in/{index:02d}.png")
    truncated, text, empty = (tmp_path / f"in/{index:02d}.png" for index in (0, 7, 19))
    truncated.write_bytes(truncated.read_bytes()[:50])
    text.write_text("no image")
    empty.write_bytes(b"")
    failures = predict_files(threshold, [tmp_path / "in"], tmp_path / "out", DATASET, silent)
    assert [failure.path for failure in failures] == [truncated, text, empty]
    assert len(files(tmp_path / "out/ids")) == len(files(tmp_path / "out/overlay")) == 17
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"skipped: {path}: ") for line, path in zip(lines, (truncated, text, empty))] == [True] * 3
    assert lines[3:] == [f"3 of 20 files failed: {truncated}, {text}, {empty}"]


def test_broken_link_is_reported_and_skipped(tmp_path):
    draw(tmp_path / "in/a.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "in/b.png")
    failures = predict_files(threshold, [tmp_path / "in"], tmp_path / "out", DATASET, silent)
    assert [failure.path.name for failure in failures] == ["b.png"]


def test_existing_results_are_overwritten_and_not_predicted(tmp_path):
    draw(tmp_path / "a.png", value=200)
    for value, expected in ((200, 1), (50, 0)):
        draw(tmp_path / "a.png", value=value)
        predict_files(threshold, [tmp_path], tmp_path / "out", DATASET, silent)
        assert (ids_of(tmp_path / "out/ids/a.png") == expected).all()
    assert files(tmp_path) == ["a.png", "out/ids/a.png", "out/legend.png", "out/overlay/a.png"]
    # Results are also skipped if they are in the directory of the inputs.
    predict_files(threshold, [tmp_path], tmp_path, DATASET, silent)
    predict_files(threshold, [tmp_path], tmp_path, DATASET, silent)
    assert files(tmp_path / "ids") == ["a.png", "out/ids/a.png", "out/legend.png", "out/overlay/a.png"]


def test_result_never_overwrites_an_input(tmp_path):
    for inputs in ([draw(tmp_path / "ids/a.png")], [tmp_path / "ids"]):
        with pytest.raises(UserError, match="overwrite an input"):
            predict_files(threshold, inputs, tmp_path, DATASET, silent)
    assert files(tmp_path) == ["ids/a.png"]


def test_inputs_without_files_are_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    for value, reason in (
        (tmp_path, "no images or videos in"),
        (f"{tmp_path}/*.jpg", "no images or videos in"),
        (tmp_path / "gone.jpg", "no file or directory"),
        ("a*/../b*.jpg", r"'\.\.'"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            find_input_files([value], tmp_path / "out")
        assert str(value) in str(caught.value)
    with pytest.raises(UserError, match="no input"):
        find_input_files([], tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can list every directory")
def test_unreadable_directory_is_an_error(tmp_path):
    draw(tmp_path / "in/closed/a.png").parent.chmod(0)
    with pytest.raises(UserError, match="cannot list"):
        find_input_files([tmp_path / "in"], tmp_path / "out")


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_unwritable_out_is_an_error(tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    path = draw(tmp_path / "a.png")

    def must_not_run(image):
        raise AssertionError("predicted before --out was checked")

    with pytest.raises(UserError, match="cannot write"):
        predict_files(must_not_run, [path], tmp_path / out, DATASET, silent)


def test_error_of_predictor_names_the_image(tmp_path):
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
    """Replace the model with a threshold, and return the arguments of load_model."""
    from kseg.inference import prediction

    calls = []

    def load_model(arguments):
        calls.append(arguments)
        return "model", Config(), DATASET

    monkeypatch.setattr(cli, "load_model", load_model)
    monkeypatch.setattr(prediction, "predictor", lambda model, config: threshold)
    return calls


def test_exit_status_of_main(tmp_path, trained, capsys):
    draw(tmp_path / "in/a.png")
    arguments = [str(tmp_path / "in"), "--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert trained[0].workdir == tmp_path / "run"
    (tmp_path / "in/b.jpg").write_bytes(b"")
    assert main(arguments) == 1
    assert f"1 of 2 files failed: {tmp_path / 'in/b.jpg'}" in capsys.readouterr().err
    assert ids_of(tmp_path / "out/ids/a.png").shape == (3, 4)


def test_main_checks_inputs_before_loading_a_model(tmp_path, trained):
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
    assert result.stderr.startswith(f"error: no images or videos in {tmp_path}; ")
    assert not (tmp_path / "out").exists()


def test_help_needs_no_tensorflow():
    program = (
        "import sys, kseg.predict\ntry: kseg.predict.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
