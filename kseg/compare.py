"""Compare two evaluations of the same images, class by class, with bootstrap intervals.

    python -m kseg.compare runs/a/test/metrics.json runs/b/test/metrics.json
    python -m kseg.compare runs/released/test runs/candidate/test --fail-on-regression

The intervals are percentile intervals of the paired bootstrap over images (B. Efron and R. J. Tibshirani, An
Introduction to the Bootstrap, 1993, section 13.3). A resample draws as many images as the split has, with replacement,
and the same ones for A and B. Its scores are computed from the summed pixel counts, as for the split itself. The
interval contains the middle 95% of the differences. A class without pixels in a resample does not enter the means of
that resample; a score that A or B lacks in a resample does not enter its interval.

The intervals reflect the choice of the images only. They do not include the variation between training runs of the same
config.
"""

import argparse
import math
from pathlib import Path

from kseg import cli
from kseg.errors import UserError, WorkdirError
from kseg.evaluation import paired_bootstrap, results
from kseg.system import atomic_files


def regression_status(comparison: paired_bootstrap.Comparison) -> int:
    """Return exit status 1 if B is significantly worse than A, else 0.

    Raises:
        UserError: The images do not suffice for a verdict.
    """
    row = comparison.means[0]
    if row.images < comparison.needed or math.isnan(row.low):
        raise UserError(f"--fail-on-regression is undecided: {paired_bootstrap.verdict_text(comparison)}")
    return int(row.verdict == "worse")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=cli.program("kseg.compare"), description=__doc__.splitlines()[0])
    for name in ("A", "B"):
        parser.add_argument(
            name.lower(),
            metavar=name,
            type=Path,
            help="a metrics.json that kseg.evaluate wrote, with its per_image.npz beside it, or their directory",
        )
    parser.add_argument(
        "--samples", type=int, default=2000, metavar="N", help="number of bootstrap resamples (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the resamples; the same seed gives the same intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="FRACTION",
        help="fraction of the resamples that an interval contains (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the comparison to FILE, as fractions")
    parser.add_argument(
        "--fail-on-regression",
        action="store_true",
        help="exit with status 1 if B is worse than A, that is, if the interval of the mIoU difference "
        "lies below 0; exit with status 2 if there are too few images to decide",
    )
    values = parser.parse_args(arguments)
    comparison = paired_bootstrap.compare_evaluations(
        results.read_evaluation(values.a),
        results.read_evaluation(values.b),
        values.samples,
        values.seed,
        values.confidence,
    )
    a, b = comparison.a, comparison.b
    print(f"A: {a.path}\nB: {b.path}\n{a.dataset} {a.split}, {len(a.names)} image{'s' * (len(a.names) != 1)}\n")
    print(paired_bootstrap.comparison_table(comparison))
    print("\n" + "\n".join([paired_bootstrap.verdict_text(comparison), *paired_bootstrap.remarks(comparison)]))
    if values.json:
        try:
            atomic_files.write_text(values.json, paired_bootstrap.comparison_json(comparison))
        except OSError as error:
            raise WorkdirError(f"cannot write {values.json}: {error.strerror}") from None
    return regression_status(comparison) if values.fail_on_regression else 0


if __name__ == "__main__":
    cli.run(main)
