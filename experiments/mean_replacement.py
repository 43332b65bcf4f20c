"""Mean replacement: what the removal of units costs, with zeros and with means, measured on copies through training.

    python -m experiments mean_replacement                            digits, enlarged for SMALL CONV
    python -m experiments mean_replacement --dataset fashion_mnist    60,000 images
    python -m experiments mean_replacement --paper --dataset cifar10 --model medium-conv --data-dir DIR

*Mean Replacement Pruning*, submitted to ICLR 2019. One dense network a seed is trained; every so many steps its copies
lose units, chosen by six scores in several layers, and the network itself goes on as if nothing had happened. All
choices are measured in one run, which is the paper's grid at a fraction of its cost. A killed run goes on.
"""

import dataclasses
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import optax

from experiments import (
    compiling,
    mean_replacement_claims,
    mean_replacement_figures,
    orders,
    rates,
    results,
    setup,
    splits,
    steps,
)
from experiments.feeds import EVALUATION_BATCH
from experiments.mean_replacement_claims import SQUARES, TUNED_SCORES, Found
from experiments.mean_replacement_settings import Config, count, settle
from experiments.methods import dense
from experiments.removals import SCORES, Choice, Copies, repeated
from experiments.splits import Batch
from experiments.training import Run
from experiments.workshop import Workshop


