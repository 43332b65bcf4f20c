"""A workshop whose epochs come in cycles: some networks take all of them at once, others are pruned before the last."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import flax.linen as nn

import sparsejax as sj
from experiments import gating, pruning, rates
from experiments.gating import Rule
from experiments.methods import Method, Recipe, dense
from experiments.results import Measured
from experiments.steps import Networks
from experiments.training import Run
from experiments.workshop import Workshop


class Stages(Workshop):
    """A workshop whose epochs are divided into cycles, the last of which is for fine-tuning."""

    @property
    def every(self) -> range:
        """All cycles."""
        return range(self.recipe.cycles)

    @property
    def last(self) -> range:
        """The cycle in which a pruned network is fine-tuned."""
        return self.every[-1:]

    @property
    def pruned(self) -> tuple[str, ...]:
        """The names of the layers that are pruned: those that get a bound."""
        return tuple(pruning.bounded(self.shapes))

    def where(self, fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> Callable[..., bool]:
        """Returns which leaves are pruned, as `sparsejax.allocate` takes it: the pruned layers whose shape fits."""
        return lambda name, leaf: name in self.pruned and fits(leaf.shape)

    @property
    def ramp(self) -> dict[str, int]:
        """The steps of recipes that prune more and more: every epoch until the last cycle begins."""
        epochs = self.recipe.epochs - self.recipe.epochs // self.recipe.cycles
        return {"start": 0, "end": epochs * self._steps_per_epoch, "period": self._steps_per_epoch}

    @property
    def exchange(self) -> dict[str, int]:
        """The steps of recipes that exchange weights: every epoch of the first three quarters."""
        return {"end": 3 * self.recipe.epochs * self._steps_per_epoch // 4, "period": self._steps_per_epoch}

    @property
    def _steps_per_epoch(self) -> int:
        return len(self.dataset.train) // self.recipe.batch_size

    def stage(
        self,
        name: str,
        method: Callable[[Recipe], Method],
        cycles: range,
        model: nn.Module | None = None,
        initial=None,
        snapshots: Sequence[int] = (),
        **asked,
    ) -> Run:
        """Trains a network for some of the cycles; the run's folder records what was asked."""
        share = len(cycles) * self.recipe.epochs // self.recipe.cycles
        recipe = dataclasses.replace(self.recipe, epochs=share, cycles=len(cycles))
        return self.train(name, method(recipe), recipe, initial, model, snapshots, row=name, **asked)

    def row(self, name: str, run: Run, model: nn.Module | None = None, asked=None) -> Measured:
        """Counts and tests a finished run; sparsities are those of the layers that get a bound."""
        return self.measure(name, run, model, self.pruned, asked)


def check(cycles: int) -> None:
    """Raises `ValueError` unless there is a cycle to train in before the one to fine-tune in."""
    if cycles < 2:
        raise ValueError(f"cycles={cycles}, but fine-tuning takes the last cycle of at least 2; pass --cycles 2")


def after(first: Run, second: Run) -> Run:
    """Returns the second run with the time of both."""
    return dataclasses.replace(second, seconds=first.seconds + second.seconds)


def averaged_rows(stages: Stages, rate: float, c: float, mus: Sequence[float]) -> Iterator[Measured]:
    """Yields gRDA's network for every mu, from scratch, without momentum and with the authors' learning rates."""
    recipe = dataclasses.replace(stages.recipe, learning_rate=rate, schedule=rates.half_then_linear)
    stages = dataclasses.replace(stages, recipe=recipe)
    for mu in mus:
        method = partial(pruning.dual_averaging, c=c, mu=mu)
        yield stages.row("gRDA", stages.stage(f"gRDA {mu:g}", method, stages.every))


def thin_row(stages: Stages, name: str, share: float, thin: nn.Module) -> Measured:
    """Returns a thin dense network, from scratch: a control at a share."""
    return stages.row(name, stages.stage(f"{name} {share:g}", dense, stages.every, model=thin), thin)


def tuned_row(stages: Stages, name: str, share: float, start: Run, cut: Networks, asked=None) -> Measured:
    """Returns networks that were cut out of `start`, fine-tuned in the last cycle, in which their zeros stay."""
    tuned = stages.stage(f"{name} {share:g}", pruning.masked, stages.last, initial=cut)
    return stages.row(name, after(start, tuned), asked=asked)


def gated_row(stages: Stages, name: str, share: float, rule: Rule, start: Run | None = None) -> Measured:
    """Returns AutoPrune's network: its gates freeze when a share of the pruned layers is closed.

    Args:
      stages: what to train with.
      name: of the network.
      share: of the weights of the pruned layers, that goes.
      rule: how gates are trained.
      start: a trained network, whose gates are trained in the last cycle; in all cycles, from scratch, if left out.
    """
    size = sum(pruning.bounded(stages.shapes).values())
    budget = sj.budgets.Budget(dict.fromkeys(stages.pruned, 1), size - round(share * size))
    method = partial(gating.weights, rule=rule, target=sj.targets.weights(budget))
    train = partial(stages.stage, f"{name} {share:g}", method, **rule.settings())
    run = train(stages.every) if start is None else after(start, train(stages.last, initial=start.networks))
    return stages.row(name, run, asked=share)
