"""Tensors of the user's own choice: by a function of name and parameter, or by globs on the names."""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from .param_index import strip_wrappers

Chosen = Callable[[str, Any], bool] | str | Iterable[str]
"""A function of name and parameter, a glob, or several."""


class Choice:
    """Says once of each parameter, when it is first asked, whether it is chosen.

    Args:
        setting: Its name, for messages: ``perturb`` or ``scale``.
        given: A function ``(name, parameter) -> bool``; or globs such as ``encoder.layer.*.output.dense.weight``, where
            ``*`` stands for anything, dots too. Globs are compared with the names as given and without wrappers.

    Raises:
        TypeError: If it is neither.
    """

    def __init__(self, setting: str, given: Chosen) -> None:
        self.setting = setting
        self._function = given if callable(given) else None
        globs = [given] if isinstance(given, str) else [*given] if isinstance(given, Iterable) else []
        if self._function is None and not (globs and all(isinstance(glob, str) for glob in globs)):
            raise TypeError(
                f"Invalid {setting}: {given!r}: a function (name, parameter) -> bool, a glob on names, or a list of "
                "globs is needed (True and False are for parameter groups)"
            )
        self._globs = globs
        self._known: dict[str, bool] = {}

    def __call__(self, name: str, parameter: Any) -> bool:
        """Whether a parameter is chosen."""
        if name not in self._known:
            short = strip_wrappers(name)
            named = any(fnmatchcase(name, glob) or fnmatchcase(short, glob) for glob in self._globs)
            self._known[name] = named if self._function is None else bool(self._function(name, parameter))
        return self._known[name]

    def check(self, names: Sequence[str]) -> None:
        """Refuse globs that match no name.

        Raises:
            ValueError: With the nearest names, their numbers as ``*``.
        """
        shorts = [strip_wrappers(name) for name in names]
        for glob in self._globs:
            if not any(fnmatchcase(name, glob) for name in (*names, *shorts)):
                folded = {re.sub(r"(?<=\.)\d+(?=\.)", "*", short) for short in shorts}
                nearest = get_close_matches(glob, sorted(folded), 3, cutoff=0.0)
                raise ValueError(
                    f"Invalid {self.setting}: {glob!r} matches no name: nearest: {', '.join(nearest) or 'no names'}"
                )


def named_parameters(given: Any, who: str) -> list[tuple[str, Any]]:
    """Return pairs of name and parameter of what is a model or gives such pairs.

    Raises:
        ValueError: If there are no names.
    """
    pairs = list(given.named_parameters() if hasattr(given, "named_parameters") else given)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise ValueError(
            f"{who} chooses tensors by their names: pass the model, or model.named_parameters(), not model.parameters()"
        )
    return pairs


def own_names(perturb: Chosen, named: Sequence[tuple[str, Any]]) -> set[str]:
    """Return the names of the parameters that are chosen; errors are those of :class:`Choice`."""
    choice = Choice("perturb", perturb)
    choice.check([name for name, _ in named])
    return {name for name, parameter in named if choice(name, parameter)}


def flag_of(group: dict[str, Any], key: str) -> bool | None:
    """Return what a parameter group says of all its tensors, None if it says nothing.

    Raises:
        ValueError: If it is no flag.
    """
    flag = group.get(key)
    if flag not in (None, True, False):
        raise ValueError(
            f"Invalid {key} of a parameter group: {flag!r}: True or False is needed (a function or globs are for the "
            f"constructor's {key}=)"
        )
    return None if flag is None else bool(flag)
