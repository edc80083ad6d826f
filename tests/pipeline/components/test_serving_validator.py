"""The server of a candidate: it never outlives the process that tries the candidate."""

import os
import subprocess
import sys

from pipeline.components.serving_validator import STOP_WITH_PARENT


def served_for(parent):
    """Start a program in place of the server for a parent with this process id, and return what it prints."""
    command = [sys.executable, "-c", STOP_WITH_PARENT, str(parent), "-c", "print('served')"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def test_server_does_not_start_after_the_death_of_its_parent():
    assert served_for(os.getpid()) == "served"
    # Its parent is another process, as it is after the death of the one that started it.
    assert served_for(os.getppid()) == ""
