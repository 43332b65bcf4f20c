"""Published accuracies of pruned networks, for the background of figures: other recipes, other dense networks.

Numbers are from the papers and from tables that their authors or others keep; a compression is that of all parameters
where the source has it, and otherwise what its sparsity makes of the pruned layers.
"""

from typing import NamedTuple

Points = tuple[tuple[float, float], ...]
"""`(compression, top-1 accuracy in percent)`."""


class Published(NamedTuple):
    """A method's numbers on one network."""

    source: str
    dense: float | None
    """Top-1 accuracy of the source's own dense network, in percent, where it has one."""
    points: Points


def _sparse(*points: tuple[float, float]) -> Points:
    """Returns points that are given by sparsity in percent."""
    return tuple((100 / (100 - sparsity), accuracy) for sparsity, accuracy in points)


NUMBERS: dict[tuple[str, str], tuple[Published, ...]] = {
    ("mnist", "LeNet300100"): (
        Published("Han et al. 2015", 98.36, ((12, 98.41),)),
        Published("dynamic network surgery 2016", None, ((56, 98.01),)),
        Published("soft weight sharing 2017", None, ((23, 98.06),)),
        Published("sparse variational dropout 2017", None, ((68, 98.08),)),
        Published("learning-compression 2018", 97.87, ((20, 97.82),)),
    ),
    ("mnist", "LeNet5"): (
        Published("Han et al. 2015", 99.2, ((12, 99.23),)),
        Published("dynamic network surgery 2016", None, ((111, 99.09),)),
        Published("soft weight sharing 2017", None, ((200, 99.03),)),
        Published("sparse variational dropout 2017", None, ((280, 99.25),)),
        Published("AutoPrune from scratch 2019", None, ((168, 99.05),)),
    ),
    ("cifar10", "Vgg16"): (
        Published("gRDA 2020", 90.82, _sparse((24.45, 90.87), (61.41, 91.02), (90.48, 90.86), (97.2, 90.64))),
    ),
    ("cifar10", "WideResNet28x10"): (
        Published("gRDA 2020", 94.17, _sparse((90.17, 94.46), (94.74, 94.43), (97.07, 94.5), (98.29, 94.53))),
    ),
    ("cifar100", "WideResNet28x10"): (
        Published("gRDA 2020", 76.53, _sparse((82.69, 76.92), (90.2, 77.0), (94.2, 77.0), (96.3, 76.85))),
    ),
    ("cifar100", "WideResNet"): (
        Published("adaptive sparsity, fixed-BS 2020", 78.52, ((11.012 / 1.719, 78.66),)),
        Published("adaptive sparsity, fixed-GA 2020", 78.52, ((11.012 / 1.588, 78.45),)),
        Published("adaptive sparsity, budget-wavg 2020", 78.52, ((11.012 / 1.655, 78.55),)),
        Published("thin network 2020", 78.52, ((11.012 / 1.672, 74.89),)),
    ),
    ("imagenet2012", "AlexNet"): (
        Published("adaptive sparsity 2020", 56.58, ((61.1 / 2.65, 56.62),)),
        Published("learning both weights and connections 2015", 56.58, ((61.1 / 6.71, 57.2),)),
        Published("dynamic network surgery 2016", 56.58, ((61.1 / 3.48, 56.91),)),
    ),
    ("imagenet2012", "ResNet50"): (
        Published("magnitude, Gale et al. 2019", 76.69, _sparse((80, 75.58), (90, 73.91), (95, 70.59), (98, 57.9))),
        Published("random, Gale et al. 2019", 76.69, _sparse((80, 70.21), (90, 65.0), (95, 58.08), (98, 44.0))),
        Published("RigL 2020", 76.8, _sparse((80, 75.12), (90, 73.07), (95, 70.39))),
        Published("STR 2020", 77.01, _sparse((81.3, 76.12), (90.2, 74.31), (95.2, 70.23), (98.1, 61.46))),
        Published("gRDA 2020", 68.71, _sparse((79.69, 72.75), (91.59, 73.24), (94.98, 72.16), (98.17, 65.51))),
    ),
}


def of(dataset: str, network: str) -> tuple[Published, ...]:
    """Returns what is published of a network (the name of its class) on a data set."""
    return NUMBERS.get((dataset, network), ())
