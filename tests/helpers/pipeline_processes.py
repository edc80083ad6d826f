"""Runs of the pipeline in processes of their own, which can be killed at a chosen call.

They are forked from one process that has imported TFX once, which would take most of such a run's time.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from importlib import import_module

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pipeline.run_local", "pipeline.definition", "pipeline.metadata.metadata_store", "pipeline.metadata.summary",
                                "tfx.orchestration.local.local_dag_runner"])


def run(arguments, log, replacements=None, place=None, after=False):
    """Run the pipeline with a command line's arguments; return its exit status, -SIGKILL where it was killed.

    What it prints goes to the file `log`. `replacements` are {(module, name): an object in its place}. `place` is
    (module, name) of a function before whose call, or with `after` at whose end, the process is killed.
    """
    process = CONTEXT.Process(target=_run, args=(list(map(str, arguments)), str(log), replacements or {}, place, after))
    process.start()
    process.join()
    return process.exitcode


def _run(arguments, log, replacements, place, after):
    with open(log, "wb") as file:
        for output in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), output.fileno())
    from kseg import cli
    from pipeline import run_local

    # TFX reads the process's arguments.
    sys.argv = ["run_local"]
    for (module, name), replacement in replacements.items():
        setattr(import_module(module), name, replacement)
    if place:
        module, name = import_module(place[0]), place[1]
        setattr(module, name, _killing(getattr(module, name), after))
    try:
        cli.run(lambda: run_local.main(arguments))
    except Exception:
        traceback.print_exc()
        raise


def _killing(function, after):
    def killed(*arguments, **options):
        if after:
            function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return killed
