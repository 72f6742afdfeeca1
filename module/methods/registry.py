"""Methods by name: this project's own, and those of installed packages, imported at their look-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points

from ..method import AnyMethod, FineTuningMethod
from .twin import answer_to_both_names


class Registry(Mapping[str, type[AnyMethod]]):
    """Name -> class of a method: the project's own in their order, then those of packages.

    The metadata of installed packages give the names. Their code runs when a name is looked up and not before, so that
    a broken package matters only to runs of its method.

    Args:
        own: The project's methods.
        group: Group of the entry points that declare others, each ``name = "package.module:Class"``.
    """

    def __init__(self, own: Sequence[type[AnyMethod]], group: str) -> None:
        self._group = group
        self._classes = {method.name: method for method in own}
        self._declared: dict[str, list[EntryPoint]] = {}
        self.trouble = ""
        """Reason for which methods of packages are unknown; empty where there is none."""
        try:
            points: Sequence[EntryPoint] = tuple(entry_points(group=group))
        except Exception as error:  # the metadata of a package that may have nothing to do with methods
            points = ()
            self.trouble = f"the metadata of installed packages cannot be read: {' '.join(str(error).split())[:200]}"
        for point in points:
            self._declared.setdefault(point.name, []).append(point)
        self._own = tuple(self._classes)
        self.own = tuple(name for name in self._own if name not in self._declared)
        """Names of the project's methods, but for those that a package takes too."""
        self.foreign = tuple(name for name in self._declared if name not in self._classes)
        """Names of the methods that packages bring."""

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, *self.foreign))

    def __len__(self) -> int:
        return len(self._own) + len(self.foreign)

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in self._declared

    def __getitem__(self, name: str) -> type[AnyMethod]:
        """Return a method's class.

        Raises:
            KeyError: If no method is called that.
            ValueError: If a package declares it that cannot be imported, has no method there, or takes the name of
                another method.
        """
        points = self._declared.get(name, [])
        if not points:
            return self._classes[name]
        where = f"Method {name!r} of an installed package (entry point {points[0].value} of group {self._group})"
        if not name.isidentifier():
            raise ValueError(f"{where} has a name that no setting can have: use letters, digits and _")
        if len(points) > 1 or name in self._own:
            raise ValueError(f"{where} takes the name of another method: uninstall one of them, or rename it")
        if name not in self._classes:
            self._classes[name] = _load(points[0], where)
        return self._classes[name]

    def title(self, name: str) -> str:
        """Return a method's title; its name where it is unknown or cannot be imported."""
        try:
            return self[name].title
        except (KeyError, ValueError):
            return name


def _load(point: EntryPoint, where: str) -> type[AnyMethod]:
    answer_to_both_names()
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{where} cannot be imported: {reason[:200]}") from error
    if not (isinstance(found, type) and issubclass(found, FineTuningMethod)) or found.name != point.name:
        raise ValueError(f"{where} is no subclass of FineTuningMethod with name = {point.name!r}")
    return found
