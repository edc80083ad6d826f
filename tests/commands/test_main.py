"""The command `kseg`: its help, its commands, its completion, and the explanation of config keys."""

import shutil
import subprocess
import sys

import pytest

from kseg import __main__ as main
from kseg import __version__, explain
from kseg.errors import ConfigError
from tests.helpers.running import ROOT


def modules_with_a_command():
    """Return the modules that `python -m` runs."""
    return {
        f"{package}.{path.stem}"
        for package in ("kseg", "serving", "pipeline")
        for path in (ROOT / package).glob("*.py")
        if path.stem != "__main__" and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }


def called(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/kseg", *words])
    status = main.main()
    return status, capsys.readouterr().out


def test_every_command_is_listed_with_an_example(monkeypatch, capsys):
    assert {command.module for command in main.COMMANDS.values()} == modules_with_a_command()
    status, output = called(monkeypatch, capsys)
    assert status == 0
    for name, command in main.COMMANDS.items():
        assert f"kseg {name} {command.example}" in output
    assert all(len(line) <= 120 for line in output.splitlines())
    assert called(monkeypatch, capsys, "--help")[1] == output
    assert called(monkeypatch, capsys, "--version") == (0, f"kseg {__version__}\n")


@pytest.mark.parametrize("name", [name for name in main.COMMANDS if name != "serve"])
def test_options_of_an_example_exist(name):
    command = main.COMMANDS[name]
    own = command.example.partition(" -- ")[0].split()
    options = {word.partition("=")[0] for word in own if word.startswith("--")}
    known = set(main.options_of(command.module, own))
    assert "--help" in known and options <= known


def test_a_command_gets_its_arguments_and_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kseg", "pipeline", "history", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: kseg pipeline history ")
    status, output = called(monkeypatch, capsys, "config", "train.steps")
    assert status == 0 and "default  40000" in output


@pytest.mark.parametrize(
    "words, nearest",
    [
        (["trian"], "train"),
        (["pipeline", "histroy"], "pipeline history"),
        (["pipeline"], "pipeline run"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_unknown_words_are_errors_with_the_choices(monkeypatch, words, nearest):
    monkeypatch.setattr(sys, "argv", ["kseg", *words])
    with pytest.raises(ConfigError, match=nearest):
        main.main()


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("", {"train", "serve", "pipeline"}),
        ("pipeline", {"run", "history", "compile"}),
        ("data check", {"--directory"}),
        ("data chekc", set()),
        ("train", {"--config", "--workdir", "--dry-run"}),
        ("train --config", {"encnet_shapes", "encnet_cityscapes"}),
        ("train --config encnet_shapes --set", {"train.steps=", "model.head="}),
        ("config", {"train.steps"}),
    ],
)
def test_what_may_follow(typed, expected):
    found = set(main.complete(["words", *typed.split()]).split())
    assert expected <= found
    assert ("train" in found) == (typed == "")


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes(tmp_path):
    script = tmp_path / "kseg"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kseg "$@"\n')
    script.chmod(0o755)
    program = (
        'eval "$(kseg completion bash)"; COMP_WORDS=(kseg pipeline h); COMP_CWORD=2; _kseg; echo "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "-c", program],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert result.stdout.split() == ["history"], result.stderr


def test_a_key_is_explained(capsys):
    assert explain.main(["train.steps", "--config", "encnet_camvid"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train.steps" and "  type     int, above 0" in lines and "  default  40000" in lines
    assert lines[-1] == "  here     2400  (encnet_camvid)"
    assert explain.main(["augment", "--config", "encnet_camvid"]) == 0
    assert "augment.crop=256,320" in capsys.readouterr().out
    assert explain.main([]) == 0
    assert capsys.readouterr().out.count("=") > 90
    with pytest.raises(ConfigError, match="Did you mean train.steps"):
        explain.main(["train.stepz"])


def test_the_documented_table_is_up_to_date(tmp_path):
    page = ROOT / "docs" / "configuration.md"
    copy = tmp_path / "page.md"
    shutil.copy(page, copy)
    assert explain.main(["--write", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    (tmp_path / "other.md").write_text("no table")
    with pytest.raises(ConfigError, match="config keys"):
        explain.main(["--write", str(tmp_path / "other.md")])
