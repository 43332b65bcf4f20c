"""The networks of the papers, in Flax Linen, and their thin dense equivalents.

Every network has `classes` and `widths` and is called as `apply(variables, images float32 (n, h, w, c), train)`, which
returns logits (n, classes). Those with batch norm keep `batch_stats`, which training changes; those with dropout draw
from the random numbers "dropout" in training. Padding is PyTorch's, and so is batch norm, in Flax's terms: momentum
0.9, epsilon 1e-5. Where the papers or their authors' code name an initialiser, the docstring of the network does too.
"""

from experiments.models.layers import Conv, Dense, one_by_one
from experiments.models.lenets import LeNet5, LeNet300100, ReluLeNet5
from experiments.models.mobile import InvertedResidual, MobileNetV2
from experiments.models.plain import AlexNet, ConvNet, MediumConv, SmallConv, ValidAlexNet
from experiments.models.residual import Block, Bottleneck, ResNet50, WideResNet, WideResNet16x2, WideResNet28x10
from experiments.models.sizes import (
    multiplied,
    multiply_adds,
    parameter_count,
    parameter_shapes,
    scaled,
    thin,
    variable_shapes,
)
from experiments.models.vgg import Vgg11, Vgg16, VggLike

__all__ = [
    "AlexNet",
    "Block",
    "Bottleneck",
    "Conv",
    "ConvNet",
    "Dense",
    "InvertedResidual",
    "LeNet5",
    "LeNet300100",
    "MediumConv",
    "MobileNetV2",
    "ReluLeNet5",
    "ResNet50",
    "SmallConv",
    "ValidAlexNet",
    "Vgg11",
    "Vgg16",
    "VggLike",
    "WideResNet",
    "WideResNet16x2",
    "WideResNet28x10",
    "multiplied",
    "multiply_adds",
    "one_by_one",
    "parameter_count",
    "parameter_shapes",
    "scaled",
    "thin",
    "variable_shapes",
]
