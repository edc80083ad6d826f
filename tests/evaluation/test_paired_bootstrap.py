"""The paired bootstrap: against a plain loop, the coverage of its intervals, and how images are paired."""

import math
import re

import numpy as np
import pytest

from kseg.errors import ConfigError, DataError
from kseg.evaluation import metrics, paired_bootstrap, results
from tests.helpers.small_evaluations import (
    CLASSES,
    evaluation,
    predicted_matrices,
    random_matrices,
    summarized_scores,
    write,
)


def test_bootstrap_against_a_loop():
    generator = np.random.default_rng(0)
    labels = generator.integers(20, 400, (7, 4)) * [1, 1, 0, 0]
    a, b = (predicted_matrices(generator, labels, np.full((7, 4), accuracy)) for accuracy in (0.8, 0.7))
    for side in (a, b):
        side[:, :, 1] += side[:, :, 2:].sum(2)
        side[:, :, 2:] = 0
    # One image has cars and in one image A alone predicts poles; many of the resamples miss one of the two.
    a[2, 3, 3], b[2, 3, 0] = 12, 12
    a[4, 0] += [-5, 0, 5, 0]
    samples, seed = 60, 4
    differences = paired_bootstrap.resample(evaluation(a), evaluation(b), samples, seed)
    weights = paired_bootstrap.draw_resamples(7, samples, np.random.default_rng(seed))
    assert weights.shape == (60, 7) and (weights.sum(1) == 7).all() and len(np.unique(weights, axis=0)) > 50
    for row, times in zip(differences, weights.astype(int)):
        sums = [np.zeros((4, 4), np.int64), np.zeros((4, 4), np.int64)]
        for image, count in enumerate(times):
            for _ in range(count):
                sums[0] += a[image]
                sums[1] += b[image]
        expected = np.array(summarized_scores(sums[1])) - summarized_scores(sums[0])
        assert row.tolist() == pytest.approx(expected.tolist(), abs=1e-15, nan_ok=True)
    assert 5 < np.isnan(differences[:, 3]).sum() < 55 and np.nanmax(differences[:, 3]) == -1
    assert np.isnan(differences[:, 2]).all() and np.isfinite(differences[:, 4:]).all()


def test_draws_are_uniform():
    weights = paired_bootstrap.draw_resamples(5, 20_000, np.random.default_rng(0))
    # Multinomial counts of 5 draws from 5 images have mean 1, variance 0.8 and covariance -0.2.
    assert weights.mean(0) == pytest.approx(np.ones(5), abs=0.03)
    assert np.cov(weights.T) == pytest.approx(np.eye(5) - 0.2, abs=0.05)


@pytest.mark.parametrize("block", [1, 500, 1 << 23])
def test_the_block_size_does_not_change_the_result(block):
    generator = np.random.default_rng(1)
    a, b = evaluation(random_matrices(generator, 9)), evaluation(random_matrices(generator, 9))
    np.testing.assert_array_equal(
        paired_bootstrap.resample(a, b, 101, 7, block), paired_bootstrap.resample(a, b, 101, 7)
    )


def test_counts_of_huge_images_are_exact():
    """One pixel of 2000 images of 12000 x 8000 pixels changes the score."""
    matrices = np.zeros((2000, 2, 2), np.int64)
    matrices[:, 0, 0] = 12_000 * 8_000 - 1
    matrices[:, 0, 1] = 1
    better = matrices.copy()
    better[:, 0] = [12_000 * 8_000, 0]
    differences = paired_bootstrap.resample(evaluation(matrices, CLASSES[:2]), evaluation(better, CLASSES[:2]), 50, 0)
    # All images have the same counts, and so have all resamples.
    assert (differences[:, 0] == 1 - (12_000 * 8_000 - 1) / (12_000 * 8_000)).all()


def test_interval_limits_are_percentiles_of_the_resamples():
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 400, (30, 4))
    a, b = (evaluation(predicted_matrices(generator, labels, np.full((30, 4), 0.8))) for _ in range(2))
    comparison = paired_bootstrap.compare_evaluations(a, b, samples=400, seed=9, confidence=0.9)
    differences = np.sort(paired_bootstrap.resample(a, b, 400, 9), axis=0)
    for row, column in zip(sorted(comparison.classes, key=lambda row: CLASSES.index(row.name)), differences.T):
        # 5% of the 400 resamples lie below the interval, and 5% above it.
        assert column[19] <= row.low <= column[20] and column[379] <= row.high <= column[380]


def test_coverage_of_the_intervals():
    """For two equally good models, whose images are easy or hard for both, 95% of the intervals contain 0.

    Intervals of a mean over few images would contain it less often, and intervals of unpaired images always.
    """
    generator = np.random.default_rng(11)
    covered = np.zeros(2)
    trials = 300
    for trial in range(trials):
        labels = generator.integers(20, 200, (50, 2))
        difficulty = np.clip(0.7 + 0.2 * generator.standard_normal((50, 1)) * np.ones(2), 0, 1)
        pair = []
        for _ in range(2):
            # The models differ on an image by more than the binomial noise of its pixels.
            accuracy = np.clip(difficulty + 0.05 * generator.standard_normal((50, 1)), 0, 1)
            hits = generator.binomial(labels, accuracy)
            matrices = np.stack(
                [
                    np.stack([hits[:, 0], labels[:, 0] - hits[:, 0]], 1),
                    np.stack([labels[:, 1] - hits[:, 1], hits[:, 1]], 1),
                ],
                1,
            )
            pair.append(evaluation(matrices, CLASSES[:2]))
        comparison = paired_bootstrap.compare_evaluations(*pair, samples=200, seed=trial)
        rows = (comparison.means[0], next(row for row in comparison.classes if row.name == "sky"))
        covered += [row.low <= 0 <= row.high for row in rows]
        assert [row.verdict for row in rows] == [
            "better" if row.low > 0 else "worse" if row.high < 0 else "" for row in rows
        ]
    # The expected 285 have a standard deviation of 4; 200 resamples of 50 images lower them a little.
    assert (covered >= 268).all() and (covered <= 296).all(), covered


