"""A data set of random images, small enough to train on in a test."""

import numpy as np

from experiments.data import Dataset, Split


def tiny(side=4, count=64, seed=0):
    rng = np.random.default_rng(seed)
    split = Split(
        rng.integers(0, 256, (count, side, side, 1)).astype(np.uint8), rng.integers(0, 3, count).astype(np.int32)
    )
    return Dataset("tiny", split, split, split, 3, (0.5,), (0.25,))
