"""The documentation: every shell block is run or says why not, and links, modules, options and keys exist."""

import configparser
import contextlib
import importlib
import io
import re

import pytest
import yaml

from kseg import config as configs
from kseg.config import renames
from serving.config import flags
from tests.helpers import documents
from tests.helpers.running import ROOT

IDS = [str(page.relative_to(ROOT)) for page in documents.PAGES]
# Code is neither linked nor named in prose.
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SECTIONS = "data|augment|model|init|loss|train|evaluate|export"
# These commands have one parser for each of their own commands.
NESTED = ("kseg.data", "kseg.benchmark")


def module_path(name):
    return ROOT / f"{name.replace('.', '/')}.py"


@pytest.fixture(scope="module")
def help_of():
    """A function from a module and its nested command to what its --help prints, each printed once."""
    printed = {}

    def find(module, *nested):
        if (module, *nested) not in printed:
            output = io.StringIO()
            with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stopped:
                importlib.import_module(module).main([*nested, "--help"])
            assert stopped.value.code == 0
            printed[module, *nested] = output.getvalue()
        return printed[module, *nested]

    return find


def python_commands(words):
    """Yield (module, arguments) of a command and of what it launches."""
    for index, word in enumerate(words):
        if word == "-m" and index + 1 < len(words):
            arguments = words[index + 2 :]
            end = arguments.index("--") if "--" in arguments else len(arguments)
            yield words[index + 1], arguments[:end]


ALL_COMMANDS = [
    (str(block.page.relative_to(ROOT)), name, arguments)
    for block in documents.blocks()
    for words in documents.commands(block.text)
    for name, arguments in python_commands(words)
    if name.partition(".")[0] in ("kseg", "serving", "pipeline", "benchmarks")
]


def test_every_shell_block_is_run_or_says_why_not():
    for block in documents.blocks():
        if block.runner:
            call = f'documents.run_by("{block.runner}")'
            paths = ROOT.glob(f"tests/**/{block.runner}.py")
            assert any(call in path.read_text(encoding="utf-8") for path in paths), (block.page, call)
        else:
            assert block.reason, (
                f"{block.page}: above a block stands neither <!-- not run: REASON --> nor "
                f"<!-- run by TEST_MODULE -->:\n{block.text}"
            )


@pytest.mark.parametrize("page", documents.PAGES, ids=IDS)
def test_commands_stand_in_shell_blocks(page):
    text = page.read_text(encoding="utf-8")
    languages = re.findall(r"^```(.*)$", text, re.MULTILINE)
    assert set(languages[::2]) <= {"sh", "python", ""} and set(languages[1::2]) <= {""}
    others = re.sub(r"^```(sh|python)$.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^(?: {4}|\$ ).*\bpython\b.*", others, re.MULTILINE)
    plain = "".join(re.findall(r"^```\n(.*?)^```$", others, re.MULTILINE | re.DOTALL))
    assert not re.search(r"\bpython -m\b", plain), "a block without a language holds a command"


@pytest.mark.parametrize("page", documents.PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path), target


def anchors(path):
    """The names by which a page's headings are linked, as GitHub forms them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_lists_every_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[[\w -]+\]\(([\w-]+\.md)\) \|", text, re.MULTILINE)
    assert sorted([*listed, "index.md"]) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def navigation(entries):
    """Yield the pages of a navigation, which is a list of titles with a page or a list each."""
    for entry in entries:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else navigation(target)


def test_the_navigation_of_the_site_lists_every_page_once():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    # The file has tags of Python objects, which only MkDocs resolves.
    listed = sorted(navigation(yaml.safe_load(text[text.index("nav:") : text.index("theme:")])["nav"]))
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    # CHANGELOG.md lies outside docs/; a hook adds it.
    assert listed == sorted([*pages, "changelog.md"])


def test_the_extra_docs_names_what_the_lock_of_the_site_is_made_of():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    named = (ROOT / "docs" / "requirements.in").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in named if not line.startswith("#")]
    assert config["options.extras_require"]["docs"].split() == wanted
    lock = (ROOT / "docs" / "requirements.lock").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))
    assert wanted and {re.split(r"[\[><=]", line)[0] for line in wanted} <= pinned


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


@pytest.mark.parametrize("page", documents.PAGES, ids=IDS)
def test_modules_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"python -m ((?:kseg|serving|pipeline|benchmarks)[\w.]*\w)", text):
        assert module_path(name).is_file(), name
    for name in re.findall(r"`((?:kseg|serving|pipeline|benchmarks|configs|docs|tests)/[\w./-]*)`", text):
        assert (ROOT / name).exists() or name.startswith("serving/segmentation"), name


@pytest.mark.parametrize("page", documents.PAGES, ids=IDS)
def test_config_keys_that_a_page_names_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(rf"(?:`|`--set |[a-z0-9] )'?((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)(?=[=`])", text)
    config = configs.to_dict(configs.Config())
    for key in named:
        # The page of configs lists renamed keys, too.
        if not key.endswith((".md", ".py", ".json")) and key not in renames.KEYS:
            value = config
            for part in key.split("."):
                assert isinstance(value, dict) and part in value, key
                value = value[part]


@pytest.mark.parametrize("page, name, arguments", ALL_COMMANDS)
def test_options_and_values_of_a_command_exist(page, name, arguments, help_of):
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    if name.startswith("benchmarks."):
        # Their parsers cannot be asked without their peers' environments.
        source = module_path(name).read_text(encoding="utf-8")
        names = [option.removeprefix("--") for option in options]
        assert all(name in source or name.replace("-", "_") in source for name in names)
        return
    if name == "serving.server":
        # Arguments that it does not know are printed with the usage.
        with contextlib.redirect_stdout(io.StringIO()) as output:
            flags.parse_flags(arguments)
        assert not output.getvalue()
        return
    printed = help_of(name, *arguments[:1] if name in NESTED else ())
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", printed), option
    values = [number for number, word in enumerate(arguments) if word == "--set"]
    overrides = [word for number in values for word in following(arguments, number)]
    config = arguments[arguments.index("--config") + 1] if "--config" in arguments else "encnet_camvid"
    if config != "NAME":
        configs.load(config, overrides)


def following(arguments, index):
    """The values of an option that takes several."""
    end = next(
        (number for number in range(index + 1, len(arguments)) if arguments[number].startswith("--")), len(arguments)
    )
    return arguments[index + 1 : end]


@pytest.mark.parametrize(
    "text, runner, reason",
    [
        ("```sh\nls\n```\n", "test_end_to_end", ""),
        ("<!-- not run: slow -->\n```sh\nls\n```\n", "", "slow"),
        ("<!-- run by test_other -->\n```sh\nls\n```\n", "test_other", ""),
    ],
)
def test_a_marker_says_who_runs_a_block(text, runner, reason, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(text)
    monkeypatch.setattr(documents, "PAGES", (page,))
    assert documents.blocks() == [documents.Block(page, "ls\n", runner, reason)]


@pytest.mark.parametrize("marker", ["not run:", "not run: ", "skipped", "run by nobody"])
def test_a_marker_of_another_form_names_neither(marker, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {marker} -->\n```sh\nls\n```\n")
    monkeypatch.setattr(documents, "PAGES", (page,))
    assert documents.blocks() == [documents.Block(page, "ls\n", "", "")]
