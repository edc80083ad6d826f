"""Run every command of kseg by one name: `kseg train ...` is `python -m kseg.train ...`.

    kseg                            # all commands, with an example of each
    kseg train --config encnet_shapes --workdir runs/shapes
    kseg train --help
    eval "$(kseg completion bash)"

`python -m kseg` does the same where the script `kseg` is not on the path.
"""

import contextlib
import importlib
import io
import re
import sys
from typing import NamedTuple

from kseg import __version__, cli
from kseg.config import Config
from kseg.config.files import config_names
from kseg.config.values import dotted_keys
from kseg.errors import ConfigError, unknown


class Command(NamedTuple):
    """A command: its module, what it does, and an example of its arguments."""

    module: str
    purpose: str
    example: str


GROUPS = {
    "Data": {
        "data": Command("kseg.data", "check, convert, show or prepare a dataset", "check folder --directory DATA"),
        "benchmark": Command(
            "kseg.benchmark", "measure reading and training, or a model", "data --config encnet_shapes"
        ),
    },
    "Configs": {
        "config": Command("kseg.explain", "explain the keys of a config", "train.steps"),
        "zoo": Command("kseg.zoo", "list the published variants with their results", "deeplabv3_city"),
        "convert": Command(
            "kseg.convert",
            "bring weights of PyTorch systems",
            "iter_80000.pth --config encnet_cityscapes --out encnet.weights.h5",
        ),
    },
    "Training and evaluation": {
        "train": Command("kseg.train", "start or resume a run", "--config encnet_shapes --workdir runs/shapes"),
        "launch": Command(
            "kseg.launch", "train on several hosts", "--hosts a:2222,b:2222 -- -m kseg.train --config encnet_cityscapes"
        ),
        "evaluate": Command("kseg.evaluate", "measure mIoU and write a report", "--workdir runs/shapes --out results"),
        "compare": Command("kseg.compare", "compare two evaluations", "results/a results/b"),
        "predict": Command("kseg.predict", "segment images and videos", "photos --workdir runs/shapes --out predicted"),
    },
    "Serving": {
        "export": Command(
            "kseg.export",
            "write a SavedModel, ONNX, LiteRT or OpenVINO model",
            "--workdir runs/shapes --out served/shapes",
        ),
        "serve": Command(
            "serving.server", "serve models by gRPC and REST", "--model_name=shapes --model_base_path=served/shapes"
        ),
        "client": Command(
            "serving.client", "send images to a server", "photos --server localhost:8500 --model shapes --out answers"
        ),
        "load-test": Command(
            "serving.load_test", "measure a server under load", "photo.jpg --server localhost:8500 --model shapes"
        ),
    },
    "Pipeline": {
        "pipeline run": Command(
            "pipeline.run_local", "ingest, train, evaluate and push", "--config encnet_shapes --root pipelines/shapes"
        ),
        "pipeline history": Command(
            "pipeline.history", "list the runs and what they pushed", "--root pipelines/shapes"
        ),
        "pipeline compile": Command(
            "pipeline.compile_kubeflow",
            "compile for Kubeflow Pipelines",
            "--config encnet_cityscapes --out pipeline.yaml --image IMAGE",
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

# The scripts ask `kseg completion words` for what may follow the words typed so far.
COMPLETION = {
    "bash": """_kseg() {
    COMPREPLY=($(compgen -o default -W "$(kseg completion words "${COMP_WORDS[@]:1:COMP_CWORD-1}")" -- \
"${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _kseg kseg""",
    "zsh": """_kseg() {
    compadd -- $(kseg completion words "${(@)words[2,CURRENT-1]}") || _files
}
compdef _kseg kseg""",
    "fish": "complete -c kseg -a '(kseg completion words (commandline -opc)[2..])'",
}


def main() -> int | None:
    """Run the command that the arguments name and return its exit status."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        print(f"kseg {__version__}")
        return 0
    if words[0] == "completion":
        print(complete(words[1:]))
        return 0
    name, arguments = find_command(words)
    # The name by which the command's own help calls itself.
    sys.argv = [f"kseg {name}", *arguments]
    module = importlib.import_module(COMMANDS[name].module)
    if name == "serve":
        # It ends the process in its own way.
        module.run()
    return module.main(arguments)


def help_text() -> str:
    """Return the commands by group, with an example of each."""
    lines = ["usage: kseg COMMAND [ARGUMENT ...]", "", "Semantic segmentation from training to TF Serving."]
    for group, commands in GROUPS.items():
        lines += ["", group]
        for name, command in commands.items():
            lines += [f"  {name:<17} {command.purpose}", f"  {'':<17} kseg {name} {command.example}"]
    return "\n".join(
        [
            *lines,
            "",
            "`kseg COMMAND --help` lists a command's arguments. "
            f"`kseg completion {'|'.join(COMPLETION)}` prints a script for your shell.",
            "`kseg --version` prints the version.",
        ]
    )


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """Return the name of the command at the start of the words, and its arguments.

    Raises ConfigError for an unknown command, with the nearest ones.
    """
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    first = words[0]
    longer = [name for name in COMMANDS if name.startswith(f"{first} ")]
    typed = " ".join(words[:2]) if longer else first
    raise ConfigError(unknown("command", typed, longer or COMMANDS) + "; `kseg` shows an example of each")


def complete(words: list[str]) -> str:
    """Return the completion script of a shell, or after "words" what may follow the words, separated by spaces.

    Raises ConfigError for an unknown shell.
    """
    if words[:1] != ["words"]:
        if len(words) != 1 or words[0] not in COMPLETION:
            raise ConfigError(unknown("shell", " ".join(words), COMPLETION))
        return COMPLETION[words[0]]
    typed = words[1:]
    last_option = next((word for word in reversed(typed) if word.startswith("--")), "")
    if typed and typed[-1] == "--config":
        return " ".join(config_names())
    if last_option == "--set" or typed == ["config"]:
        return " ".join(key + "=" * (last_option == "--set") for key in dotted_keys(Config))
    try:
        name, arguments = find_command(typed or [""])
    except ConfigError:
        depth = len(typed)
        following = {
            parts[depth] for parts in map(str.split, COMMANDS) if parts[:depth] == typed and len(parts) > depth
        }
        return " ".join(sorted(following))
    return " ".join(options_of(COMMANDS[name].module, arguments))


def options_of(module: str, arguments: list[str]) -> list[str]:
    """Return the options that a command's help names, or its subcommand's if that is the first argument."""
    subcommand = [word for word in arguments[:1] if not word.startswith("-")]
    output = io.StringIO()
    # A wrong subcommand is reported when the command runs.
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        importlib.import_module(module).main([*subcommand, "--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", output.getvalue())))


def run() -> None:
    """Run the command that the arguments name and exit with its status; the script `kseg` calls this."""
    cli.run(main)


if __name__ == "__main__":
    run()
