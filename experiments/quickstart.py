"""The main job: train a network, prune it with every method there is, and compare the results with honest controls.

    python -m experiments quickstart

Every network sees the same number of epochs in all, in cosine cycles. Methods that start from a trained network train
it for all cycles but the last, prune it, and fine-tune it for the last one; the others take all cycles at once. The
controls are the dense network trained on for the last cycle, and a thin dense network with as many parameters as
pruning leaves. Whole units go too, until a share of the multiply-adds is left; that network is cut to its size, and its
control is a thin dense network of as many multiply-adds.
"""

import dataclasses
from pathlib import Path

from experiments import compiling, contenders, figures, models, results, setup, shrinking, stages
from experiments.bench import Bench, Options
from experiments.results import Measured

METHODS: tuple[contenders.Name, ...] = (
    "one-shot magnitude",
    "adaptive sparsity",
    "AutoPrune",
    "gradual magnitude",
    "RigL",
    "thin dense",
)


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """The main job: a dense network, every pruning method, and controls, as a table and a picture."""

    target: float = 0.85
    """Sparsity of the pruned layers in the table."""
    sweep: tuple[float, ...] = (0.5, 0.7, 0.9, 0.95)
    """Further sparsities, for the trade-off picture."""
    share: float = 0.5
    """Share of the multiply-adds that stays where units are removed."""


def main(config: Config) -> Path:
    """Trains everything, prints the table, writes report, picture and logs, and returns the folder they are in."""
    config = setup.filled(config, setup.gates(config.dataset, config.model))
    dataset, model, recipe = setup.resolve(config)
    stages.check(recipe.cycles)
    directory = config.results / "quickstart" / f"{config.dataset}-{type(model).__name__}"
    bench = Bench(dataset, model, recipe, directory, config)
    with compiling.once():
        controls = bench.controls()
        units, cut = shrinking.rows(bench, bench.start, config.share)
        units.append(thin_row(bench, config.share))
        shares = sorted({config.target, *config.sweep})
        rows = {share: list(contenders.networks(bench, METHODS, share)) for share in shares}
        averaged = list(stages.averaged_rows(bench, *setup.averaging(config.dataset, config.model), config.mus))
    nearest = min(averaged, key=lambda network: abs(network.sparsity.mean() - 100 * config.target))
    report = describe(config, [*controls, *rows[config.target], nearest, *units], cut)
    print(report)
    pruned = [network for group in rows.values() for network in group] + averaged
    draw(config, controls[1], pruned, directory / "tradeoff.png")
    networks = controls + pruned + units
    results.write(directory, report, config, recipe, networks)
    print(f"\nreport, picture and logs are in {directory}")
    return directory


def thin_row(bench: Bench, share: float) -> Measured:
    """Returns the thin dense network with a share of the multiply-adds."""
    model = models.thin(bench.model, round(share * bench.multiply_adds(bench.model)), bench.multiply_adds)
    return stages.thin_row(bench, "thin dense, multiply-adds", share, model)


def describe(config: Config, networks: list[Measured], cut: shrinking.Cut) -> str:
    """Returns the report: one row a network, and what cutting one to its size gains."""
    return (
        f"# Quickstart on {config.dataset}: {config.target:.0%} of the weights of the pruned layers removed\n\n"
        f"{config.seeds} seeds, mean ± standard deviation. The test split was used once, after training. Training "
        f"seconds are for all seeds together, without compilation; multiply-adds are per image, and nothing here skips "
        f"zeros for you. Where units are replaced, and in their control, {config.share:.0%} of the multiply-adds are "
        f"left.\n\n"
        f"{results.network_table(networks)}\n\n"
        f"The same network without its zeros: every seed's arrays are cut, and it computes what it did.\n\n"
        f"{shrinking.describe(cut)}\n"
    )


def draw(config: Config, control: Measured, networks: list[Measured], path: Path) -> None:
    """Draws test accuracy against compression for every method."""
    names = dict.fromkeys(network.name for network in networks)
    series = {name: [(n.compression, n.accuracy) for n in networks if n.name == name] for name in names}
    drawn, axes = figures.figure(f"Accuracy against compression, {config.dataset}: all, and near the dense network", 2)
    for ax in axes:
        ax.axhline(control.accuracy.mean(), color="black", linewidth=0.8, linestyle=":", label=control.name)
        figures.tradeoff(ax, series, "compression (all parameters / non-zeros)", "test accuracy %")
    axes[1].get_legend().remove()  # the left one's
    axes[1].set_ylim(control.accuracy.mean() - 4, control.accuracy.mean() + 1)
    figures.save(drawn, path)
