"""The figures of *Mean Replacement Pruning*, of what `experiments.mean_replacement` found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from experiments import figures, profiles
from experiments.mean_replacement_claims import SQUARES, TUNED_SCORES, Found
from experiments.removals import REPLACED, SCORES

LIMITS = (-0.1, 0.4)  # of the paper's scatter plots
EARLY = 0.3  # where the second half of Figure 7 starts: 10,000 of the paper's 35,000 steps


def draw(dataset: str, found: Found, directory: Path) -> None:
    """Draws figures 2 to 9 of the paper.

    Args:
      dataset: named in the titles.
      found: what to draw.
      directory: where to; it is made if it does not exist.
    """
    penalties(f"Figure 2. Penalties while training, {dataset}", found, _all(found), directory / "figure2_penalties.png")
    scatters(
        f"Figure 3. Penalties with zeros and with means, {dataset}",
        {"all choices of units": _pairs(found, range(len(found.choices)))},
        directory / "figure3_scatter.png",
    )
    late = found.tuned_steps > found.steps[-1] / 2
    tuned(
        f"Figure 4. After fine-tuning, second half of training, {dataset}", found, late, directory / "figure4_late.png"
    )
    profile(dataset, found, directory / "figure5_profile.png")
    followed(dataset, found, directory / "figure6_followed.png")
    selected(dataset, found, directory / "figure7_selected.png")
    tuned(
        f"Figure 8. After fine-tuning, first half of training, {dataset}", found, ~late, directory / "figure8_early.png"
    )
    by_layer = {}
    for number, choice in enumerate(found.choices):
        by_layer.setdefault(choice.layers, []).append(number)
    scatters(
        f"Figure 9. Penalties by layers, {dataset}",
        {layers: _pairs(found, numbers) for layers, numbers in by_layer.items()},
        directory / "figure9_layers.png",
    )


def interval(values: np.ndarray, share: float = 0.8) -> float:
    """Returns half the width of the confidence interval of a mean over seeds, by Student's t; 0 for one seed."""
    count = len(values)
    return float(stats.t.ppf((1 + share) / 2, count - 1) * figures.deviation(values) / count**0.5) if count > 1 else 0.0


def penalties(title: str, found: Found, number: int, path: Path) -> None:
    """Draws the penalties of one choice of units over training, with 80% intervals, loss and accuracy beside them."""
    drawn, axes = figures.figure(f"{title}: {found.choices[number].name}, 80% intervals", columns=4, width=4.4)
    _beside(axes, found, number)
    top = max(np.quantile(found.of(score, "zero")[..., number].mean(1), 0.95) for score in SCORES)
    for ax in axes[:2]:
        ax.set_ylim(-0.05 * top, 1.1 * top)
    figures.curves(axes[2], {"training images": found.loss}, "training step", "loss", found.steps, interval)
    accuracy = {"validation": found.accuracies}
    figures.curves(axes[3], accuracy, "training step", "accuracy %", found.steps, interval)
    figures.save(drawn, path)


