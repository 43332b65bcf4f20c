"""What a run's history, one row an epoch, says at a glance."""

import math
from typing import Any

import numpy as np


def summary(row: dict[str, Any], size: int) -> dict[str, str]:
    """Returns what a progress bar shows of networks with so many parameters, all seeds' together: means over seeds."""
    return {
        "loss": f"{np.mean(row['train_loss']):.3f}",
        "accuracy": f"{np.mean(row['val_accuracy']):.2%}",
        "sparsity": f"{1 - sum(row['nonzeros']) / size:.2%}",
    }


def failed(history: list[dict[str, Any]], seed: int) -> bool:
    """Returns whether a loss or the penalty of a seed was infinite or NaN in any epoch."""
    names = ("train_loss", "penalty", "val_loss")
    return not all(math.isfinite(row[name][seed]) for row in history for name in names)
