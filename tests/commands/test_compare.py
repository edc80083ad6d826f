"""The command kseg.compare: its table, JSON, exit statuses and start-up."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from kseg import compare
from kseg.errors import ConfigError, DataError, UserError, WorkdirError
from kseg.evaluation import metrics, paired_bootstrap, results
from tests.helpers.running import run
from tests.helpers.small_evaluations import CLASSES, predicted_matrices, random_matrices, write


@pytest.fixture
def pair(tmp_path):
    """Two evaluations of 40 images; the second has a lower accuracy for poles."""
    generator = np.random.default_rng(3)
    labels = generator.integers(50, 400, (40, 4))
    accuracy = np.full((40, 4), 0.8)
    a = predicted_matrices(generator, labels, accuracy)
    accuracy[:, 2] = 0.7
    return write(tmp_path / "a", a), write(tmp_path / "b", predicted_matrices(generator, labels, accuracy))


def test_a_planted_regression_is_significant(pair, capsys):
    assert compare.main([*map(str, pair)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(r"\s{2,}", line) for line in lines if re.match(r"(sky|road|pole|car|mIoU|aAcc|mAcc) ", line)]
    assert rows[0][0] == "pole" and rows[0][-1] == "worse"
    assert [row[0] for row in rows[-3:]] == ["mIoU", "aAcc", "mAcc"] and all(row[-1] == "worse" for row in rows[-3:])
    differences = [float(row[3]) for row in rows[:4]]
    assert differences == sorted(differences)
    assert all(float(row[3]) == pytest.approx(float(row[2]) - float(row[1]), abs=0.011) for row in rows)
    a, b = (json.loads(path.read_text()) for path in pair)
    assert rows[0][1:3] == [f"{100 * side['classes']['pole']['iou']:.2f}" for side in (a, b)]
    low, high = map(float, rows[4][4].split(" to "))
    assert low < 100 * (b["mIoU"] - a["mIoU"]) < high < 0
    assert lines[:3] == [f"A: {pair[0]}", f"B: {pair[1]}", "camvid val, 40 images"]
    assert lines[-2] == (
        f"B is worse than A by {100 * (a['mIoU'] - b['mIoU']):.2f} points of mIoU (95% interval "
        f"{low:+.2f} to {high:+.2f}; 2000 resamples of 40 images): significant"
    )
    verdicts = sum(row[-1] in ("better", "worse") for row in rows[:4])
    assert lines[-1].startswith(f"{verdicts} of 4 classes ") and "about 0.2" in lines[-1]


def test_fail_on_regression(pair, capsys):
    a, b = (str(path.parent) for path in pair)
    assert compare.main([a, b, "--fail-on-regression"]) == 1
    assert compare.main([b, a, "--fail-on-regression"]) == 0
    output = capsys.readouterr().out
    assert "B is worse than A" in output and "B is better than A" in output and "pole" in output
    assert compare.main([a, a, "--fail-on-regression"]) == 0


def test_a_loss_by_chance_is_no_regression(tmp_path, capsys):
    generator = np.random.default_rng(4)
    labels = generator.integers(50, 400, (40, 4))
    worse, better = sorted(
        (predicted_matrices(generator, labels, np.full((40, 4), 0.8)) for _ in range(2)),
        key=lambda matrices: metrics.summarize(matrices.sum(0), CLASSES)["mIoU"],
    )
    files = [str(write(tmp_path / "a", better)), str(write(tmp_path / "b", worse))]
    assert compare.main([*files, "--fail-on-regression"]) == 0
    assert re.search(r"B is worse than A .* of 40 images\): not significant", capsys.readouterr().out)


def test_an_evaluation_equals_itself(pair, capsys):
    path = str(pair[0])
    assert compare.main([path, path]) == 0
    output = capsys.readouterr().out
    assert output.count("+0.00 to +0.00") == 8 and "worse" not in output and "better" not in output
    assert "the same mIoU (95% interval +0.00 to +0.00; 2000 resamples of 40 images): not significant" in output


def test_json(pair, tmp_path, capsys):
    arguments = [*map(str, pair), "--samples", "200", "--seed", "5", "--confidence", "0.9"]
    for name in ("one.json", "two.json"):
        assert compare.main([*arguments, "--json", str(tmp_path / name)]) == 0
    text = (tmp_path / "one.json").read_text()
    assert text == (tmp_path / "two.json").read_text()
    stored = json.loads(text)
    assert (stored["a"], stored["b"], stored["dataset"], stored["split"], stored["images"]) == (
        str(pair[0]),
        str(pair[1]),
        "camvid",
        "val",
        40,
    )
    assert (stored["samples"], stored["seed"], stored["confidence"]) == (200, 5, 0.9)
    assert stored["verdict"] in capsys.readouterr().out
    comparison = paired_bootstrap.compare_evaluations(
        *map(results.read_evaluation, pair), samples=200, seed=5, confidence=0.9
    )
    for row in (*comparison.classes, *comparison.means):
        values = stored["classes"].get(row.name) or stored[row.name]
        assert values == {key: value for key, value in row._asdict().items() if key != "name"}
    assert set(stored["mIoU"]) == {"a", "b", "difference", "low", "high", "images", "verdict"}
    b = json.loads(pair[1].read_text())
    assert stored["mIoU"]["b"] == pytest.approx(b["mIoU"], abs=1e-12)
    assert stored["classes"]["pole"]["b"] == b["classes"]["pole"]["iou"]
    compare.main([*arguments, "--seed", "6", "--json", str(tmp_path / "two.json")])
    assert (tmp_path / "two.json").read_text() != text
    with pytest.raises(WorkdirError, match="cannot write .*missing.*No such file"):
        compare.main([*arguments, "--json", str(tmp_path / "missing" / "file.json")])


def test_undefined_scores_are_dashes_and_nulls(tmp_path, capsys):
    a = random_matrices(np.random.default_rng(8), 12)
    a[:, 3], a[:, :, 3] = 0, 0
    b = a.copy()
    # No image has cars, and B alone predicts them.
    b[:, 0, 3], b[:, 0, 0] = a[:, 0, 0], 0
    files = [str(write(tmp_path / "a", a)), str(write(tmp_path / "b", b))]
    compare.main([*files, "--json", str(tmp_path / "both.json")])
    output = capsys.readouterr().out
    assert re.search(r"^car +- +0.00 +- +- +\d+$", output, re.MULTILINE) and "nan" not in output
    stored = json.loads((tmp_path / "both.json").read_text())["classes"]["car"]
    assert (stored["a"], stored["b"], stored["difference"], stored["low"], stored["high"]) == (None, 0, *[None] * 3)


def test_no_labeled_pixel(tmp_path, capsys):
    path = str(write(tmp_path, np.zeros((9, 4, 4), np.int64)))
    compare.main([path, path])
    assert "mIoU cannot be compared" in capsys.readouterr().out
    with pytest.raises(UserError, match="--fail-on-regression .*mIoU cannot be compared"):
        compare.main([path, path, "--fail-on-regression"])


@pytest.mark.parametrize(
    "images, verdict",
    [(1, "on a single image; "), (5, "5 images): too few images .* 6 are needed"), (6, "6 images): significant")],
)
def test_few_images(tmp_path, capsys, images, verdict):
    a = np.tile(np.diag([100, 200, 300, 400]), (images, 1, 1))
    a[:, 0, 1] = np.arange(images)
    b = a.copy()
    b[:, 0, 0], b[:, 0, 1] = 90, a[:, 0, 1] + 10
    files = [str(write(tmp_path / "a", a)), str(write(tmp_path / "b", b))]
    assert compare.main(files) == 0
    output = capsys.readouterr().out
    assert re.search(verdict.replace(")", r"\)"), output) and ("worse\n" in output) == (images == 6)
    assert bool(re.search(r"-\d\.\d\d to -\d", output)) == (images > 1)
    if images == 6:
        assert compare.main([*files, "--fail-on-regression"]) == 1
    else:
        with pytest.raises(UserError, match="--fail-on-regression .*B is worse"):
            compare.main([*files, "--fail-on-regression"])


def test_errors_reach_the_user(pair):
    with pytest.raises(ConfigError, match="--confidence"):
        compare.main([*map(str, pair), "--confidence", "1"])
    (pair[1].with_name("per_image.npz")).unlink()
    with pytest.raises(DataError, match="per_image.npz"):
        compare.main([*map(str, pair)])


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        compare.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert exit_.value.code == 0
    for part in (
        "A B",
        "--samples N",
        "(default: 2000)",
        "--seed N",
        "(default: 0)",
        "--confidence FRACTION",
        "(default: 0.95)",
        "--json FILE",
        "--fail-on-regression",
        "per_image.npz",
    ):
        assert part in text


def test_command(pair):
    output = run("kseg.compare", *pair, "--fail-on-regression", status=1)
    assert output.splitlines()[4].split() == [
        "class",
        "IoU",
        "A",
        "IoU",
        "B",
        "B",
        "-",
        "A",
        "95%",
        "interval",
        "images",
    ]
    assert max(map(len, output.split("\n\n")[1].splitlines())) < 80
    assert run("kseg.compare", pair[0], pair[1].parent / "none", status=2).startswith("error: ")


def test_neither_tensorflow_nor_keras_is_imported():
    """The comparison takes less time than an import of TensorFlow."""
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, kseg.compare; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "kseg.evaluation.results" in imported and not {"tensorflow", "keras"} & set(imported)
