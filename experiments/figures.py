"""Pictures that every paper needs; each function draws on axes it is given.

Colours are Okabe and Ito's, which the colour-blind can tell apart; every series has a marker or a label of its own too.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"

Point = tuple[np.ndarray, np.ndarray]
"""`(x of every seed, y of every seed)`."""


def figure(
    title: str, columns: int = 1, width: float = 6.4, height: float = 4.2, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with axes in rows, drawn without a display."""
    drawn = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=130)
    axes = list(np.ravel(drawn.subplots(rows, columns)))
    drawn.suptitle(title, fontsize=11)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    return drawn, axes


def save(drawn: Figure, path: Path) -> Path:
    """Writes a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path)
    return path


def style(index: int) -> dict[str, str]:
    """Returns colour and marker of the n-th series."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def deviation(values: np.ndarray) -> float:
    """Returns the sample standard deviation over seeds; 0 for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def curves(
    ax: Axes,
    series: Mapping[str, np.ndarray],
    x_label: str,
    y_label: str,
    x: Sequence[float] | None = None,
    half: Callable[[np.ndarray], float] = deviation,
) -> None:
    """Draws a line a series with a band around it, of one standard deviation over seeds unless told otherwise.

    Args:
      ax: where.
      series: `{name: (points, seeds)}`.
      x_label: what the points count.
      y_label: what the values are.
      x: where the points are; 1, 2, ... if left out.
      half: values over seeds -> half the width of the band.
    """
    for index, (name, values) in enumerate(series.items()):
        places, mean = np.arange(1, len(values) + 1) if x is None else np.asarray(x), values.mean(1)
        colour = COLOURS[index % len(COLOURS)]
        ax.plot(places, mean, label=name, color=colour, linewidth=1.4, linestyle=("-", "--")[index // len(COLOURS)])
        around = np.array([half(row) for row in values])
        ax.fill_between(places, mean - around, mean + around, color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.legend(fontsize=8, frameon=False)


def points(ax: Axes, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> None:
    """Draws points with error bars over seeds, joined in the order of their x.

    Args:
      ax: where.
      series: `{name: points}`.
      x_label: what x is.
      y_label: what y is.
    """
    for index, (name, points) in enumerate(series.items()):
        ordered = sorted(points, key=lambda point: np.mean(point[0]))
        x, y = ([np.mean(point[i]) for point in ordered] for i in (0, 1))
        x_error, y_error = ([deviation(point[i]) for point in ordered] for i in (0, 1))
        ax.errorbar(x, y, y_error, x_error, label=name, capsize=2, markersize=5, linewidth=1.2, **style(index))
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.legend(fontsize=8, frameon=False)


def tradeoff(ax: Axes, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> None:
    """Draws `points` on a logarithmic x axis."""
    points(ax, series, x_label, y_label)
    ax.set(xscale="log")
    # Powers of ten are too far apart for what pruning covers.
    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def layers(ax: Axes, series: Mapping[str, Mapping[str, np.ndarray]], y_label: str) -> None:
    """Draws one group of points a layer, one series a method, with error bars over seeds.

    Args:
      ax: where.
      series: `{method: {layer: values over seeds}}`; all methods have the same layers.
      y_label: what the values are.
    """
    names = list(next(iter(series.values())))
    for index, (method, values) in enumerate(series.items()):
        offset = (index - (len(series) - 1) / 2) * 0.7 / max(len(series), 1)
        mean = [np.mean(values[name]) for name in names]
        error = [deviation(values[name]) for name in names]
        x = np.arange(len(names)) + offset
        ax.errorbar(x, mean, yerr=error, label=method, linestyle="", capsize=2, **style(index))
    crowded = {"rotation": 30, "ha": "right"} if len(names) > 4 else {}
    ax.set_xticks(range(len(names)), names, **crowded)
    ax.set(ylabel=y_label)
    ax.legend(fontsize=8, frameon=False)


def bell(ax: Axes, weights: np.ndarray, label: str, colour: str, fit: bool = False) -> None:
    """Draws the density of centred weights in units of their standard deviation, and on wish a Gaussian beside it.

    Args:
      ax: where.
      weights: any shape.
      label: the legend's entry.
      colour: of the outline.
      fit: whether to draw the standard normal density too.
    """
    flat = np.ravel(weights).astype(np.float64)
    scaled = (flat - flat.mean()) / flat.std(ddof=1)
    bins = np.linspace(-5, 5, 121)
    ax.hist(scaled, bins=bins, density=True, histtype="step", color=colour, label=label, linewidth=1.3)
    if fit:
        density = np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi)
        ax.plot(bins, density, color="black", linewidth=1, linestyle="--", label="Gaussian")
    ax.set(xlabel="(w - mean) / sigma", ylabel="density", xlim=(-5, 5))
    ax.legend(fontsize=8, frameon=False)


def contour(
    ax: Axes, xs: np.ndarray, ys: np.ndarray, heights: np.ndarray, marks: Mapping[str, np.ndarray], way: np.ndarray
) -> None:
    """Draws a landscape of positive heights as filled contours on a logarithmic scale, with marks and a way through it.

    Args:
      ax: where.
      xs: (m,).
      ys: (n,).
      heights: (n, m), > 0.
      marks: `{name: (x, y)}`.
      way: (points, 2).
    """
    levels = np.geomspace(heights.min(), heights.max(), 20)
    filled = ax.contourf(xs, ys, heights, levels, norm=LogNorm(), cmap="viridis")
    bar = ax.figure.colorbar(filled, ax=ax, format=FuncFormatter(lambda value, _: f"{value:.2g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    ax.plot(*way.T, color="white", linewidth=1.4, linestyle="--")
    for index, (name, place) in enumerate(marks.items()):
        ax.plot(*place, label=name, linestyle="", markersize=7, markeredgecolor="white", **style(index))
    ax.grid(visible=False)
    ax.legend(fontsize=8)
