"""Damaged weight files of every kind give WeightsError, within bounds of time and memory.

KSEG_MUTATED_FILES=20000 reads that many; CI reads a few.
"""

import json
import os
import subprocess
import sys

from tests.helpers.running import ROOT

COUNT = int(os.environ.get("KSEG_MUTATED_FILES", 48))


def test_mutated_files_are_read_or_refused():
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.mutated_files", str(COUNT)], cwd=ROOT, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert not report["bad"] and sum(report["outcomes"].values()) == COUNT
    # Each kind was refused at least once, so the mutations reach the readers.
    refused = {text.split()[0] for text in report["outcomes"] if text.endswith(" WeightsError")}
    assert len(refused) == 8, report
