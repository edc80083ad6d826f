"""Send signals to real processes while they work."""

import signal
import subprocess
import sys

import pytest

from tests.helpers.running import ROOT

# The test sends the signal when the program prints "ready"; `work` is what the signal interrupts.
PROGRAM = """
import hashlib, signal, sys, time
from kseg.system.signals import Signals, Stopped

def report(number):
    print("reporting", number, flush=True)

def compiled(iterations):
    # Runs without returning to Python, like compiling.
    hashlib.pbkdf2_hmac("sha256", b"", b"", iterations)

try:
    with Signals() as signals:
        {work}
        print("end of the command", flush=True)
except Stopped as stopped:
    sys.exit(128 + stopped.number)
"""
FOREVER = "while True: time.sleep(0.01)"


def interrupt(number, *lines):
    """Return (exit status, output after "ready") of a program that receives a signal."""
    work = "\n        ".join(lines)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM.format(work=work)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_a_signal_outside_a_block_is_only_recorded():
    status, output = interrupt(
        signal.SIGTERM,
        "print('ready')",
        "while signals.received is None: time.sleep(0.01)",
        "print('received', signals.received)",
    )
    assert (status, output) == (0, "received 15\nend of the command\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_at_once_block_is_left_at_once(number):
    status, output = interrupt(number, "with signals.at_once(report):", "    print('ready')", f"    {FOREVER}")
    assert (status, output) == (128 + number, f"reporting {int(number)}\n")


def test_error_handlers_in_the_block_do_not_catch_the_interruption():
    status, output = interrupt(
        signal.SIGTERM,
        "with signals.at_once(report):",
        "    try:",
        "        print('ready')",
        f"        {FOREVER}",
        "    except Exception: print('handled')",
    )
    assert (status, output) == (143, "reporting 15\n")


def test_a_block_is_left_if_the_signal_arrived_before_it():
    status, output = interrupt(
        signal.SIGTERM,
        "print('ready')",
        "while signals.received is None: time.sleep(0.01)",
        "with signals.at_once(report): print('never')",
    )
    assert (status, output) == (143, "reporting 15\n")


def test_compiled_code_that_does_not_return_ends_with_the_process():
    # The work would take many minutes.
    status, output = interrupt(
        signal.SIGTERM, "with signals.at_once(report, patience=0.2):", "    print('ready')", "    compiled(2**31 - 1)"
    )
    assert (status, output) == (143, "reporting 15\n")


def test_compiled_code_that_returns_is_left_like_python_code():
    status, output = interrupt(
        signal.SIGTERM,
        "with signals.at_once(report, patience=60):",
        "    print('ready')",
        "    compiled(10**6)",
        f"    {FOREVER}",
    )
    assert (status, output) == (143, "reporting 15\n")


def test_after_the_block_signals_are_recorded_and_its_error_was_raised():
    status, output = interrupt(
        signal.SIGTERM,
        "try:",
        "    with signals.at_once(report): raise KeyError",
        "except KeyError: print('ready')",
        "while signals.received is None: time.sleep(0.01)",
    )
    assert (status, output) == (0, "end of the command\n")


def test_a_second_interrupt_within_two_seconds_counts_as_the_first():
    """A launcher passes on a Ctrl-C that the terminal has sent to the whole group."""
    status, output = interrupt(
        signal.SIGINT,
        "import os",
        "print('ready')",
        "while signals.received is None: time.sleep(0.01)",
        "for _ in range(3): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.05)",
        "print('saved')",
    )
    assert (status, output) == (0, "saved\nend of the command\n")


def test_a_later_interrupt_stops_without_saving():
    status, output = interrupt(
        signal.SIGINT,
        "import os",
        "print('ready')",
        "while signals.received is None: time.sleep(0.01)",
        "signals.received_at -= 2",
        "try: os.kill(os.getpid(), signal.SIGINT); time.sleep(5); print('saved')",
        "except KeyboardInterrupt: print('stopped')",
    )
    assert (status, output) == (0, "stopped\nend of the command\n")


def test_the_first_signal_is_answered_while_compiled_code_runs():
    process = subprocess.Popen(
        [
            sys.executable,
            "-u",
            "-c",
            PROGRAM.replace("Signals()", "Signals('saving')").format(work="print('ready'); compiled(2**31 - 1)"),
        ],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "SIGINT: saving\n"
    finally:
        process.kill()
        process.communicate()
