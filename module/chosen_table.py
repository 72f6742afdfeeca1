"""Tensors that are treated specially, told to the user: one line for the log, and a table."""

import re
from collections.abc import Sequence

from .layer_stack import LayerStack
from .param_index import ParamInfo, strip_wrappers

Row = tuple[ParamInfo, bool]
"""A parameter and whether it is chosen."""


def chosen_line(verb: str, rows: Sequence[Row], stacks: Sequence[LayerStack]) -> str:
    """Return a line such as ``PATS perturbs 72 tensors (7.1 M entries) in 6 layers under encoder.layer``.

    Args:
        verb: With its subject, such as ``PATS perturbs``.
        rows: Of all parameters; frozen ones do not count.
        stacks: Of the network.
    """
    chosen = [info for info, is_chosen in rows if is_chosen and info.parameter.requires_grad]
    layers = {info.layer for info in chosen if info.layer is not None}
    found = [s for s in stacks if any(s.split(strip_wrappers(info.name)) for info in chosen)]
    outside = sum(info.layer is None for info in chosen)
    where = []
    if layers:
        under = " and ".join(stack.prefix for stack in found if stack.prefix)
        where.append(f"in {len(layers)} layer{'s' * (len(layers) > 1)}" + (f" under {under}" if under else ""))
    if outside:
        where.append(f"{outside} of them outside of layers" if layers else "outside of layers")
    entries = _number(sum(info.parameter.numel() for info in chosen))
    return f"{verb} {len(chosen)} tensors ({entries} entries) {', '.join(where)}".rstrip()


def chosen_table(verb: str, rows: Sequence[Row], stacks: Sequence[LayerStack]) -> str:
    """Return a table of all parameters, those of equal names in all layers in one row; the line is below it."""
    counts: dict[tuple[str, ...], list[int]] = {}
    for info, is_chosen in rows:
        trained = "yes" if is_chosen else "no"
        what = trained if info.parameter.requires_grad else "frozen"
        name = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", strip_wrappers(info.name)) if info.in_layer else info.name
        count = counts.setdefault((what, info.role.value, info.kind.value, name), [0, 0])
        count[0] += 1
        count[1] += info.parameter.numel()
    heads = (verb.rsplit(maxsplit=1)[-1], "tensors", "entries", "role", "kind", "name")
    cells = [(what, str(n), _number(m), role, kind, name) for (what, role, kind, name), (n, m) in counts.items()]
    widths = [max(len(row[i]) for row in (heads, *cells)) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *cells)]
    return "\n".join([*(line.rstrip() for line in lines), chosen_line(verb, rows, stacks)])


def _number(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 100_000 else str(n)
