"""Extension of griffe: roles of reStructuredText in docstrings, such as ``:class:`RunConfig```, become Markdown."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]+\.)?([^`]+)`")


class DocstringRoles(griffe.Extension):
    """Applied to every docstring of the reference."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was just loaded."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
