"""The flags of a search, and their legal ranges."""

from __future__ import annotations

import argparse

from data_utils.errors import SettingError, shown
from experiments.study.search.trials import SAMPLERS

_LIMIT = 2**31


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a search."""
    group = parser.add_argument_group("search", "instead of a table, choose settings from the recipes' grids")
    group.add_argument(
        "--search", choices=SAMPLERS,
        help="every combination (or with --trials a random part of them), a quasi-random sequence over the grid, or "
        "optuna's TPE (requirements-search.txt)",
    )  # fmt: skip
    group.add_argument("--trials", type=int, help="settings to try per encoder, method and task; grid: default all")
    group.add_argument(
        "--search_seeds", default="101,", metavar="SEEDS",
        help="seeds of every trial, whose scores are averaged; none of --seeds, which the table of the chosen settings "
        "reports; default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--sampler_seed", type=int, default=0, help="another one gives other trials; default: %(default)s"
    )
    group.add_argument(
        "--tpe_round", type=int, default=4, metavar="N",
        help="trials that TPE asks for at a time: more keep more workers busy, fewer learn more from those before; "
        "default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--prune_after", type=int, metavar="EPOCHS",
        help="median pruning: after so many epochs give up a trial that is below the median of the others at the same "
        "epoch; the tables say so; default: off",
    )  # fmt: skip


def check_search_arguments(chosen: argparse.Namespace) -> None:
    """Check the ranges of a search's flags.

    Raises:
        SettingError: one is out of its range or missing.
    """
    if chosen.trials is None and chosen.search != "grid":
        raise SettingError(f"--search {chosen.search} needs --trials, the number of settings to try; legal: >= 1")
    for name in ("trials", "tpe_round", "prune_after"):
        value = getattr(chosen, name)
        if value is not None and not 1 <= value < _LIMIT:
            raise SettingError(f"--{name} is {shown(value)}; legal: an integer in [1, 2^31)")
    if not 0 <= chosen.sampler_seed < _LIMIT:
        raise SettingError(f"--sampler_seed is {shown(chosen.sampler_seed)}; legal: an integer in [0, 2^31)")
