"""Locate reference data outside of the project; tests that need it are skipped if it is missing."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
FIXTURES = SHARED / "fixtures"
KEYS = SHARED / "reference" / "keys"
CAMVID = SHARED / "data" / "camvid"
ADE20K = SHARED / "data" / "ade20k"
VOC2012 = SHARED / "data" / "voc2012"

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the reference systems' fixtures are missing (../shared/fixtures)"
)
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is missing (../shared/data/camvid)")
needs_ade20k = pytest.mark.skipif(
    not ADE20K.is_dir(), reason="the samples of ADE20K are missing (../shared/data/ade20k)"
)
needs_voc2012 = pytest.mark.skipif(
    not VOC2012.is_dir(), reason="the samples of VOC are missing (../shared/data/voc2012)"
)


def read_keys(path):
    """Return the shape of each tensor in a key list by name, without step counters."""
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    shapes = {
        name: tuple(int(number) for number in shape.strip("()").split(",") if number.strip())
        for name, shape, _ in lines
    }
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def assert_agreement(output):
    """Check that a comparison of all reference files found them within their limits."""
    verdicts = {row[0]: "ok" in row for row in map(str.split, output.splitlines()) if row}
    for name in ("backbone_0", "backbone_3", "aux_logits", "logits", "logits_full", "grads", "bn_after_step"):
        assert verdicts[name]