def test_absent_classes():
    generator = np.random.default_rng(8)
    a = random_matrices(generator, 12)
    a[:, 3], a[:, :, 3] = 0, 0
    a[2:, 2], a[2:, :, 2] = 0, 0
    a[:2, 2, 2] = 100
    b = a.copy()
    # No image has cars, and B alone predicts them; both images with poles are worse in B.
    b[:, 0, 3], b[:, 0, 0] = a[:, 0, 0], 0
    b[:2, 2, 2], b[:2, 2, 1] = 50, a[:2, 2, 1] + 50
    comparison = paired_bootstrap.compare_evaluations(evaluation(a), evaluation(b))
    rows = {row.name: row for row in comparison.classes}
    # The IoU of cars is undefined in A, and 0 in B, where it enters the mean.
    assert math.isnan(rows["car"].a) and rows["car"].b == 0 and math.isnan(rows["car"].difference)
    assert math.isnan(rows["car"].low) and math.isnan(rows["car"].high) and comparison.classes[-1] == rows["car"]
    assert comparison.means[0].b == pytest.approx(metrics.summarize(b.sum(0), CLASSES)["mIoU"], abs=1e-12)
    # In every resample with poles B is worse, but two images are too few for a verdict.
    assert rows["pole"].images == 2 and rows["pole"].high < 0 and rows["pole"].verdict == ""
    assert "fewer than 6 images: 1 class (pole)" in paired_bootstrap.remarks(comparison)[-1]


def test_images_in_another_order_and_directory(tmp_path):
    generator = np.random.default_rng(6)
    a = random_matrices(generator, 20)
    b = a.copy()
    b[:, 0] = np.roll(a[:, 0], 1, -1)
    paths = [f"/data/val/aachen/{index}.v1.PNG" for index in range(19)] + ["/data/val/ulm/1.png"]
    moved = [f"gs://bucket/set/aachen/{index}.v1" for index in range(19)] + ["gs://bucket/set/ulm/1"]
    order = generator.permutation(20)
    first = write(tmp_path / "a", a, paths)
    second = write(tmp_path / "b", b[order], [moved[index] for index in order])
    third = write(tmp_path / "c", b, paths)
    shuffled, same_order = (
        paired_bootstrap.compare_evaluations(results.read_evaluation(first), results.read_evaluation(path), 100)
        for path in (second, third)
    )
    assert shuffled.classes == same_order.classes and shuffled.means == same_order.means
    assert shuffled.means[0].difference < 0


def test_evaluations_that_cannot_be_paired():
    matrices = random_matrices(np.random.default_rng(1), 8)
    a = evaluation(matrices)._replace(path="a")
    b = a._replace(path="b")

    def require_refused(other, message):
        with pytest.raises(DataError) as error:
            paired_bootstrap.pair_images(a, other)
        assert re.search(message, str(error.value)), str(error.value)

    require_refused(b._replace(split="test"), "a has split 'val', but b has 'test'")
    require_refused(b._replace(dataset="voc2012"), "dataset 'camvid', .*'voc2012'")
    require_refused(
        b._replace(classes=("sky", "road", "tree", "bus")),
        r"4 classes .*: only the first has 2 classes \(pole, car\); only the second has 2 classes "
        r"\(tree, bus\)$",
    )
    require_refused(b._replace(classes=CLASSES[::-1]), "classes .* differ: .*order")
    require_refused(
        evaluation(matrices[:3])._replace(path="b"),
        r"8 images of a and the 3 images of b .*: only the first has 5 images \(3, 4, 5, ...\)$",
    )
    require_refused(
        b._replace(names=(*b.names[:-1], "x")), r"only the first has 1 image \(7\); only the second has 1 image \(x\)$"
    )
    relabeled = b.truth.copy()
    relabeled[[2, 5], 0] += 10
    require_refused(b._replace(truth=relabeled), r"different labels for 2 images \(2, 5\)$")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"confidence": 1}, "--confidence .* 0.999, got 1"),
        ({"confidence": 0}, "--confidence"),
        ({"confidence": math.nan}, "--confidence"),
        ({"samples": 39}, "--samples .* 40 and 100000 .* 95%, got 39"),
        ({"samples": 100001}, "--samples"),
        ({"seed": -1}, "--seed .* 0, got -1"),
    ],
)
def test_options_out_of_range(options, message):
    images = evaluation(random_matrices(np.random.default_rng(1), 8))
    with pytest.raises(ConfigError, match=message):
        paired_bootstrap.compare_evaluations(images, images, **options)