@dataclasses.dataclass(frozen=True)
class Job(Workshop):
    """The workshop, and what was asked of it. An epoch of its recipe ends with a measurement."""

    config: Config

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """Which units compete, in every measurement."""
        config = self.config
        alone = [Choice(layers, count(amount)) for layers in config.layers for amount in config.layer_amounts]
        return (*(Choice("all", count(amount)) for amount in config.amounts), *alone)

    @cached_property
    def first(self) -> float:
        """What goes of the copies that are fine-tuned, and of the layer whose units are followed."""
        return count(self.config.layer_amounts[0])

    @cached_property
    def copies(self) -> Copies:
        """The programs that measure a network."""
        descent = optax.sgd(self.recipe.learning_rate, self.recipe.momentum)
        normalize = steps.normalizer(self.dataset.mean, self.dataset.std)
        return Copies(self.model, self.image, normalize, self.choices, descent, self.config.at)

    @property
    def tuned_marks(self) -> list[int]:
        """After which epochs copies are fine-tuned; the last one is among them."""
        return self.spread(self.config.tuned)

    def network(self) -> Run:
        """Trains the networks, and measures them on the way."""
        (self.directory / "measurements").mkdir(parents=True, exist_ok=True)
        method = dataclasses.replace(dense(self.recipe), order=orders.windows(self.config.every))
        asked = {name: getattr(self.config, name) for name in ("every", "images", "tuning", "tuned", "at")}
        return self.train("dense", method, visit=self.visit, choices=[choice.name for choice in self.choices], **asked)

    def visit(self, epoch: int, networks) -> None:
        """Measures the networks of all seeds and writes what was found, unless it is there."""
        path = self.path(epoch)
        if epoch == 0 or path.exists():
            return
        found = [self.measured(epoch, seed, *steps.one(networks, seed)) for seed in range(self.recipe.seeds)]
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{name: np.stack([one[name] for one in found]) for name in found[0]})
        partial.replace(path)  # whole or not at all

    def path(self, epoch: int) -> Path:
        """Returns where the measurement after an epoch is kept."""
        return self.directory / "measurements" / f"step_{epoch * self.config.every}.npz"

    def measured(self, epoch: int, seed: int, params, model_state) -> dict[str, np.ndarray]:
        """Returns the loss of one network, and what the removal of units adds to it."""
        copies, variables = self.copies, {"params": params, **model_state}
        batches = self.seen(seed)
        stats = copies.statistics(variables, batches, jax.random.key((self.recipe.seed + seed) * 10**6 + epoch))
        ways = copies.select(stats)
        loss = copies.losses_of(jax.tree.map(lambda leaf: leaf[None], variables), batches)[0]
        penalties = copies.losses(variables, ways, stats, batches) - loss
        found = {"loss": loss, "penalties": penalties.reshape(len(self.choices), len(SCORES), -1)}
        found["first"] = copies.first_order(variables, ways, stats, batches).reshape(len(self.choices), len(SCORES))
        found |= self.followed(variables, ways, batches)
        if epoch in self.tuned_marks:
            found["tuned"] = self.tuned(epoch, seed, variables, ways, stats, batches) - loss
        return found

    def followed(self, variables, ways, batches) -> dict[str, np.ndarray]:
        """Returns which units of the middle convolution each score removes, and how active they are."""
        (group,) = self.copies.layers["midconv"]
        number = self.choices.index(Choice("midconv", self.first))
        gone = ~np.asarray(ways[group]).reshape(len(self.choices), len(SCORES), -1)[number]
        squares = self.copies.squares(variables, batches[0][0], group)
        counts = [np.histogram(squares[..., units], SQUARES)[0] for units in gone]
        return {"gone": gone, "squares": np.array(counts)}

    def tuned(self, epoch: int, seed: int, variables, ways, stats, batches) -> np.ndarray:
        """Returns the losses of copies after some more training, (scores, 2, numbers of steps)."""
        first = self.choices.index(Choice("all", self.first)) * len(SCORES)
        rows = np.array([first + SCORES.index(score) for score in TUNED_SCORES])
        chosen = {group: kept[rows] for group, kept in ways.items()}
        pruned = self.copies.without(variables, chosen, stats)
        training = self.training(np.random.default_rng((self.recipe.seed + seed, epoch)))
        losses = self.copies.tuned(pruned, repeated(chosen), training, batches, self.config.tuning)
        return losses.reshape(len(TUNED_SCORES), -1, len(self.config.tuning))

    def seen(self, seed: int) -> list[Batch]:
        """Returns the training images of a seed's measurements, the same throughout its training."""
        rng = np.random.default_rng(self.recipe.seed + seed)
        chosen = np.sort(rng.permutation(len(self.dataset.train))[: self.config.images])
        parts = np.array_split(chosen, -(-len(chosen) // EVALUATION_BATCH))
        return [self.dataset.train.read(part) for part in parts]

    def training(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Yields blocks of training steps, in each of which images are drawn anew."""
        length, size = math.gcd(*self.config.tuning), self.recipe.batch_size
        for _ in range(max(self.config.tuning) // length):
            images, labels = self.dataset.train.read(rng.integers(len(self.dataset.train), size=length * size))
            yield images.reshape(length, size, *images.shape[1:]), labels.reshape(length, size)


def main(config: Config) -> Path:
    """Trains and measures, writes report, figures and logs, and returns the folder they are in."""
    config = settle(config)
    job = start(config)
    with compiling.once():
        found = gather(job, job.network())
    checked = mean_replacement_claims.claims(found)
    report = mean_replacement_claims.describe(config.dataset, type(job.model).__name__, found, checked)
    print(report)
    mean_replacement_figures.draw(config.dataset, found, job.directory / "figures")
    results.write(job.directory, report, config, job.recipe, [], checked)
    print(f"\nreport, figures and logs are in {job.directory}")
    return job.directory


def start(config: Config) -> Job:
    """Returns the job of a settled configuration.

    Raises:
      ValueError: the first of `layer_amounts` is not among `amounts`, "midconv" not among `layers`.
    """
    if config.layer_amounts[0] not in config.amounts or "midconv" not in config.layers:
        raise ValueError(
            f"amounts={config.amounts}, layer_amounts={config.layer_amounts}, layers={config.layers}: the first of "
            f"layer_amounts, which must be among amounts, is fine-tuned, and 'midconv', which must be among layers, is "
            f"followed"
        )
    dataset, model, recipe = setup.resolve(config)
    dataset = splits.enlarged(dataset, config.enlarge)
    total = recipe.epochs * (len(dataset.train) // recipe.batch_size)
    recipe = dataclasses.replace(recipe, epochs=max(1, round(total / config.every)), schedule=rates.constant)
    directory = config.results / "mean_replacement" / f"{config.dataset}-{type(model).__name__}"
    if config.batch_norm:
        model, directory = model.clone(normalised=True), directory.with_name(f"{directory.name}-batch_norm")
    return Job(dataset, model, recipe, directory, config)


def gather(job: Job, run: Run) -> Found:
    """Reads what was measured.

    Raises:
      FileNotFoundError: a measurement is gone, but the networks are past it.
    """
    files = []
    for epoch in range(1, job.recipe.epochs + 1):
        if not job.path(epoch).exists():
            raise FileNotFoundError(f"{job.path(epoch)} is gone, and the run is past it; delete {job.directory}")
        with np.load(job.path(epoch)) as file:
            files.append(dict(file))
    stacked = {
        name: np.stack([file[name] for file in files]) for name in ("loss", "penalties", "first", "gone", "squares")
    }
    return Found(
        steps=job.config.every * np.arange(1, job.recipe.epochs + 1),
        choices=job.choices,
        followed=job.choices.index(Choice("midconv", job.first)),
        accuracies=100 * np.array([row["val_accuracy"] for row in run.history]),
        tuning=job.config.tuning,
        tuned_steps=job.config.every * np.array(job.tuned_marks),
        tuned=np.stack([files[epoch - 1]["tuned"] for epoch in job.tuned_marks]),
        **stacked,
    )
