"""Two evaluations of the same images: what differs in each class, and whether that is more than chance.

    python -m kseg.compare runs/a/test/metrics.json runs/b/test/metrics.json
    python -m kseg.compare runs/released/test runs/candidate/test --fail-on-regression

The interval beside a difference is the percentile interval of the paired bootstrap over images (B. Efron and R. J.
Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3): as many images as the split has are drawn from it
with replacement, the same ones for A and B, their counts are added up and all scores computed from the sums, as for the
split itself; of the differences in many such resamples, the middle 95 % are the interval. A class that is in neither
truth nor prediction of a resample is left out of that resample's mean, and a resample in which A or B lacks a score out
of that score's interval. The interval knows what the choice of the images does; it does not know that another training
run of the same config would differ as well.
"""

import argparse
import math
import os
from pathlib import Path


from kseg import cli
from kseg.errors import UserError, WorkdirError
from kseg.evaluation import paired_bootstrap
from kseg.evaluation.result_reading import read


def _write(path: Path, text: str) -> None:
    # Not kseg.system.atomic_files.write_text: that module loads TensorFlow, which takes longer than the comparison.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise WorkdirError(f"cannot write {path}: {error.strerror}") from None


def status(comparison: paired_bootstrap.Comparison) -> int:
    """Return 1 where B is worse than A, else 0; raises UserError where the images cannot tell."""
    row = comparison.means[0]
    if row.images < comparison.needed or math.isnan(row.low):
        raise UserError(f"--fail-on-regression cannot judge this: {paired_bootstrap.verdict(comparison)}")
    return int(row.verdict == "worse")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.compare", description=__doc__.splitlines()[0])
    for name in ("A", "B"):
        parser.add_argument(name.lower(), metavar=name, type=Path,
                            help="a metrics.json of kseg.evaluate, or its directory; per_image.npz is beside it")
    parser.add_argument("--samples", type=int, default=2000, metavar="N",
                        help="how many resamples of the images the intervals are of (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="of the resamples; the same seed gives the same intervals (default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="SHARE",
                        help="the share of the resamples that an interval holds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE too, as fractions")
    parser.add_argument("--fail-on-regression", action="store_true",
                        help="exit with status 1 where B is worse than A: the interval of mIoU lies wholly below 0; "
                             "with 2 where the images are too few to tell")
    values = parser.parse_args(arguments)
    comparison = paired_bootstrap.compare(read(values.a), read(values.b), values.samples, values.seed, values.confidence)
    a, b = comparison.a, comparison.b
    print(f"A: {a.path}\nB: {b.path}\n{a.dataset} {a.split}, {len(a.names)} image{'s' * (len(a.names) != 1)}\n")
    print(paired_bootstrap.table(comparison))
    print("\n" + "\n".join([paired_bootstrap.verdict(comparison), *paired_bootstrap.remarks(comparison)]))
    if values.json:
        _write(values.json, paired_bootstrap.to_json(comparison))
    return status(comparison) if values.fail_on_regression else 0


if __name__ == "__main__":
    cli.run(main)
