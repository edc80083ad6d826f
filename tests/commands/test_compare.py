"""kseg.compare: its bootstrap against a plain loop, its intervals against what they promise, its words and statuses."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from kseg import compare
from kseg.errors import ConfigError, UserError, WorkdirError
from kseg.evaluation import metrics, paired_bootstrap, result_reading
from tests.helpers.running import run
from tests.helpers.small_evaluations import CLASSES, evaluation, matrices, predicted, slow_scores, write


@pytest.fixture
def two(tmp_path):
    """Two evaluations of 40 images, the second with poles that are found less often."""
    generator = np.random.default_rng(3)
    truth = generator.integers(50, 400, (40, 4))
    shares = np.full((40, 4), 0.8)
    a = predicted(generator, truth, shares)
    shares[:, 2] = 0.7
    return write(tmp_path / "a", a), write(tmp_path / "b", predicted(generator, truth, shares))


def test_bootstrap_against_a_loop():
    generator = np.random.default_rng(0)
    truth = generator.integers(20, 400, (7, 4)) * [1, 1, 0, 0]
    a, b = (predicted(generator, truth, np.full((7, 4), share)) for share in (0.8, 0.7))
    for each in (a, b):
        each[:, :, 1] += each[:, :, 2:].sum(2)
        each[:, :, 2:] = 0
    # Of so few images some miss in many resamples: the one with cars, and the one where A alone guesses poles.
    a[2, 3, 3], b[2, 3, 0] = 12, 12
    a[4, 0] += [-5, 0, 5, 0]
    samples, seed = 60, 4
    found = paired_bootstrap.resample(evaluation(a), evaluation(b), samples, seed)
    weights = paired_bootstrap.draw(7, samples, np.random.default_rng(seed))
    assert weights.shape == (60, 7) and (weights.sum(1) == 7).all() and len(np.unique(weights, axis=0)) > 50
    for row, times in zip(found, weights.astype(int)):
        sums = [np.zeros((4, 4), np.int64), np.zeros((4, 4), np.int64)]
        for image, count in enumerate(times):
            for _ in range(count):
                sums[0] += a[image]
                sums[1] += b[image]
        expected = np.array(slow_scores(sums[1])) - slow_scores(sums[0])
        assert row.tolist() == pytest.approx(expected.tolist(), abs=1e-15, nan_ok=True)
    assert 5 < np.isnan(found[:, 3]).sum() < 55 and np.nanmax(found[:, 3]) == -1
    assert np.isnan(found[:, 2]).all() and np.isfinite(found[:, 4:]).all()


def test_draws_are_uniform():
    weights = paired_bootstrap.draw(5, 20_000, np.random.default_rng(0))
    # Multinomial counts of 5 in 5: mean 1, variance 0.8, covariance -0.2.
    assert weights.mean(0) == pytest.approx(np.ones(5), abs=0.03)
    assert np.cov(weights.T) == pytest.approx(np.eye(5) - 0.2, abs=0.05)


@pytest.mark.parametrize("block", [1, 500, 1 << 23])
def test_blocks_change_nothing(block):
    generator = np.random.default_rng(1)
    a, b = evaluation(matrices(generator, 9)), evaluation(matrices(generator, 9))
    np.testing.assert_array_equal(paired_bootstrap.resample(a, b, 101, 7, block), paired_bootstrap.resample(a, b, 101, 7))


def test_counts_of_huge_pictures_are_exact():
    """Sums of thousands of pictures of 12000x8000 have no rounding: one pixel more is one pixel more."""
    images = np.zeros((2000, 2, 2), np.int64)
    images[:, 0, 0] = 12_000 * 8_000 - 1
    images[:, 0, 1] = 1
    better = images.copy()
    better[:, 0] = [12_000 * 8_000, 0]
    differences = paired_bootstrap.resample(evaluation(images, CLASSES[:2]), evaluation(better, CLASSES[:2]), 50, 0)
    # Each resample has 2000 pictures, so all of them have the same sums.
    assert (differences[:, 0] == 1 - (12_000 * 8_000 - 1) / (12_000 * 8_000)).all()


def test_interval_is_the_percentiles_of_the_resamples():
    generator = np.random.default_rng(2)
    truth = generator.integers(0, 400, (30, 4))
    a, b = (evaluation(predicted(generator, truth, np.full((30, 4), 0.8))) for _ in range(2))
    comparison = paired_bootstrap.compare(a, b, samples=400, seed=9, confidence=0.9)
    differences = np.sort(paired_bootstrap.resample(a, b, 400, 9), axis=0)
    for row, column in zip(sorted(comparison.classes, key=lambda row: CLASSES.index(row.name)), differences.T):
        # 5 % of 400 lie below, 5 % above.
        assert column[19] <= row.low <= column[20] and column[379] <= row.high <= column[380]


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Two models alike, whose images are easy and hard for both: 95 % of the intervals contain 0, neither fewer, as
    those of a mean over few images would, nor all, as those of images drawn for each alone would."""
    generator = np.random.default_rng(11)
    held = np.zeros(2)
    trials = 300
    for trial in range(trials):
        truth = generator.integers(20, 200, (50, 2))
        shares = np.clip(0.7 + 0.2 * generator.standard_normal((50, 1)) * np.ones(2), 0, 1)
        pair = []
        for _ in range(2):
            # How an image goes differs between the models beyond the luck of its pixels.
            own = np.clip(shares + 0.05 * generator.standard_normal((50, 1)), 0, 1)
            right = generator.binomial(truth, own)
            images = np.stack([np.stack([right[:, 0], truth[:, 0] - right[:, 0]], 1),
                               np.stack([truth[:, 1] - right[:, 1], right[:, 1]], 1)], 1)
            pair.append(evaluation(images, CLASSES[:2]))
        comparison = paired_bootstrap.compare(*pair, samples=200, seed=trial)
        rows = (comparison.means[0], next(row for row in comparison.classes if row.name == "sky"))
        held += [row.low <= 0 <= row.high for row in rows]
        assert [row.verdict for row in rows] == ["better" if row.low > 0 else "worse" if row.high < 0 else ""
                                                 for row in rows]
    # 285 of 300 are promised, with a standard deviation of 4; 200 resamples of 50 images give a little less.
    assert (held >= 268).all() and (held <= 296).all(), held


