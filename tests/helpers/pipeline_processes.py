"""Run the pipeline in separate processes, which can be killed at a chosen call.

The processes are forked from one that has imported TFX, since that import would take most of the time of such a run.
"""

import os
import signal
import sys
import traceback
from importlib import import_module

from tests.helpers import forks, small_models

PRELOADED = (
    "pipeline.run_local",
    "pipeline.definition",
    "pipeline.metadata.metadata_store",
    "pipeline.metadata.summary",
    "tfx.orchestration.local.local_dag_runner",
)


def run(arguments, log, replacements=None, kill_at=None, after=False):
    """Run the pipeline with command-line arguments, and return its exit status (-SIGKILL if it was killed).

    Args:
        arguments: Arguments of pipeline.run_local.
        log: File that receives the output.
        replacements: {(module, name): object}, patched in the process.
        kill_at: (module, name) of a function; the process is killed before its call.
        after: Kill the process at the end of the call instead.
    """
    forks.preload(PRELOADED)
    process = forks.CONTEXT.Process(
        target=_run,
        args=(list(map(str, arguments)), str(log), replacements or {}, kill_at, after, small_models.is_shallow()),
    )
    process.start()
    process.join()
    return process.exitcode


def _run(arguments, log, replacements, kill_at, after, shallow):
    with open(log, "wb") as file:
        for output in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), output.fileno())
    from kseg import cli
    from pipeline import run_local

    forks.make_small(shallow)
    # TFX parses the arguments of the process.
    sys.argv = ["run_local"]
    for (module, name), replacement in replacements.items():
        setattr(import_module(module), name, replacement)
    if kill_at:
        module, name = import_module(kill_at[0]), kill_at[1]
        setattr(module, name, _killing(getattr(module, name), after))
    try:
        cli.run(lambda: run_local.main(arguments))
    except Exception:
        traceback.print_exc()
        raise


def _killing(function, after):
    def wrapper(*arguments, **options):
        if after:
            function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return wrapper
