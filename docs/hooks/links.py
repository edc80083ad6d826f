"""Adapt links that are made for GitHub to the site.

On GitHub `../serving/compose.yaml` leads to the file. The site holds only docs/, so this hook of MkDocs adds pages
that show those files, and points the links to them. The name of a page as the text of its link becomes its title.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# Markdown files outside docs/, with their addresses in the site's navigation.
PAGES = {"CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"\]\(\.\./(?P<path>[^)#\s]+)")
# The marker above a shell block says which test runs it; it is for contributors.
MARKER = re.compile(r"^<!-- (?:not run: |run by )[^\n]* -->\n", re.MULTILINE)
NAMED = re.compile(r"\[(?P<name>[\w-]+\.md)\]\((?P=name)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cfg": "ini", ".toml": "toml", ".md": "markdown"}


def address(path: str) -> str:
    """Return the address, below docs/, of the page that shows a file or directory of the repository."""
    return PAGES.get(path) or f"files/{path.rstrip('/')}.md"


def listing(path: Path) -> str:
    """Return a file in a code block, or every file of a directory in a block below its name."""
    if path.is_file():
        return f"```{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return "\n".join(f"## {file.relative_to(path)}\n\n{listing(file)}" for file in files)


def titles(navigation: list) -> Iterator[tuple[str, str]]:
    """Yield (page, title) of a navigation, which is a list of titles with a page or a list each."""
    for entry in navigation:
        for title, target in entry.items():
            yield from [(target, title)] if isinstance(target, str) else titles(target)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file and directory outside docs/ that some page links to."""
    for name, target in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text.replace("](docs/", "](")))
    pages = [file for file in files.documentation_pages() if file.generated_by is None]
    linked = {match["path"] for file in pages for match in LINK.finditer(file.content_string)}
    for path in sorted(linked - PAGES.keys()):
        # A link to nothing is left as it is, and the strict build refuses it.
        if (ROOT / path).exists():
            files.append(File.generated(config, address(path), content=f"# `{path}`\n\n{listing(ROOT / path)}"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files outside docs/ to their pages, name links by title, and drop the markers of shell blocks."""
    title_of = dict(titles(config.nav))

    def inside(match: re.Match) -> str:
        target = address(match["path"])
        return f"]({target}" if files.get_file_from_path(target) else match[0]

    named = NAMED.sub(lambda match: f"[{title_of[match['name']]}]({match['name']}", MARKER.sub("", markdown))
    return LINK.sub(inside, named)