def test_a_planted_regression_is_found(two, capsys):
    assert compare.main([*map(str, two)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(r"\s{2,}", line) for line in lines if re.match(r"(sky|road|pole|car|mIoU|aAcc|mAcc) ", line)]
    assert rows[0][0] == "pole" and rows[0][-1] == "worse"
    assert [row[0] for row in rows[-3:]] == ["mIoU", "aAcc", "mAcc"] and all(row[-1] == "worse" for row in rows[-3:])
    # Sorted, and the difference is that of the two columns before it.
    differences = [float(row[3]) for row in rows[:4]]
    assert differences == sorted(differences)
    assert all(float(row[3]) == pytest.approx(float(row[2]) - float(row[1]), abs=0.011) for row in rows)
    a, b = (json.loads(path.read_text()) for path in two)
    assert rows[0][1:3] == [f"{100 * each['classes']['pole']['iou']:.2f}" for each in (a, b)]
    low, high = map(float, rows[4][4].split(" to "))
    assert low < 100 * (b["mIoU"] - a["mIoU"]) < high < 0
    assert lines[:3] == [f"A: {two[0]}", f"B: {two[1]}", "camvid val, 40 images"]
    assert lines[-2] == (f"B is worse than A by {100 * (a['mIoU'] - b['mIoU']):.2f} points of mIoU (95 % interval "
                         f"{low:+.2f} to {high:+.2f}; 2000 resamples of 40 images): more than chance")
    marked = sum(row[-1] in ("better", "worse") for row in rows[:4])
    assert lines[-1] == f"marked: {marked} of 4 classes; by chance alone about 0.2 would be"


def test_fail_on_regression(two, capsys):
    a, b = (str(path.parent) for path in two)
    assert compare.main([a, b, "--fail-on-regression"]) == 1
    assert compare.main([b, a, "--fail-on-regression"]) == 0
    output = capsys.readouterr().out
    assert "B is worse than A" in output and "B is better than A" in output and "pole" in output
    assert compare.main([a, a, "--fail-on-regression"]) == 0


def test_a_loss_by_chance_is_no_regression(tmp_path, capsys):
    generator = np.random.default_rng(4)
    truth = generator.integers(50, 400, (40, 4))
    worse, better = sorted((predicted(generator, truth, np.full((40, 4), 0.8)) for _ in range(2)),
                           key=lambda images: metrics.summary(images.sum(0), CLASSES)["mIoU"])
    files = [str(write(tmp_path / "a", better)), str(write(tmp_path / "b", worse))]
    assert compare.main([*files, "--fail-on-regression"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"B is worse than A .* of 40 images\): no difference told from chance", output)


def test_equal_inputs(two, capsys):
    path = str(two[0])
    assert compare.main([path, path]) == 0
    output = capsys.readouterr().out
    assert output.count("+0.00 to +0.00") == 8 and "worse" not in output and "better" not in output
    assert ("A and B have the same mIoU (95 % interval +0.00 to +0.00; 2000 resamples of 40 images): no difference "
            "told from chance") in output


def test_json(two, tmp_path, capsys):
    arguments = [*map(str, two), "--samples", "200", "--seed", "5", "--confidence", "0.9"]
    for name in ("one.json", "two.json"):
        assert compare.main([*arguments, "--json", str(tmp_path / name)]) == 0
    text = (tmp_path / "one.json").read_text()
    assert text == (tmp_path / "two.json").read_text()
    found = json.loads(text)
    assert (found["a"], found["b"], found["dataset"], found["split"], found["images"]) == (
        str(two[0]), str(two[1]), "camvid", "val", 40)
    assert (found["samples"], found["seed"], found["confidence"]) == (200, 5, 0.9)
    assert found["verdict"] in capsys.readouterr().out
    comparison = paired_bootstrap.compare(*map(result_reading.read, two), samples=200, seed=5, confidence=0.9)
    for row in (*comparison.classes, *comparison.means):
        stored = found["classes"].get(row.name) or found[row.name]
        assert stored == {key: value for key, value in row._asdict().items() if key != "name"}
    b = json.loads(two[1].read_text())
    assert found["mIoU"]["b"] == pytest.approx(b["mIoU"], abs=1e-12)
    assert found["classes"]["pole"]["b"] == b["classes"]["pole"]["iou"]
    compare.main([*arguments[:-3], "6", "--json", str(tmp_path / "two.json")])
    assert (tmp_path / "two.json").read_text() != text
    with pytest.raises(WorkdirError, match="cannot write .*missing.*No such file"):
        compare.main([*arguments, "--json", str(tmp_path / "missing" / "file.json")])


def test_absent_classes(tmp_path, capsys):
    generator = np.random.default_rng(8)
    a = matrices(generator, 12)
    a[:, 3], a[:, :, 3] = 0, 0
    a[2:, 2], a[2:, :, 2] = 0, 0
    a[:2, 2, 2] = 100
    b = a.copy()
    # Cars, which there are none of, are guessed by B alone; both images with poles are worse.
    b[:, 0, 3], b[:, 0, 0] = a[:, 0, 0], 0
    b[:2, 2, 2], b[:2, 2, 1] = 50, a[:2, 2, 1] + 50
    files = write(tmp_path / "a", a), write(tmp_path / "b", b)
    comparison = paired_bootstrap.compare(*map(result_reading.read, files))
    rows = {row.name: row for row in comparison.classes}
    # As in metrics: no IoU for A, one of 0 for B, which counts in its mean.
    assert math.isnan(rows["car"].a) and rows["car"].b == 0 and math.isnan(rows["car"].difference)
    assert comparison.classes[-1] == rows["car"] and (rows["car"].low, rows["car"].high) != (0, 0)
    assert comparison.means[0].b == pytest.approx(json.loads(files[1].read_text())["mIoU"], abs=1e-12)
    # Every resample that has poles says "worse", and two images cannot say so.
    assert rows["pole"].images == 2 and rows["pole"].high < 0 and rows["pole"].verdict == ""
    compare.main([*map(str, files), "--json", str(tmp_path / "both.json")])
    output = capsys.readouterr().out
    assert re.search(r"^car +- +0.00 +- +- +\d+$", output, re.MULTILINE) and "nan" not in output
    assert "in fewer than 6 images, too few for a mark: 1 class (pole)" in output
    stored = json.loads((tmp_path / "both.json").read_text())["classes"]["car"]
    assert (stored["a"], stored["b"], stored["difference"], stored["low"], stored["high"]) == (None, 0, *[None] * 3)


def test_no_labelled_pixel(tmp_path, capsys):
    path = str(write(tmp_path, np.zeros((9, 4, 4), np.int64)))
    compare.main([path, path])
    assert "mIoU cannot be compared: no pixel of the split is labelled" in capsys.readouterr().out
    with pytest.raises(UserError, match="--fail-on-regression cannot judge this: mIoU cannot be compared"):
        compare.main([path, path, "--fail-on-regression"])


@pytest.mark.parametrize("images, said", [
    (1, "on the one image there is: no interval, for what is chance shows only over several images"),
    (5, "5 images): too few images to tell it from chance, 6 are needed"), (6, "6 images): more than chance")])
def test_few_images(tmp_path, capsys, images, said):
    a = np.tile(np.diag([100, 200, 300, 400]), (images, 1, 1))
    a[:, 0, 1] = np.arange(images)
    b = a.copy()
    b[:, 0, 0], b[:, 0, 1] = 90, a[:, 0, 1] + 10
    files = [str(write(tmp_path / "a", a)), str(write(tmp_path / "b", b))]
    assert compare.main(files) == 0
    output = capsys.readouterr().out
    assert said in output and ("worse\n" in output) == (images == 6)
    assert bool(re.search(r"-\d\.\d\d to -\d", output)) == (images > 1)
    if images == 6:
        assert compare.main([*files, "--fail-on-regression"]) == 1
    else:
        with pytest.raises(UserError, match="--fail-on-regression cannot judge this: B is worse"):
            compare.main([*files, "--fail-on-regression"])


@pytest.mark.parametrize("arguments, message", [
    (["--confidence", "1"], "--confidence is a share above 0 and at most 0.999, got 1"),
    (["--confidence", "0"], "--confidence is a share above 0"),
    (["--confidence", "nan"], "--confidence is a share above 0"),
    (["--samples", "39"], "--samples 39: an interval of 95 % takes 40 to 100000"),
    (["--samples", "100001"], "takes 40 to 100000"), (["--seed", "-1"], "--seed is not negative, got -1")])
def test_arguments_outside_their_range(two, arguments, message):
    with pytest.raises(ConfigError, match=message):
        compare.main([*map(str, two), *arguments])


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        compare.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for part in ("A B", "--samples N", "(default: 2000)", "--seed N", "(default: 0)", "--confidence SHARE",
                 "(default: 0.95)", "--json FILE", "--fail-on-regression", "wholly below 0", "per_image.npz"):
        assert part in text


def test_command(two):
    """As a user runs it, with the exit status that a script reads."""
    output = run("kseg.compare", *two, "--fail-on-regression", status=1)
    assert output.splitlines()[4].split() == ["class", "IoU", "A", "IoU", "B", "B", "-", "A", "95", "%", "interval",
                                              "images"]
    assert "more than chance" in output and max(map(len, output.split("\n\n")[1].splitlines())) < 80
    assert run("kseg.compare", two[0], two[1].parent / "none", status=2).startswith("error: no file ")


def test_no_model_is_loaded():
    """The comparison starts at once, which TensorFlow and Keras do not."""
    loaded = subprocess.run([sys.executable, "-c", "import sys, kseg.compare; print(*sys.modules)"], check=True,
                            capture_output=True, text=True).stdout.split()
    assert "kseg.evaluation.result_reading" in loaded and not {"tensorflow", "keras", "kseg.evaluation.metrics"} & set(loaded)
