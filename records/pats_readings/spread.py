"""Spread of the seeds of every variant over those of plain: PYTHONPATH=. python records/pats_readings/spread.py."""

import csv
from collections import defaultdict
from pathlib import Path

from experiments.study.statistics.spread import spread_ratio
from experiments.study.texts import csv_text, write_texts

HERE = Path(__file__).parent

scores: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
with (HERE / "table_seeds.csv").open(newline="") as file:
    for line in csv.DictReader(file):
        scores[line["selection"], line["task"], line["method"]][int(line["seed"])] = float(line["score"])
rows: list[list[object]] = [
    ["selection", "task", "variant", "pairs", "ratio_of_std", "low", "high", "p_pitman_morgan", "p_brown_forsythe"]
]
for (selection, task, variant), by_seed in scores.items():
    if variant != "plain":
        plain = scores[selection, task, "plain"]
        one = spread_ratio(*zip(*((by_seed[seed], plain[seed]) for seed in plain), strict=True))
        interval = one.interval
        rows.append(
            [selection, task, variant, one.n, one.ratio, interval.low, interval.high, one.p, one.p_brown_forsythe]
        )
write_texts(HERE, {"spread.csv": csv_text(rows)})
