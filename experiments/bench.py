"""Stages with what the methods of a comparison share: its options, and the dense networks that some of them prune."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from experiments import models, pruning, setup
from experiments.methods import dense
from experiments.results import Measured
from experiments.sparsifying import shuffled
from experiments.stages import Stages, after
from experiments.training import Run
from sparsejax.budgets import Budget


@dataclasses.dataclass(frozen=True)
class Options(setup.Options):
    """Settings of the methods that are compared."""

    block: tuple[int, ...] = (4, 2)
    """Size of a block; kernels that it does not divide keep all their weights."""
    calibration: int = 128
    """Training images that Wanda sees."""
    rate: float | None = None
    """Learning rate of AutoPrune's auxiliary parameters, from scratch."""
    penalty: float | None = None
    """Pull on them."""
    factors: dict[str, float] | None = None
    """What their learning rate is multiplied with in some layers."""
    pretrained_rate: float | None = None
    """The same, where they start from magnitudes of trained weights."""
    pretrained_penalty: float = 0.02
    """Pull on those."""
    unit_rate: float | None = None
    """Learning rate of the auxiliary parameters of units."""
    mus: tuple[float, ...] = (0.51, 0.6, 0.74, 0.8)
    """Growth of gRDA's threshold, which cannot be asked for a sparsity."""


@dataclasses.dataclass(frozen=True)
class Bench(Stages):
    """A comparison's data, dense network, recipe and folder, and the options of its methods."""

    options: Options

    @cached_property
    def start(self) -> Run:
        """The dense network before its last cycle, which one-shot methods prune, and as it was initialised."""
        return self.stage("dense", dense, self.every[:-1], snapshots=(0,))

    @cached_property
    def trained_on(self) -> Run:
        """The same after its last cycle: as many epochs as every other network."""
        return after(self.start, self.stage("dense, same epochs", dense, self.last, initial=self.start.networks))

    def controls(self) -> list[Measured]:
        """Returns both, measured."""
        return [self.row("dense", self.start), self.row("dense, same epochs", self.trained_on)]

    def share(self, compression: float) -> float:
        """Returns the sparsity of the pruned layers at which all parameters shrink by a compression.

        Raises:
          ValueError: what is not pruned, such as biases, is more than the compression leaves.
        """
        total, prunable = models.parameter_count(self.model, self.image), sum(pruning.bounded(self.shapes).values())
        share = (total - total / compression) / prunable
        if not 0 < share < 1:
            raise ValueError(
                f"compression={compression:g}: {total - prunable:,} of {total:,} parameters are not pruned, so that "
                f"compressions are above 1 and below {total / (total - prunable):.1f}"
            )
        return share

    def uniform(self, share: float, fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> chex.ArrayTree:
        """Returns the same sparsity for the pruned layers whose shape fits, 0.0 for the others.

        As many weights are gone as if a share of every pruned layer were, unless those that fit are too few.
        """
        leaves = sj.tree.named(self.shapes)
        sizes = {name: leaves[name].size for name in self.pruned}
        fitting = sum(size for name, size in sizes.items() if fits(leaves[name].shape))
        needed = share * sum(sizes.values()) / max(fitting, 1)
        return sj.allocate.uniform(self.shapes, needed if needed < 1 else share, self.where(fits))

    def thin(self, share: float) -> nn.Module:
        """Returns the thin network of as many parameters as are left when a share of the pruned layers is gone."""
        count = partial(models.parameter_count, image_shape=self.image)
        return models.thin(self.model, pruning.remaining(self.shapes, share), count)

    def parameters(self, share: float) -> Budget:
        """Returns the budget of all parameters that are left when a share of the pruned layers is gone."""
        return Budget(dict.fromkeys(sj.tree.named(self.shapes), 1), pruning.remaining(self.shapes, share))

    def multiply_adds(self, model: nn.Module) -> int:
        """Returns the multiply-adds of a network for one image."""
        return models.multiply_adds(model, self.image).total

    def multiply_adds_left(self, share: float) -> int:
        """Returns those that are left of the dense network's where every pruned layer has the same sparsity."""
        counted = models.multiply_adds(self.model, self.image)
        return counted.total - round(share * sum(counted.by_leaf[name] for name in self.pruned))

    def reordered(self, mask: chex.ArrayTree) -> chex.ArrayTree:
        """Returns every seed's mask with its entries in another order within each layer."""
        seeds = self.recipe.seed + jnp.arange(self.recipe.seeds)
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(1), seed))(seeds)
        return jax.vmap(shuffled)(keys, jax.tree.map(np.asarray, mask))


Asked = chex.ArrayTree | float
"""The sparsities that a network was asked for: a tree, or a share of all pruned layers together."""
Contender = Callable[[Bench, str, float], Iterator[Measured]]
"""(bench, name, sparsity of the pruned layers) -> networks; the last has that name, others are on the way to it."""
