"""Error rates of the statistics of ``experiments.study.significance``, on simulated scores with a known truth.

    python -m benchmarks.simulated_scores --out result.json

Seeds: n paired differences whose true mean is zero, from a normal distribution, a skewed one (exponential) and one with
collapses (normal, but one run in ten loses 20 standard deviations; the mean is put back to zero). Counted are the
sign-flip tests with p <= 0.05, alone and as the smallest of eight after Holm's correction, and the intervals that do
not hold zero. Almost stochastic order: n scores each of two methods of the same distribution, whose seeds share nothing
or most of their variance; counted are the bounds below 0.5 and below 0.2.

Examples: two methods, equally good over all seeds, examples and labels. A model is right about an example with a chance
(probit) that depends on the example, on the method's own leaning for that example, and on the seed's luck. ``luck`` is
the deviation of a seed's accuracy in points. Counted are the tests with p <= 0.05 and the intervals that do not hold
zero: for these tests 0.05 is right if luck is none; with luck, only those that draw seeds too speak of methods.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.benchmark_figures import write_json
from benchmarks.benchmark_parser import at_least_one, make_parser
from data_utils.command_line import status_of
from data_utils.task_def import Metric
from experiments.study.comparison.example_comparisons import draw_seeds
from experiments.study.statistics.example_bootstrap import resampled_scores
from experiments.study.statistics.intervals import Interval, bca_interval, bootstrap_p, percentile_interval, t_interval
from experiments.study.statistics.paired_tests import LEVEL, holm, mcnemar, pooled_mcnemar, sign_flip
from experiments.study.statistics.stochastic_order import almost_stochastic_order

SEEDS = (5, 10, 20)
LUCK = (0.0, 1.5, 5.0)
FAMILY = 8
EXAMPLES = 300
RESAMPLES = 999
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Rate:
    """The share of the trials in which something went wrong."""

    what: str
    data: str
    n: int
    """Seeds."""
    rate: float
    """Of false positives, or of intervals that do not hold the truth; 0.05 is right."""
    standard_error: float
    trials: int


DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed": lambda rng, n: rng.exponential(size=n) - 1.0,
    "collapses": lambda rng, n: rng.normal(size=n) - 20.0 * (rng.random(n) < 0.1) + 2.0,
}


def seed_rates(name: str, n: int, trials: int, rng: np.random.Generator) -> list[Rate]:
    """False positives and misses over n seeds of one distribution."""
    draw = DISTRIBUTIONS[name]
    wrong: dict[str, list[bool]] = {"sign-flip p <= 0.05": [], "t interval": [], "BCa interval": []}
    p_values = []
    for trial in _bar(trials, f"{name}, {n} seeds"):
        d = draw(rng, n).tolist()
        p_values.append(sign_flip(d).p)
        wrong["sign-flip p <= 0.05"].append(p_values[-1] <= LEVEL)
        wrong["t interval"].append(_misses(t_interval(d)))
        wrong["BCa interval"].append(_misses(bca_interval(d, resamples=RESAMPLES, seed=trial)))
    found = [_rate(what, name, n, hits) for what, hits in wrong.items()]
    families = np.array(p_values[: trials // FAMILY * FAMILY]).reshape(-1, FAMILY)
    found.append(_rate(f"any of {FAMILY} after Holm", name, n, [min(holm(f.tolist())) <= LEVEL for f in families]))
    return found


def order_rates(shared: float, n: int, trials: int, rng: np.random.Generator) -> list[Rate]:
    """Claims of almost stochastic order between two methods of one distribution.

    Args:
        shared: Share of the variance that the two methods' runs of one seed have in common.
        n: Seeds.
        trials: Pairs of samples.
        rng: Draws them.
    """
    bounds = []
    for trial in _bar(trials, f"stochastic order, {n} seeds"):
        own, common = rng.normal(size=(2, n)), rng.normal(size=n)
        a, b = math.sqrt(1 - shared) * own + math.sqrt(shared) * common
        bounds.append(almost_stochastic_order(a.tolist(), b.tolist(), resamples=RESAMPLES, seed=trial).bound)
    data = f"normal, {shared:.0%} shared by seed"
    return [_rate(f"epsilon_min < {limit}", data, n, [bound < limit for bound in bounds]) for limit in (0.5, 0.2)]


def example_rates(metric: Metric, luck: float, n: int, trials: int, rng: np.random.Generator) -> list[Rate]:
    """False positives over dev examples.

    Args:
        metric: The task's.
        luck: Standard deviation of a seed's accuracy, in points.
        n: Seeds.
        trials: Pairs of methods.
        rng: Draws them.
    """
    wrong: dict[str, list[bool]] = {
        "McNemar, one seed": [], "McNemar, pooled": [], "these models": [], "new models": [],
    }  # fmt: skip
    for trial in _bar(trials, f"{metric}, luck {luck}, {n} seeds"):
        right, labels = _draw_models(luck, n, rng)
        predicted = np.where(right, labels, 1 - labels)  # (2, n, N)
        scores = resampled_scores(
            metric, predicted.reshape(2 * n, -1), labels, RESAMPLES, np.random.default_rng([trial, 0])
        )
        differences = scores[:, :n] - scores[:, n:]
        wrong["McNemar, one seed"].append(mcnemar(right[0, 0], right[1, 0]).p <= LEVEL)
        wrong["McNemar, pooled"].append(pooled_mcnemar((right[0].astype(int) - right[1]).sum(axis=0)) <= LEVEL)
        wrong["these models"].append(_misses(percentile_interval(differences.mean(axis=1))))
        wrong["new models"].append(bootstrap_p(draw_seeds(differences, trial)) <= LEVEL)
    return [_rate(what, f"{metric}, luck {luck:g} points", n, hits) for what, hits in wrong.items()]


def _draw_models(luck: float, n: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(2, n, N) whether each model is right, and (N,) labels, three in ten of class 0."""
    from scipy.stats import norm

    hardness = rng.normal(1.2, 1.0, size=EXAMPLES)
    leaning = rng.normal(0.0, 0.3, size=(2, 1, EXAMPLES))
    # Near 77 % accuracy a point is this much on the probit scale: the density of hardness + leaning + noise at zero.
    per_point = 0.01 / norm.pdf(0.0, 1.2, math.sqrt(1.0 + 0.3**2 + 1.0))
    of_seed = rng.normal(0.0, luck * per_point, size=(2, n, 1))
    right = hardness + leaning + of_seed + rng.normal(size=(2, n, EXAMPLES)) > 0
    return right, (rng.random(EXAMPLES) > 0.3).astype(np.int64)


