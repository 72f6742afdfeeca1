"""CoLA's dev rows by domain: from a publication that the training set has rows of, or from another one.

    python -m experiments.glue.cola_domains data/CoLA --out data/cola_domains.tsv
    python -m experiments.study.robustness runs --parts cola_dev=data/cola_domains.tsv

writes ``uid <tab> in_domain | out_of_domain`` for each row of dev.tsv, with the uids of the canonical file. GLUE's dev
set joins CoLA's own in-domain and out-of-domain dev sets (Warstadt et al. 2019, 527 and 516 rows) and keeps the source
of each row, the first column of the raw files, which tells them apart.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_utils.atomic import write_text_atomic
from data_utils.canonical_tsv import iterate_lines, split_row, without_blank_end
from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError
from experiments.glue.glue_readers import TASKS

IN, OUT = "in_domain", "out_of_domain"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = CommandParser("python -m experiments.glue.cola_domains", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with CoLA's raw train.tsv and dev.tsv")
    parser.add_argument("--out", type=Path, default=Path("data/cola_domains.tsv"), help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    return status_of(lambda: write_domains(chosen.folder, chosen.out))


def write_domains(folder: Path, out: Path) -> None:
    """Write the domain of each dev row.

    Raises:
        SettingError: files that are not CoLA's raw ones, or dev rows of one domain alone.
        OSError: a file cannot be read or written.
    """
    trained_on = set(_sources(folder / "train.tsv"))
    domains = [IN if source in trained_on else OUT for source in _sources(folder / "dev.tsv")]
    counts = {name: domains.count(name) for name in (IN, OUT)}
    if not all(counts.values()):
        found = f"all rows of dev.tsv are {domains[0]}" if domains else "dev.tsv holds no rows"
        raise SettingError(f"{folder}: {found}; give GLUE's CoLA, whose dev set has both domains")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out, "".join(f"{uid}\t{domain}\n" for uid, domain in enumerate(domains)))
    print(f"{out}: {counts[IN]} rows {IN}, {counts[OUT]} rows {OUT}")


def _sources(path: Path) -> Iterator[str]:
    """The publication that each row of a raw file is from."""
    columns = TASKS["cola"].headerless
    for number, line in without_blank_end(iterate_lines(path)):
        yield split_row(path, number, line, columns, "give the raw file of GLUE, whose rows name their source")[0]


if __name__ == "__main__":
    sys.exit(main())
