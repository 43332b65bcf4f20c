"""What the networks of an experiment are made from, and how each is trained, found again, counted and tested."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import chex
import flax.linen as nn

import sparsejax as sj
from experiments import models, results, training
from experiments.data import Dataset
from experiments.methods import Method, Recipe
from experiments.results import Measured
from experiments.steps import Networks
from experiments.training import Run


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Data, the dense network, the recipe, and the folder of the runs; a run that is in it is not trained again."""

    dataset: Dataset
    model: nn.Module
    recipe: Recipe
    directory: Path

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape of an image."""
        return self.dataset.train.image_shape

    @cached_property
    def shapes(self) -> chex.ArrayTree:
        """The parameters of the dense network, as shapes."""
        return models.parameter_shapes(self.model, self.image)

    def spread(self, count: int) -> list[int]:
        """Returns up to `count` epochs, spread evenly over training; the last one is among them."""
        return sorted({max(1, round(self.recipe.epochs * i / count)) for i in range(1, count + 1)})

    def train(
        self,
        name: str,
        method: Method,
        recipe: Recipe | None = None,
        initial: Networks | None = None,
        model: nn.Module | None = None,
        snapshots: Sequence[int] = (),
        visit: Callable[[int, Networks], None] | None = None,
        **asked,
    ) -> Run:
        """Trains networks, or reads them from disk.

        Args:
          name: of the run's folder.
          method: what is trained, and how.
          recipe: another one than the experiment's.
          initial: what to start from.
          model: another network than the dense one.
          snapshots: epochs after which networks are kept.
          visit: is shown the networks after every epoch.
          asked: JSON-serialisable settings of the method, which the folder records.

        Returns:
          A `Run`.
        """
        folder = self.directory / "runs" / name.replace(" ", "_")
        recipe, model = recipe or self.recipe, model or self.model
        seen = {"snapshots": snapshots, "visit": visit}
        return training.train(model, method, self.dataset, recipe, folder, initial, config=asked, **seen)

    def measure(
        self, name: str, run: Run, model: nn.Module | None = None, pruned: Sequence[str] | None = None, asked=None
    ) -> Measured:
        """Counts and tests a finished run.

        Args:
          name: what tables and figures call it.
          run: from `train`.
          model: the network that was trained, if it is not the dense one.
          pruned: the names of the leaves that sparsities are about; all of them if left out.
          asked: the sparsities asked of them, as for `results.measure`.

        Returns:
          A `Measured`.
        """
        about = tuple(sj.tree.named(self.shapes)) if pruned is None else tuple(pruned)
        return results.measure(name, run, model or self.model, self.dataset, self.model, about, asked)
