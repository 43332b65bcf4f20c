"""Image data sets from TensorFlow Datasets without TensorFlow: as arrays (`load`), streams or single examples."""

import logging
import os
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.crops import CentreCrop, RandomResizedCrop
from experiments.splits import Dataset, Split, Stream, Transform

# `experiments.prepared` imports tfds, which takes half a second: the functions that need it import it.

NAMES = ("digits", "mnist_5k", "fashion_mnist", "mnist", "cifar10", "cifar100", "imagenet2012")
BATCH = 1000  # images a read; array_record reads one at a time far more slowly
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as everybody has them
IMAGENET_CROP, IMAGENET_CENTRE = RandomResizedCrop(), CentreCrop()

PathLike = str | os.PathLike

log = logging.getLogger(__name__)


def load(name: str, data_dir: PathLike | None = None, validation: float = 0.1) -> Dataset:
    """Loads a data set into memory, with validation images taken from the training split, stratified by class.

    The division depends on nothing but the labels and `validation`. `digits`, `mnist_5k` and, where Debian's package
    `dataset-fashion-mnist` is installed, `fashion_mnist` are prepared at first use. Nothing is ever downloaded. The
    arrays are kept as `arrays.npz` beside the prepared data, because decoding 70,000 images takes ten seconds.

    Args:
      name: one of `NAMES`, but not `imagenet2012`.
      data_dir: folder of prepared data sets; None: the environment variable TFDS_DATA_DIR or ~/tensorflow_datasets.
        A bucket (`gs://bucket/folder`, needs gcsfs) must be a string: `Path` would drop one of the slashes.
      validation: share of the training split, in (0, 1).

    Raises:
      ValueError: for an unknown name, a data set that memory does not hold, or a share that leaves a side empty.
      FileNotFoundError: when the data set is not prepared; the message says how to prepare it.
    """
    _check(name)
    if name == "imagenet2012":
        raise ValueError("name='imagenet2012' does not fit in memory: read it with experiments.data.stream or source")
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation} is not in (0, 1): it is a share of the training split")
    from experiments import builders, prepared

    builder = prepared.builder(name, data_dir)
    train, test = _arrays(builder, prepared.sources(builder, ["train", "test"]))
    kept, held_out = builders.stratified(train.labels, validation)
    if not len(kept) or not len(held_out):
        raise ValueError(
            f"validation={validation} divides {len(train.labels)} images into {len(kept)} and {len(held_out)}: "
            "choose a share that leaves some on both sides"
        )
    mean, std = _mean_and_std(train.images[kept])
    return Dataset(
        name=name,
        train=Split(train.images[kept], train.labels[kept]),
        validation=Split(train.images[held_out], train.labels[held_out]),
        test=test,
        classes=builder.info.features["label"].num_classes,
        mean=mean,
        std=std,
    )


def stream(
    name: str = "imagenet2012",
    data_dir: PathLike | None = None,
    train: str = "train[:99%]",
    validation: str = "train[99%:]",
    test: str = "validation",
    transform: Transform = IMAGENET_CROP,
    evaluation: Transform = IMAGENET_CENTRE,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    workers: int = 0,
) -> Dataset:
    """Opens a data set that memory does not hold; what is left out is usual on ImageNet.

    ImageNet's own test split has no labels, and its validation split is what papers test on: hence these names.

    Args:
      name: one of `NAMES`.
      data_dir: as for `load`.
      train: the split to train on, in tfds's notation.
      validation: the split to follow training on; it should have no image of the other two.
      test: the split to test on, once.
      transform: what an image of `train` becomes, of the shape that `evaluation` gives.
      evaluation: what an image of the other two becomes.
      mean: of each channel, of values in [0, 1].
      std: of each channel, of values in [0, 1].
      workers: processes that prepare batches, as for `splits.Stream`.

    Raises:
      ValueError: for an unknown name or split.
      FileNotFoundError: when the data set is not prepared; the message says how to prepare it.
    """
    _check(name)
    from experiments import prepared

    builder = prepared.builder(name, data_dir)
    sources = prepared.sources(builder, [train, validation, test])
    example = sources[validation][0]["image"]
    shape = evaluation(example, np.random.default_rng(0)).shape
    return Dataset(
        name=name,
        train=Stream(sources[train], transform, shape, workers),
        validation=Stream(sources[validation], evaluation, shape, workers),
        test=Stream(sources[test], evaluation, shape, workers),
        classes=builder.info.features["label"].num_classes,
        mean=mean,
        std=std,
    )


