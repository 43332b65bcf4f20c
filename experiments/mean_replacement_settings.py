"""What `experiments.mean_replacement` can be asked for: options, presets, and the paper's own settings."""

import dataclasses
from typing import Any, Literal

import tyro

from experiments import setup

Layers = Literal["firstconv", "midconv", "lastconv", "firstdense"]

# What each data set is trained with unless the command line says otherwise.
PRESETS: dict[str, dict[str, Any]] = {
    # Enlarged to 24 x 24, of which the network leaves one pixel. 20 steps an epoch.
    "digits": {"epochs": 40, "every": 80, "enlarge": 3, "images": 300, "tuning": (10, 100), "tuned": 2},
    "mnist_5k": {"epochs": 40},
    "mnist": {"epochs": 6, "tuned": 4},
    "fashion_mnist": {"epochs": 6, "tuned": 4},
    "cifar100": {"model": "medium-conv", "epochs": 60},
    "cifar10": {"model": "medium-conv", "epochs": 60},
    "imagenet2012": {"model": "alexnet-valid", "epochs": 60, "every": 10_000, "images": 10_000, "seeds": 1},
}

# Tables 2 and 3. The authors' code takes activations before pooling.
CIFAR: dict[str, Any] = {
    "seeds": 8,
    "epochs": 60,
    "images": 1000,
    "at": "activation",
    "amounts": (0.01, 0.05, 0.1, 0.2, 0.5, 1),
    "layer_amounts": (0.01, 0.05, 0.1, 0.2, 0.5, 1),
}
IMAGENET: dict[str, Any] = {
    **CIFAR,
    "seeds": 3,
    "every": 10_000,
    "images": 10_000,
    "amounts": (0.05, 0.1, 0.3, 1),
    "layer_amounts": (0.05, 0.1, 0.3, 1),
    "layers": ("firstconv", "midconv", "firstdense"),
}
PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("cifar10", "medium-conv"): CIFAR,
    ("cifar10", "small-conv"): CIFAR,
    ("cifar10", "vgg11"): CIFAR,
    ("imagenet2012", "alexnet-valid"): IMAGENET,
}


@dataclasses.dataclass(frozen=True)
class Config(setup.Options):
    """Mean replacement against plain removal: penalties of six scores through training, and after fine-tuning."""

    every: int | None = None
    """Training steps between measurements."""
    images: int | None = None
    """Training images that means, scores and losses are computed of."""
    amounts: tuple[float, ...] | None = None
    """What goes of all layers together: below 1 a share of every layer's units, from 1 on a number."""
    layers: tuple[Layers, ...] | None = None
    """Layers that are pruned alone."""
    layer_amounts: tuple[float, ...] | None = None
    """What goes of those."""
    tuning: tuple[int, ...] | None = None
    """Numbers of fine-tuning steps after which copies are measured again."""
    tuned: int | None = None
    """In how many of the measurements copies are fine-tuned: those that lost the first of `layer_amounts` of all
    layers."""
    at: Literal["consumer_input", "activation"] | None = None
    """Where activations are taken: at what the next layer reads, or as the authors' code does, before pooling."""
    batch_norm: bool = False
    """Whether batch norm, in evaluation mode, comes before every ReLU."""
    enlarge: int | None = None
    """Number of pixels, each way, that one becomes."""
    epochs: int | None = None
    """Passes over the training split, to the nearest measurement."""
    batch_size: int = 64
    """Images in a step."""
    learning_rate: float = 0.01
    """Constant learning rate, with momentum 0.9."""
    weight_decay: float = 0.0
    """Coefficient of the L2 term."""
    cycles: tyro.conf.Suppress[int] = 1
    """The learning rate is constant."""
    checkpoint_every: tyro.conf.Suppress[int] = 1
    """Every measurement is kept."""
    seeds: int | None = None
    """Networks trained side by side."""
    paper: bool = False
    """The paper's own setting, unless other options say otherwise."""


def settle(config: Config) -> Config:
    """Returns the configuration with the paper's setting, or the data set's preset, where the user left a choice."""
    preset = {"model": "small-conv", "every": 250, "images": 1000, "enlarge": 1, "at": "consumer_input", "seeds": 3}
    preset |= {"amounts": (0.05, 0.1, 0.2, 0.5, 1), "layer_amounts": (0.1,)}
    preset |= {"layers": ("firstconv", "midconv", "lastconv", "firstdense")}
    preset |= {"tuning": (10, 100, 500), "tuned": 2, **PRESETS[config.dataset]}
    return setup.filled(config, preset | setup.published(config, PAPER))


def count(amount: float) -> float:
    """Returns an amount of units as `sparsejax.units.lowest` has it: an integer if it is a number of units."""
    return int(amount) if amount >= 1 else amount