def scatters(title: str, panels: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draws penalties with means over those with zeros, a panel each: below the diagonal the mean is better.

    Args:
      title: of the figure.
      panels: `{panel: {score: (2, points)}}`.
      path: where to.
    """
    drawn, axes = figures.figure(title, columns=len(panels), width=4.6, height=4.6)
    for ax, (name, series) in zip(axes, panels.items(), strict=True):
        _scatter(ax, name, series)
    figures.save(drawn, path)


def tuned(title: str, found: Found, marks: np.ndarray, path: Path) -> None:
    """Draws a scatter plot for every number of fine-tuning steps; nothing if copies were not fine-tuned then."""
    if not marks.any():
        return
    panels = {}
    for number, steps in enumerate(found.tuning):
        values = found.tuned[marks][..., number]
        panels[f"{steps} fine-tuning steps"] = {
            score: values[:, :, which].reshape(-1, 2).T for which, score in enumerate(TUNED_SCORES)
        }
    scatters(title, panels, path)


def profile(dataset: str, found: Found, path: Path) -> None:
    """Draws the performance profiles of the twelve methods."""
    drawn, axes = figures.figure(f"Figure 5. Performance profiles, {dataset}", width=7)
    taus = np.linspace(0, 1, 101)
    methods = [(score, how) for how in REPLACED for score in SCORES]
    values = np.stack([found.of(score, how).ravel() for score, how in methods])
    shares = profiles.performance(values, taus)
    for (score, how), share in zip(methods, shares, strict=True):
        colour, line = figures.COLOURS[SCORES.index(score)], {"zero": "--", "mean": "-"}[how]
        axes[0].plot(taus, share, color=colour, linestyle=line, linewidth=1.4, label=f"{score}, {how}")
    axes[0].set(xlabel="tau: 0 better than the worst, 1 the best", ylabel="share of measurements")
    axes[0].legend(fontsize=8, frameon=False, ncols=2)
    figures.save(drawn, path)


def followed(dataset: str, found: Found, path: Path) -> None:
    """Draws the penalties of one layer over training, and how active the units were that went."""
    number = found.followed
    drawn, axes = figures.figure(f"Figure 6. {found.choices[number].name}, {dataset}", columns=3, width=5)
    _beside(axes, found, number)
    top = max(ax.get_ylim()[1] for ax in axes[:2])
    for ax in axes[:2]:
        ax.set_ylim(top=top)
    counts = found.squares.sum((0, 1))
    for which, score in enumerate(SCORES):
        shares = counts[which] / counts[which].sum()
        axes[2].stairs(shares[1:], SQUARES[1:], color=figures.COLOURS[which], label=score, linewidth=1.2)
    axes[2].set(xscale="log", xlim=(1e-4, 1e3), xlabel="squared activation of removed units", ylabel="share")
    axes[2].legend(fontsize=8, frameon=False)
    figures.save(drawn, path)


def selected(dataset: str, found: Found, path: Path) -> None:
    """Draws the share of one layer's units that each score has chosen at least once."""
    drawn, axes = figures.figure(f"Figure 7. Units ever chosen, {found.choices[found.followed].name}, {dataset}", 2)
    early = int(EARLY * len(found.steps))
    for ax, start in zip(axes, (0, early), strict=True):
        ever = found._replace(gone=found.gone[start:]).ever
        series = {score: ever[..., which] for which, score in enumerate(SCORES)}
        label = f"training step, from {found.steps[start]:,} on"
        figures.curves(ax, series, label, "share of units", found.steps[start:], interval)
        ax.set_ylim(0, 1.05)
    figures.save(drawn, path)


def _beside(axes: Sequence[Axes], found: Found, number: int) -> None:
    """Draws the penalties of one choice of units over training, with zeros and with means beside each other."""
    for ax, how in zip(axes, REPLACED, strict=False):
        curves = {score: found.of(score, how)[..., number] for score in SCORES}
        figures.curves(ax, curves, "training step", f"penalty, {how}", found.steps, interval)


def _scatter(ax: Axes, title: str, series: Mapping[str, np.ndarray]) -> None:
    ax.plot(LIMITS, LIMITS, color="black", linewidth=0.8, linestyle=":")
    for index, (name, (zero, mean)) in enumerate(series.items()):
        style = {**figures.style(index), "s": 12, "alpha": 0.5, "linewidths": 0}
        ax.scatter(zero, mean, label=name, **style)
    outside = np.mean([(values < LIMITS[0]) | (values > LIMITS[1]) for values in series.values()], axis=0).any(0).mean()
    ax.set(xlim=LIMITS, ylim=LIMITS, xlabel="penalty, zero", ylabel="penalty, mean")
    ax.set_title(f"{title}; {outside:.0%} outside" if outside else title, fontsize=9)
    ax.legend(fontsize=8, frameon=False)


def _pairs(found: Found, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns `{score: penalties (2, points)}` of some choices of units."""
    chosen = found.penalties[:, :, list(numbers)]
    return {score: chosen[..., SCORES.index(score), :].reshape(-1, len(REPLACED)).T for score in TUNED_SCORES}


def _all(found: Found) -> int:
    """Returns the number of the choice of all layers whose amount is that of the followed one."""
    amount = found.choices[found.followed].amount
    return next(i for i, choice in enumerate(found.choices) if choice == ("all", amount))