def source(name: str, split: str, data_dir: PathLike | None = None) -> Sequence[dict]:
    """Opens a split for random access: `len`, and by index examples {"image": uint8 array, "label": integer, ...}.

    For data that does not fit in memory.

    Args:
      name: one of `NAMES`.
      split: in tfds's notation, such as "train", "validation" or "train[:10%]".
      data_dir: as for `load`.

    Raises:
      ValueError: for an unknown name or split.
      FileNotFoundError: when the data set is not prepared; the message says how to prepare it.
    """
    _check(name)
    from experiments import prepared

    return prepared.sources(prepared.builder(name, data_dir), [split])[split]


def prepare(name: str, manual_dir: PathLike | None = None, data_dir: PathLike | None = None) -> str:
    """Prepares a data set unless it is there already, and returns the folder that holds it.

    Args:
      name: one of `NAMES`; those that only TensorFlow can prepare must be there already.
      manual_dir: folder with the four official files of `fashion_mnist`; None: where Debian's package puts them.
      data_dir: as for `load`.

    Raises:
      ValueError: for an unknown name, `manual_dir` with another data set, or a file with the wrong content.
      FileNotFoundError: when a file is missing or only TensorFlow can prepare it; the message says what to do.
    """
    _check(name)
    if manual_dir is not None and name != "fashion_mnist":
        raise ValueError(f"manual_dir={os.fspath(manual_dir)!r} is for fashion_mnist; {name} takes no files")
    from experiments import prepared

    builder = prepared.builder(name, data_dir, manual_dir)
    prepared.sources(builder, ["train"])
    return os.fspath(builder.data_path)


def _check(name: str) -> None:
    """Refuses an unknown name, which tfds would answer with a list of a thousand."""
    if name not in NAMES:
        raise ValueError(f"name={name!r} is not a data set of these experiments; choose one of {', '.join(NAMES)}")


def _arrays(builder: Any, sources: dict[str, Sequence[dict]]) -> list[Split]:
    """Returns the splits from the cache, or decodes them and writes the cache."""
    cache = builder.data_path / "arrays.npz"
    shape = builder.info.features["image"].shape
    lengths = {split: len(examples) for split, examples in sources.items()}
    splits = _read_cache(cache, lengths, shape)
    if splits is None:
        splits = {split: _decode(examples, shape, f"{builder.name} {split}") for split, examples in sources.items()}
        _write_cache(cache, splits)
    return list(splits.values())


def _decode(examples: Sequence[dict], shape: tuple[int, ...], title: str) -> Split:
    """Reads all examples into arrays."""
    images, labels = np.empty((len(examples), *shape), np.uint8), np.empty(len(examples), np.int32)
    for start in tqdm(range(0, len(examples), BATCH), f"decoding {title}", disable=None):
        batch = examples.__getitems__(list(range(start, min(start + BATCH, len(examples)))))
        images[start : start + BATCH] = [example["image"] for example in batch]
        labels[start : start + BATCH] = [example["label"] for example in batch]
    return Split(images, labels)


def _read_cache(cache: Any, lengths: dict[str, int], shape: tuple[int, ...]) -> dict[str, Split] | None:
    """Returns the splits, or None when the cache does not hold exactly what is expected."""
    if not cache.exists():
        return None
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            splits = {split: Split(archive[f"{split}_images"], archive[f"{split}_labels"]) for split in lengths}
    except Exception as error:  # a damaged file fails in many ways, and the data can always be decoded again
        log.warning("decoding again: %s cannot be read (%s)", cache, error)
        return None
    for split, length in lengths.items():
        images, labels = splits[split].images, splits[split].labels
        found = images.shape, images.dtype, labels.shape, labels.dtype
        if found != ((length, *shape), np.uint8, (length,), np.int32):
            log.warning("decoding again: %s holds other arrays than the data set's %s split", cache, split)
            return None
    return splits


def _write_cache(cache: Any, splits: dict[str, Split]) -> None:
    """Writes the splits under a temporary name and renames the file, so that no reader sees a part of it."""
    arrays = {f"{name}_images": split.images for name, split in splits.items()}
    arrays |= {f"{name}_labels": split.labels for name, split in splits.items()}
    temporary = cache.with_name(f"incomplete.{uuid.uuid4().hex}.npz")
    try:
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            temporary.replace(cache)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the data will be decoded again next time: %s cannot be written (%s)", cache, error)


def _mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns each channel's mean and standard deviation, of values in [0, 1]; exact integer sums, no float copy."""
    pixels = images[..., 0].size
    mean = images.sum(axis=(0, 1, 2), dtype=np.int64) / pixels
    square = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64) / pixels
    return tuple((mean / 255).tolist()), tuple((np.sqrt(square - mean**2) / 255).tolist())
