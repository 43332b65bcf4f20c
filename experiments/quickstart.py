"""The main job: train a network, prune it with every method there is, and compare the results with honest controls.

    python -m experiments quickstart

Every network sees the same number of epochs in all, in cosine cycles. Methods that start from a trained network train
it for all cycles but the last, prune it, and fine-tune it for the last one; the others take all cycles at once. The
controls are the dense network trained on for the last cycle, and a thin dense network with as many parameters as
pruning leaves. Whole units go too, until a share of the multiply-adds is left; that network is cut to its size, and its
control is a thin dense network of as many multiply-adds.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import chex
import jax

import sparsejax as sj
from experiments import compiling, figures, models, pruning, results, setup, shrinking, stages
from experiments.methods import dense
from experiments.results import Measured
from experiments.sparsifying import Around, through_training
from experiments.stages import Stages, after
from experiments.training import Run


@dataclasses.dataclass(frozen=True)
class Config(setup.Options):
    """The main job: a dense network, every pruning method, and controls, as a table and a picture."""

    target: float = 0.85
    """Sparsity of the pruned layers in the table."""
    sweep: tuple[float, ...] = (0.5, 0.7, 0.9, 0.95)
    """Further sparsities, for the trade-off picture."""
    mus: tuple[float, ...] = (0.51, 0.6, 0.74, 0.8)
    """Growth of gRDA's threshold, which cannot be asked for a sparsity: the table has the nearest one."""
    share: float = 0.5
    """Share of the multiply-adds that stays where units are removed."""


def main(config: Config) -> Path:
    """Trains everything, prints the table, writes report, picture and logs, and returns the folder they are in."""
    dataset, model, recipe = setup.resolve(config)
    stages.check(recipe.cycles)
    directory = config.results / "quickstart" / f"{config.dataset}-{type(model).__name__}"
    workshop = Stages(dataset, model, recipe, directory)
    with compiling.once():
        start = workshop.stage("dense", dense, workshop.every[:-1])
        initial = (start.params, start.model_state)
        trained_on = after(start, workshop.stage("dense, same epochs", dense, workshop.last, initial=initial))
        controls = [workshop.row("dense", start), workshop.row("dense, same epochs", trained_on)]
        units, cut = shrinking.rows(workshop, start, config.share)
        units.append(thin_row(workshop, config.share))
        rows = {share: list(pruned_rows(workshop, start, share)) for share in sorted({config.target, *config.sweep})}
        averaged = list(stages.averaged_rows(workshop, config.dataset, config.mus))
    nearest = min(averaged, key=lambda network: abs(network.sparsity.mean() - 100 * config.target))
    report = describe(config, [*controls, *rows[config.target], nearest, *units], cut)
    print(report)
    pruned = [network for group in rows.values() for network in group] + averaged
    draw(config, controls[1], pruned, directory / "tradeoff.png")
    networks = controls + pruned + units
    results.write(directory, report, config, recipe, networks)
    print(f"\nreport, picture and logs are in {directory}")
    return directory


def pruned_rows(workshop: Stages, start: Run, share: float) -> Iterator[Measured]:
    """Yields every method's network, and the thin control, at one sparsity of the pruned layers."""
    label = f" {share:g}"

    one_shot = dataclasses.replace(start, params=magnitude(start.params, share))
    yield workshop.row("one-shot magnitude", one_shot)

    initial = (one_shot.params, one_shot.model_state)
    tuned = workshop.stage("one-shot magnitude, fine-tuned" + label, pruning.masked, workshop.last, initial=initial)
    yield workshop.row("one-shot magnitude, fine-tuned", after(start, tuned))

    method = partial(pruning.counted_budget, target=share)
    adaptive = workshop.stage("adaptive sparsity" + label, method, workshop.every)
    yield workshop.row("adaptive sparsity", adaptive)
    yield stages.gated_row(workshop, share, setup.gates(workshop.dataset.name))

    for name, (around, wanted) in recipes(workshop, share).items():
        method = partial(through_training, around=around, target=wanted, name=name)
        yield workshop.row(name, workshop.stage(name + label, method, workshop.every))

    count = partial(models.parameter_count, image_shape=workshop.image)
    yield stages.thin_row(workshop, "thin dense", share, pruning.remaining(workshop.shapes, share), count)


def thin_row(workshop: Stages, share: float) -> Measured:
    """Returns the thin dense network with a share of the multiply-adds."""

    def count(model) -> int:
        return models.multiply_adds(model, workshop.image).total

    return stages.thin_row(workshop, "thin dense, multiply-adds", share, round(share * count(workshop.model)), count)


def recipes(workshop: Stages, share: float) -> dict[str, tuple[Around, chex.ArrayTree]]:
    """Returns two classic recipes and their targets: pruned until the last cycle, and sparse from the start."""
    ramp, exchange = workshop.ramp, workshop.exchange
    uniform = sj.allocate.uniform(workshop.shapes, share, workshop.where())
    kernel = sj.allocate.erdos_renyi(workshop.shapes, share, workshop.where())
    return {
        "gradual magnitude": (lambda tx, target, _: sj.recipes.gradual_magnitude(tx, target, **ramp), uniform),
        "RigL": (lambda tx, target, seed: sj.recipes.rigl(tx, target, **exchange, seed=seed), kernel),
    }


@partial(jax.jit, static_argnums=1)
def magnitude(params, share: float):
    """Returns every seed's parameters with the smallest weights of each layer set to zero."""

    def prune(one):
        return sj.bounds.finalize(one, sj.bounds.search(one, share, center=False), center=False)

    return jax.vmap(prune)(params)


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
