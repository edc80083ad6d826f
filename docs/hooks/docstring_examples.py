"""Let mkdocstrings see the sections `Example:` of docstrings, which it knows as `Examples:` only."""

import re

import griffe


class SingularExamples(griffe.Extension):
    """Rename the heading of the section."""

    def on_object(self, *, obj: griffe.Object, **others: object) -> None:
        """Change the docstring of a module, class, function or attribute, before it is parsed."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