def _misses(interval: Interval) -> bool:
    return not interval.low <= 0.0 <= interval.high


def _rate(what: str, data: str, n: int, hits: list[bool]) -> Rate:
    rate = float(np.mean(hits))
    return Rate(what, data, n, rate, math.sqrt(rate * (1 - rate) / len(hits)), len(hits))


def _bar(trials: int, text: str) -> Iterator[int]:
    yield from tqdm(range(trials), desc=text, disable=not sys.stderr.isatty(), leave=False)


def measure(trials: int, seed: int = 0) -> list[Rate]:
    """All rates.

    Args:
        trials: Of each setting; at least 8.
        seed: Of everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    found: list[Rate] = []
    for n in SEEDS:
        for name in DISTRIBUTIONS:
            found += seed_rates(name, n, trials, rng)
        for shared in (0.0, 0.8):
            found += order_rates(shared, n, trials, rng)
    for n in (5, 10):
        for metric in (Metric.ACC, Metric.MCC):
            for luck in LUCK:
                found += example_rates(metric, luck, n, trials, rng)
    return found


def main() -> None:
    """Command line."""
    parser = make_parser("simulated_scores", __doc__)
    parser.add_argument("--trials", type=at_least_one, default=2000, help="of each setting; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn; default: %(default)s")
    chosen = parser.parse_args()
    if chosen.trials < FAMILY:
        parser.error(f"--trials {chosen.trials}: at least {FAMILY}, one family for Holm's correction")
    found = measure(chosen.trials, chosen.seed)
    for one in found:
        print(f"{one.data:32} {one.n:2} seeds  {one.what:24} {one.rate:.3f} +- {one.standard_error:.3f}")
    versions = {name: version(name) for name in ("numpy", "scipy")}
    result: dict[str, Any] = {
        "trials": chosen.trials, "seed": chosen.seed, "resamples": RESAMPLES, "versions": versions,
        "rates": [asdict(one) for one in found],
    }  # fmt: skip
    write_json(chosen.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
