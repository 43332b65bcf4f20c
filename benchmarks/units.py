"""What units cost to find, and what the smaller network gains: `python -m benchmarks.units`.

With a picture, `python -m benchmarks`.

Three things. How long it takes to find the units of a network by tracing it, in wall and in CPU seconds. How fast the
forward pass is when half of the channels of every group are gone, chosen at random: the median over rounds of the ratio
of the dense network's time to that of the smaller one within a round, with quartiles, beside the ratio of their
multiply-adds and beside a network that was made with half the widths. And how long the statistics of all units take
beside a forward and backward pass of the same loss, over batches; they need no gradients of weights.

The aims: ResNet-50 at 224x224 traced in less than 3 seconds, and a speed-up of at least 0.9 of the multiply-adds'.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.axes import Axes

import sparsejax as sj
from experiments import figures, models, setup, timing
from experiments.results import table

Name = Literal["lenet5", "small-conv", "vgg11", "vgg16", "wrn-16-8", "wrn-28-10", "alexnet", "mobilenetv2", "resnet50"]
CIFAR, IMAGENET = (10, (32, 32, 3)), (1000, (224, 224, 3))
SIZES: dict[Name, tuple[int, tuple[int, int, int]]] = {  # classes, and the shape of an image
    "lenet5": (10, (28, 28, 1)),
    "small-conv": CIFAR,
    "vgg11": CIFAR,
    "vgg16": CIFAR,
    "wrn-16-8": CIFAR,
    "wrn-28-10": CIFAR,
    "alexnet": IMAGENET,
    "mobilenetv2": IMAGENET,
    "resnet50": IMAGENET,
}
NETWORKS = {name: (setup.MODELS[name](classes), image) for name, (classes, image) in SIZES.items()}
DENSE, SMALL, THIN = "dense", "small", "thin"
LOSS, STATISTICS = "forward and backward", "statistics"


@dataclasses.dataclass(frozen=True)
class Config:
    """Times of finding units, of the smaller network, and of the statistics of units."""

    traced: tuple[Name, ...] = tuple(NETWORKS)
    """Networks whose units are found."""
    halved: Name = "resnet50"
    """Network that loses half of its units."""
    batches: tuple[int, ...] = (1, 8)
    """Images in a forward pass."""
    rounds: int = 20
    """Rounds, each of which runs every function once."""
    measured: tuple[Name, ...] = ("lenet5", "small-conv")
    """Networks whose statistics are taken."""
    examples: int = 128
    """Images in a batch of them."""
    steps: int = 8
    """Batches in a run."""


class Traced(NamedTuple):
    """How long it took to find the units of a network."""

    equations: int
    groups: int
    units: int
    wall: float
    """Seconds."""
    cpu: float
    """Seconds of this process on any core."""


class Halved(NamedTuple):
    """Forward passes without half of the units."""

    seconds: dict[int, dict[str, np.ndarray]]
    """Those of every round, by batch size and network."""
    multiply_adds: dict[str, int]
    """For one image, by network."""
    instructions: dict[str, int]
    """Of the compiled program, by network."""
    error: float
    """The largest difference to the logits of the masked network, as a share of the largest of those."""

    @property
    def ratio(self) -> float:
        """The multiply-adds of the dense network to those of the small one."""
        return self.multiply_adds[DENSE] / self.multiply_adds[SMALL]


class Found(NamedTuple):
    """What was measured."""

    traced: dict[str, Traced]
    network: str
    """The one that lost half of its units."""
    halved: Halved
    statistics: dict[str, dict[str, np.ndarray]]
    """Seconds of every round, by network, of a pass over all batches."""


def find(name: str) -> Traced:
    """Traces a network, once: what is found is kept by nobody."""
    model, image = NETWORKS[name]
    shapes = models.variable_shapes(model, image)
    wall, cpu = time.perf_counter(), time.process_time()
    graph = sj.units.trace(model.apply, *shapes)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    units = sum(group.size for group in graph.groups.values())
    return Traced(len(graph.program.body.equations), len(graph.groups), units, wall, cpu)


def halve(name: str, batches: tuple[int, ...], rounds: int) -> Halved:
    """Times the forward passes of a network, of what half of its units leave of it, and of one of half the widths."""
    model, image = NETWORKS[name]
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((max(batches), *image)), jnp.float32)
    graph = sj.units.trace(model.apply, *models.variable_shapes(model, image))
    kept = {name: rng.permutation(group.size) < group.size // 2 for name, group in graph.groups.items()}
    thin = models.multiplied(model, 0.5)
    variables, thin_variables = (jax.jit(one.init)(jax.random.key(0), images[:1]) for one in (model, thin))
    networks = {
        DENSE: (model.apply, variables),
        SMALL: (graph.small(kept), sj.shrink(graph, variables, kept)),
        THIN: (thin.apply, thin_variables),
    }
    counts = {key: sj.report.multiply_adds(*network, images[:1]).total for key, network in networks.items()}
    seconds = {}
    for size in batches:
        batch = images[:size]
        programs = {key: timing.compiled(function, values, batch)[0] for key, (function, values) in networks.items()}
        runs = {key: partial(program, networks[key][1], batch) for key, program in programs.items()}
        seconds[size] = timing.interleaved(runs, rounds)
    instructions = {key: program.as_text().count(" = ") for key, program in programs.items()}
    masked = model.apply(sj.apply(graph.push(kept), variables), images[:1])
    difference = jnp.abs(masked - networks[SMALL][0](networks[SMALL][1], images[:1])).max()
    return Halved(seconds, counts, instructions, float(difference / jnp.abs(masked).max()))


def take(name: str, examples: int, steps: int, rounds: int) -> dict[str, np.ndarray]:
    """Times the statistics of all units over batches beside the gradients of the same loss."""
    model, image = NETWORKS[name]
    shapes, example = models.variable_shapes(model, image)
    graph = sj.units.trace(model.apply, shapes, example)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((steps, examples, *image)), jnp.float32)
    labels = jnp.arange(examples) % model.classes
    variables = jax.jit(model.init)(jax.random.key(0), images[0])
    batches = [(batch, labels) for batch in images]

    def loss(variables, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply(variables, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = jax.jit(jax.value_and_grad(loss))
    runs: dict[str, Callable] = {
        LOSS: lambda: [gradients(variables, *batch) for batch in batches],
        STATISTICS: lambda: sj.units.statistics(graph, loss, variables, batches),
    }
    return timing.interleaved(runs, rounds)


def measure(config: Config) -> Found:
    """Runs everything."""
    return Found(
        {name: find(name) for name in config.traced},
        config.halved,
        halve(config.halved, config.batches, config.rounds),
        {name: take(name, config.examples, config.steps, config.rounds) for name in config.measured},
    )


def describe(found: Found) -> str:
    """Returns three tables."""
    head = ["network", "equations", "groups", "units", "seconds", "CPU seconds"]
    rows = [
        [name, f"{one.equations:,}", str(one.groups), f"{one.units:,}", f"{one.wall:.2f}", f"{one.cpu:.2f}"]
        for name, one in found.traced.items()
    ]
    traced = table(head, rows)
    halved, rows = found.halved, []
    for size, seconds in halved.seconds.items():
        for name, taken in seconds.items():
            middle, low, high = timing.ratio(seconds[DENSE], taken)
            row = [f"{found.network}, {name}", str(size), f"{halved.multiply_adds[name]:,}"]
            row += [f"{halved.multiply_adds[DENSE] / halved.multiply_adds[name]:.2f}", f"{middle:.2f}"]
            rows.append([*row, f"{low:.2f} to {high:.2f}", f"{1000 * np.median(taken):.1f}"])
    head = ["forward pass", "images", "multiply-adds an image", "ratio", "speed-up", "quartiles", "ms"]
    forward = table(head, rows)
    rows = []
    for name, seconds in found.statistics.items():
        middle, low, high = timing.ratio(seconds[STATISTICS], seconds[LOSS])
        rows.append([name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{1000 * np.median(seconds[LOSS]):.1f}"])
    statistics = table(["statistics of all units", f"ratio to {LOSS}", "quartiles", f"ms, {LOSS}"], rows)
    exact = (
        f"The small network's logits are the masked network's to {halved.error:.0e} of the largest; its program has "
        f"{halved.instructions[SMALL]:,} instructions, that of the thin one {halved.instructions[THIN]:,}."
    )
    return f"{traced}\n\n{forward}\n\n{exact}\n\n{statistics}"


def draw(tracing: Axes, speed: Axes, found: Found) -> None:
    """Draws how long it took to find the units, and the speed-up beside the ratio of multiply-adds."""
    names = list(found.traced)
    places = np.arange(len(names))
    for shift, part, colour in ((-0.2, "wall", figures.COLOURS[0]), (0.2, "cpu", figures.COLOURS[1])):
        values = [getattr(found.traced[name], part) for name in names]
        tracing.barh(places + shift, values, 0.4, color=colour, label={"wall": "wall", "cpu": "CPU"}[part])
    tracing.axvline(3, color="black", linewidth=0.8, linestyle=":", label="the aim for ResNet-50, 3 s")
    tracing.set(xlabel="seconds to find the units", yticks=places, yticklabels=names)
    tracing.set_title("tracing", fontsize=9)
    tracing.invert_yaxis()
    for index, name in enumerate((SMALL, THIN)):
        ratios = [timing.ratio(seconds[DENSE], seconds[name]) for seconds in found.halved.seconds.values()]
        middle, low, high = np.array(ratios).T
        where = np.arange(len(ratios)) + 0.15 * (2 * index - 1)
        label = {SMALL: "half of the units gone", THIN: "made with half the widths"}[name]
        style = {"linestyle": "", "capsize": 2, "label": label, **figures.style(index)}
        speed.errorbar(where, middle, yerr=[middle - low, high - middle], **style)
    speed.axhline(found.halved.ratio, color="black", linewidth=0.8, label="ratio of multiply-adds")
    speed.axhline(0.9 * found.halved.ratio, color="black", linewidth=0.8, linestyle=":", label="the aim, 0.9 of it")
    speed.set(xticks=range(len(found.halved.seconds)), xticklabels=[f"batch {size}" for size in found.halved.seconds])
    speed.set(ylabel="speed-up of the forward pass", ylim=(0, None), xlim=(-0.5, len(found.halved.seconds) - 0.5))
    speed.set_title(found.network, fontsize=9)
    for axes in (tracing, speed):
        axes.legend(fontsize=8, frameon=False)


if __name__ == "__main__":
    print(describe(measure(tyro.cli(Config))))
