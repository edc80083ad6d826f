"""Refuse a page that would load a script, a style, a font or an image from the network."""

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]+")


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Return the HTML of a page as it is; raises PluginError if it names something of the network."""
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from the network: {found[0]}")
    return output
