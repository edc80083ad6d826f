"""Rank the page of messages first in the site's search, since messages are what people search for.

The theme takes this from front matter, which GitHub would show as a table above the page.
"""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the Markdown of a page as it is, and set the page's rank."""
    if page.file.src_uri == "troubleshooting.md":
        page.meta["search"] = {"boost": 4}
    return markdown
