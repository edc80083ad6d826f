"""Where reference data lies that is not part of the project; tests that need it skip where it is absent."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
FIXTURES = SHARED / "fixtures"
CAMVID = SHARED / "data" / "camvid"

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the reference systems' fixtures are not there (../shared/fixtures)")
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not there (../shared/data/camvid)")
