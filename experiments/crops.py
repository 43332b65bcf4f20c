"""What becomes of a photograph before a network sees it: the crops that are usual on ImageNet, by Pillow."""

import dataclasses
import math

import numpy as np
from PIL import Image

ATTEMPTS = 10  # at a random box that lies in the image, as in torchvision


def as_it_is(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the image.

    Args:
      image: uint8 (height, width, channels).
      rng: not read.
    """
    return image


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of the image, resized to a square, half of the time mirrored left to right.

    The box's share of the area is uniform in `scale`, and the logarithm of its ratio of width to height in
    log(`ratio`). A box that does not fit is drawn again; after ten such the box is the largest in the image's centre
    with a ratio in `ratio`. This is Szegedy et al., *Going Deeper with Convolutions* (2015), as torchvision has it.
    """

    size: int = 224
    """Height and width of the result, in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 (size, size, c).

        Args:
          image: uint8 (height, width, c), c = 1 or 3.
          rng: draws the box and the coin.
        """
        top, left, height, width = self.box(*image.shape[:2], rng)
        result = _resized(image[top : top + height, left : left + width], self.size, self.size)
        return result[:, ::-1] if rng.random() < 0.5 else result

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Returns (top, left, height, width) of a box in an image of so many pixels."""
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The square in the centre of the image, which is resized so that its shorter side has `resize` pixels."""

    size: int = 224
    """Height and width of the result, in pixels."""
    resize: int = 256
    """Shorter side of the image before it is cropped, in pixels, at least `size`."""

    def __post_init__(self):
        """Raises `ValueError` if the square does not fit."""
        if self.size > self.resize:
            raise ValueError(f"size: got {self.size}, which is larger than resize, {self.resize}")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 (size, size, c).

        Args:
          image: uint8 (height, width, c), c = 1 or 3.
          rng: not read.
        """
        height, width = image.shape[:2]
        shorter = min(height, width)
        resized = _resized(image, self.resize * height // shorter, self.resize * width // shorter)
        top, left = (round((side - self.size) / 2) for side in resized.shape[:2])
        return resized[top : top + self.size, left : left + self.size]


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the image (h, w, c) at another size: bilinear, and averaged where it shrinks."""
    grey = image.shape[-1] == 1  # which Pillow holds without an axis for channels
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, -1)
