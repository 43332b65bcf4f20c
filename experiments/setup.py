"""From a command line to a data set, a network and a recipe: the options that every experiment shares."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import flax.linen as nn
import tyro

from experiments import data, models
from experiments.data import Dataset
from experiments.methods import Recipe
from experiments.processes import Processes

ModelName = Literal[
    "lenet300",
    "lenet5",
    "lenet5-relu",
    "small-conv",
    "medium-conv",
    "vgg11",
    "vgg16",
    "vgg-like",
    "wrn-16-2",
    "wrn-16-8",
    "wrn-28-10",
    "alexnet",
    "alexnet-valid",
    "resnet50",
    "mobilenetv2",
]

DataName = Literal["digits", "mnist_5k", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012"]

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "lenet300": models.LeNet300100,
    "lenet5": models.LeNet5,
    "lenet5-relu": models.ReluLeNet5,
    "small-conv": models.SmallConv,
    "medium-conv": models.MediumConv,
    "vgg11": models.Vgg11,
    "vgg16": models.Vgg16,
    "vgg-like": models.VggLike,
    "wrn-16-2": models.WideResNet16x2,
    "wrn-16-8": models.WideResNet,
    "wrn-28-10": models.WideResNet28x10,
    "alexnet": models.AlexNet,
    "alexnet-valid": models.ValidAlexNet,
    "resnet50": models.ResNet50,
    "mobilenetv2": models.MobileNetV2,
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
    "imagenet2012": {"model": "resnet50", "epochs": 90, "batch_size": 256},
}

# Learning rate and c of gRDA, which has no momentum and so wants about ten times the rate.
_AVERAGING: dict[str, tuple[float, float]] = {
    "digits": (0.1, 0.02),
    "mnist_5k": (0.1, 0.005),
    "mnist": (0.2, 0.0015),
    "fashion_mnist": (0.2, 0.0015),
    "cifar10": (0.1, 0.001),
    "cifar100": (0.1, 0.001),
    "imagenet2012": (0.1, 0.005),
}


Chosen = TypeVar("Chosen", bound="Options")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train on, and with; what is left out is the data set's preset."""

    dataset: DataName = "digits"
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
    clip: float | None = None
    """Largest global norm of the gradient of a batch."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes, in training; 0.1 is usual on ImageNet."""
    bfloat16: bool = False
    """Let networks compute in bfloat16 in training, for TPUs and GPUs; parameters and optimizer stay float32."""
    accumulate: int = 1
    """Parts of a batch whose gradients are computed one after another, where memory does not hold it whole."""
    seeds: int = 3
    """Networks trained side by side."""
    seed: int = 0
    """The first seed."""
    results: Path = Path("results")
    """Where results, metrics and checkpoints go; a run found there is not trained again."""
    checkpoint_every: int = 10
    """Epochs between checkpoints, from which a killed run resumes; 0 saves the end only."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Processes)


def gates(dataset: DataName, model: ModelName | None = None) -> dict[str, Any]:
    """Returns how AutoPrune's auxiliary parameters of weights are trained from scratch; `None` is any but LeNet-5.

    Where epochs are short, it takes a large learning rate. The gradients of LeNet-5's differ by two orders of magnitude
    from layer to layer: with one learning rate, nearly nothing is left of its first layer.
    """
    if model == "lenet5":
        factors = {"Conv_0": 0.02, "Conv_1": 0.2, "Dense_1": 0.1}
        return {"rate": 2.0, "penalty": 6e-4, "factors": factors}
    return {"rate": {"digits": 4.0, "mnist_5k": 2.0}.get(dataset, 0.5), "penalty": 1e-3, "factors": {}}


def averaging(dataset: DataName, model: ModelName | None = None) -> tuple[float, float]:
    """Returns learning rate and c of gRDA; `None` is any network but LeNet-5.

    LeNet-5, which has no ReLU behind its convolutions, diverges at 0.1 and above.
    """
    rate, c = _AVERAGING[dataset]
    return (0.05, c * rate / 0.05) if model == "lenet5" else (rate, c)


def filled(options: Chosen, preset: dict[str, Any]) -> Chosen:
    """Returns the options with a preset's values where the user left a choice."""
    left = [field.name for field in dataclasses.fields(options) if getattr(options, field.name) is None]
    return dataclasses.replace(options, **{name: preset[name] for name in left if name in preset})


def published(options: Options, settings: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Returns a paper's own setting for the data set and network of the options; nothing if it is not asked for.

    Args:
      options: with a field `paper`.
      settings: `{(data set, network): preset}`; where the options name no network, the data set's first one.

    Raises:
      ValueError: the paper has no such setting; the message lists those it has.
    """
    if not options.paper:
        return {}
    asked = [key for key in settings if key[0] == options.dataset and options.model in (None, key[1])]
    if not asked:
        listed = ", ".join(f"--dataset {dataset} --model {model}" for dataset, model in settings)
        raise ValueError(f"--paper with --dataset {options.dataset}: the paper trains {listed}")
    return {"model": asked[0][1], **settings[asked[0]]}


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
    # ImageNet is read, cropped and mirrored on the way; the others fit in memory.
    read = data.stream if options.dataset == "imagenet2012" else data.load
    dataset = read(options.dataset, options.data_dir)
    return dataset, MODELS[settings["model"]](dataset.classes), recipe
