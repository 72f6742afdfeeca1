"""Compile what is compiled at its first use: the bytecode of slow libraries, and the kernels of the CPU.

scripts/run_tests.sh runs it on the core that an installation leaves idle: each of pytest's processes would else do it.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

from module.kernels import compiled


def regions() -> Iterator[compiled.Region]:
    """The compiled loops of all kernels."""
    for path in sorted(Path(compiled.__file__).parent.glob("cpu*.py")):
        found = vars(importlib.import_module(f"module.kernels.{path.stem}")).values()
        yield from (value for value in found if isinstance(value, compiled.Region))


def main() -> None:
    """Compile everything."""
    for name in ("tests.slow_imports", "matplotlib.pyplot", "pandas"):
        importlib.import_module(name)
    for region in regions():
        assert region._address


if __name__ == "__main__":
    main()
