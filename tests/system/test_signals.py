"""Signals that come while a command works, to real processes."""

import signal
import subprocess
import sys

import pytest

from tests.helpers.running import ROOT

# The signal comes once "ready" has been said; `work` is what it finds.
PROGRAM = """
import hashlib, signal, sys, time
from kseg.system.signals import Signals, Stopped

def say(number):
    print("saying", number, flush=True)

def compiled(iterations):
    # Leaves Python alone, as compiling does.
    hashlib.pbkdf2_hmac("sha256", b"", b"", iterations)

try:
    with Signals() as signals:
        {work}
        print("end of the command", flush=True)
except Stopped as stopped:
    sys.exit(128 + stopped.number)
"""
FOREVER = "while True: time.sleep(0.01)"


def ended(number, *lines):
    """Return (status, what was said after "ready") of a program to which a signal came."""
    work = "\n        ".join(lines)
    process = subprocess.Popen([sys.executable, "-u", "-c", PROGRAM.format(work=work)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_elsewhere_it_is_noted_only():
    status, output = ended(signal.SIGTERM, "print('ready')", "while signals.received is None: time.sleep(0.01)",
                           "print('received', signals.received)")
    assert (status, output) == (0, "received 15\nend of the command\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_block_that_loses_nothing_is_left_at_once(number):
    status, output = ended(number, "with signals.at_once(say):", "    print('ready')", f"    {FOREVER}")
    assert (status, output) == (128 + number, f"saying {int(number)}\n")


def test_no_handler_of_errors_holds_it_up():
    status, output = ended(signal.SIGTERM, "with signals.at_once(say):", "    try:", "        print('ready')",
                           f"        {FOREVER}", "    except Exception: print('handled')")
    assert (status, output) == (143, "saying 15\n")


def test_it_is_left_where_the_signal_came_before():
    status, output = ended(signal.SIGTERM, "print('ready')", "while signals.received is None: time.sleep(0.01)",
                           "with signals.at_once(say): print('never')")
    assert (status, output) == (143, "saying 15\n")


def test_compiled_code_that_does_not_come_back_ends_with_the_process():
    # Many minutes of work.
    status, output = ended(signal.SIGTERM, "with signals.at_once(say, patience=0.2):", "    print('ready')",
                           "    compiled(2**31 - 1)")
    assert (status, output) == (143, "saying 15\n")


def test_compiled_code_that_comes_back_is_left_as_python_is():
    status, output = ended(signal.SIGTERM, "with signals.at_once(say, patience=60):", "    print('ready')",
                           "    compiled(10**6)", f"    {FOREVER}")
    assert (status, output) == (143, "saying 15\n")


def test_after_the_block_it_is_noted_again_and_what_failed_in_it_is_raised():
    status, output = ended(
        signal.SIGTERM, "try:", "    with signals.at_once(say): raise KeyError", "except KeyError: print('ready')",
        "while signals.received is None: time.sleep(0.01)")
    assert (status, output) == (0, "end of the command\n")
