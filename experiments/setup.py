"""From a command line to a data set, a network and a recipe: the options that every experiment shares."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn

from experiments import data, models
from experiments.data import Dataset
from experiments.methods import Recipe

ModelName = Literal["lenet300", "lenet5", "wrn-16-2", "wrn-16-8"]

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "lenet300": models.LeNet300100,
    "lenet5": models.LeNet5,
    "wrn-16-2": lambda classes: models.WideResNet(classes, 16, (16, 32, 64, 128)),
    "wrn-16-8": models.WideResNet,
}

# What each data set is trained with unless the command line says otherwise. Digits has 20 steps an epoch at 64. At 0.1,
# LeNet-300-100 is less accurate on the larger sets, dense or not, and its weights grow heavy tails.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"model": "lenet300", "epochs": 90, "batch_size": 64, "learning_rate": 0.1},
    "mnist_5k": {"model": "lenet300", "epochs": 45, "batch_size": 64, "learning_rate": 0.02},
    "mnist": {"model": "lenet300", "epochs": 30, "learning_rate": 0.02},
    "fashion_mnist": {"model": "lenet300", "epochs": 30, "learning_rate": 0.02},
    "cifar10": {"model": "wrn-16-8", "epochs": 120, "augment": True},
    "cifar100": {"model": "wrn-16-8", "epochs": 120, "augment": True},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train on, and with; what is left out is the data set's preset."""

    dataset: Literal["digits", "mnist_5k", "mnist", "fashion_mnist", "cifar10", "cifar100"] = "digits"
    """Data set; digits and mnist_5k need no network."""
    data_dir: str | None = None
    """Where TensorFlow Datasets finds it prepared: a local folder or a bucket."""
    model: ModelName | None = None
    """Network."""
    epochs: int | None = None
    """Passes over the training split, a multiple of `cycles`."""
    cycles: int = 3
    """Cosine cycles of the learning rate."""
    batch_size: int | None = None
    """Images in a step."""
    learning_rate: float | None = None
    """Learning rate at the start of each cycle; 0.1 is the papers', but LeNet-5 diverges at 0.05."""
    weight_decay: float = 5e-4
    """Coefficient of the L2 term."""
    seeds: int = 3
    """Networks trained side by side."""
    seed: int = 0
    """The first seed."""
    results: Path = Path("results")
    """Where results, metrics and checkpoints go; a run found there is not trained again."""
    checkpoint_every: int = 10
    """Epochs between checkpoints, from which a killed run resumes; 0 saves the end only."""


def resolve(options: Options) -> tuple[Dataset, nn.Module, Recipe]:
    """Returns the data, the network and the recipe that the options ask for.

    Raises:
      ValueError: from the recipe, for numbers that no run can have.
      FileNotFoundError: the data set is not there; the message says how to prepare it.
    """
    preset = {"batch_size": 128, "augment": False, "learning_rate": 0.1, **PRESETS[options.dataset]}
    chosen = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    settings = {**preset, **chosen}
    fields = [field.name for field in dataclasses.fields(Recipe) if field.name in settings]
    recipe = Recipe(**{name: settings[name] for name in fields})
    dataset = data.load(options.dataset, options.data_dir)
    return dataset, MODELS[settings["model"]](dataset.classes), recipe
