"""One look for all figures: sizes, fonts, colours with line styles and markers; same runs, same bytes.

Everything is drawn inside :func:`style`, at the size at which it is printed, so that text keeps its size on the page.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_utils.atomic import write_bytes_atomic
from experiments.study.texts import csv_text, write_texts

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.3  # inches: one column of a two-column page
GREY = "#555555"
# Okabe and Ito's colours, told apart with any colour vision; 7 colours and 4 dashes make 28 different lines.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7.5, "legend.frameon": False, "legend.handlelength": 2.4,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.axisbelow": True,
    "axes.titlelocation": "left", "lines.linewidth": 1.3, "lines.markersize": 3.5,
    "grid.color": "#dddddd", "grid.linewidth": 0.5,
    # Fonts go into the PDF as TrueType, which publishers' checks want: type 3 is the default.
    "pdf.fonttype": 42, "ps.fonttype": 42,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """Colour, dash and marker of one method in every panel."""

    colour: str
    dash: Any
    marker: str


def look(index: int) -> Look:
    """The look of a table's method by its place in the table."""
    return Look(_COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)])


@contextmanager
def style() -> Iterator[None]:
    """Set this project's figure settings, in place of the user's own, while entered."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def canvas(rows: int, columns: int, width: float, height: float, **subplots: Any) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        width: Of the whole figure, inches.
        height: The same.
        **subplots: To ``Figure.subplots``, such as ``sharex``.
    """
    # Not pyplot: no display is asked for and no global figure is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)


def heading(figure: Figure, text: str, size: float = 8) -> None:
    """Put a title at the figure's upper left, broken into lines where it is too wide."""
    characters = int(figure.get_figwidth() * 132 / size)
    figure.suptitle(textwrap.fill(text, characters), fontsize=size, x=0.01, ha="left")


def legend_below(figure: Figure, handles: Sequence[Artist], **options: Any) -> None:
    """Put a legend under the axes, in as many columns as the figure's width has room for."""
    if not handles:
        return
    room = figure.get_figwidth() * figure.dpi
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, **options)
        if columns == 1 or legend.get_window_extent().width <= room:
            return
        legend.remove()


def legend_of_lines(figure: Figure, labels: Iterable[str], markers: bool = True) -> None:
    """Put a legend of the first methods' looks under the axes, in the order of the labels."""
    from matplotlib.lines import Line2D

    handles = []
    for i, label in enumerate(labels):
        shown = look(i)
        marker = shown.marker if markers else ""
        handles.append(Line2D([], [], color=shown.colour, linestyle=shown.dash, marker=marker, label=label))
    legend_below(figure, handles)


def mean_and_band(
    axis: Axes, x: npt.ArrayLike, values: npt.NDArray[np.float64], shown: Look, markers: bool = True
) -> None:
    """Draw the mean over seeds and, from two seeds on, a band of one sample standard deviation to either side.

    Args:
        axis: Where.
        x: (N,) places.
        values: (seeds, N); NaN leaves a gap.
        shown: Colour, dash and marker.
        markers: Whether every place gets one.
    """
    mean, std = mean_std(values)
    axis.plot(x, mean, color=shown.colour, linestyle=shown.dash, marker=shown.marker if markers else "", zorder=3)
    if len(values) > 1:
        axis.fill_between(x, mean - std, mean + std, color=shown.colour, alpha=0.2, linewidth=0, zorder=2)


def mean_std(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(seeds, N) -> (N,) mean and (N,) sample standard deviation, NaN with one seed."""
    std = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)
    return values.mean(axis=0), std


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF, each whole or not at all, without dates: the same runs give the same bytes.

    Args:
        figure: Drawn inside :func:`style`, as this call is.
        stem: Path of the files without suffix.

    Returns:
        The PNG and the PDF.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
    for file in files:
        buffer = io.BytesIO()
        metadata = {"CreationDate": None} if file.suffix == ".pdf" else {}
        figure.savefig(buffer, format=file.suffix[1:], dpi=300, metadata=metadata)
        write_bytes_atomic(file, buffer.getvalue())
        figure.set_layout_engine("none")  # the second file has the first one's layout, without its work
    return files


def save_data(stem: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write a figure's numbers beside it as ``<stem>.csv``, the header first, and return the file."""
    return write_texts(stem.parent, {f"{stem.name}.csv": csv_text(rows)})[0]


def swarm(n: int, width: float = 0.08) -> list[float]:
    """Offsets that keep n equal dots from hiding each other, in the order of the seeds."""
    return list(np.linspace(-width, width, n)) if n > 1 else [0.0] * n
