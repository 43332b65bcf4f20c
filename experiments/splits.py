"""The splits of a data set: arrays in memory, or streams of examples that memory does not hold."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from experiments import names

# `grain` takes a second to import: the function that needs it imports it.

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(image uint8 (height, width, c), generator) -> image uint8 of one shape; named as `names.of` asks for."""

Batch = tuple[np.ndarray, np.ndarray]
"""(images uint8 (n, height, width, c), labels int32 (n,))."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images (n, height, width, channels), uint8, and their labels (n,), int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.images.shape[1:]

    def read(self, indices: np.ndarray) -> Batch:
        """Returns some of the images."""
        return self.images[indices], self.labels[indices]

    def describe(self) -> Any:
        """Returns what a run's folder records: the shape."""
        return self.images.shape


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Examples that are read, decoded and transformed on the host as they are needed."""

    source: Sequence[dict]
    """`len`, and `__getitems__`: indices -> examples {"image": uint8 (height, width, c), "label": integer from 0}."""
    transform: Transform
    """What an image becomes."""
    image_shape: tuple[int, int, int]
    """(height, width, channels) of a transformed image."""
    workers: int = 0
    """Processes that prepare batches, started anew every epoch; 0 prepares them in threads of this process. The main
    script must then be importable: what it does stands under `if __name__ == "__main__"`."""
    threads: int = 16
    """Batches that each process prepares at once, in a thread each."""

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: np.ndarray) -> Batch:
        """Returns some of the images, transformed, the same at every call."""
        return _Load(self, np.asarray(indices)[None], seed=(0,))(0)

    def describe(self) -> Any:
        """Returns what a run's folder records: the shape, and what becomes of an image."""
        return {"shape": (len(self), *self.image_shape), "transform": names.of(self.transform)}

    @contextmanager
    def batches(
        self, order: np.ndarray, seed: tuple[int, ...], numbers: Sequence[int] | None = None
    ) -> Iterator[Iterator[Batch]]:
        """Opens the batches of an epoch, which are a function of the arguments, whatever `workers` and `threads`.

        Args:
          order: indices of the images, (batches, n); -1 stands for padding, a black image of label -1.
          seed: integers, at least 0, that draw the transformations together with the number of the batch.
          numbers: of the batches that are read, in turn; None reads all.

        Yields:
          An iterator of batches; the threads and processes behind it end with the context.

        Raises:
          ValueError: from the iterator, if an image has another shape or dtype than promised, or no label.
        """
        import grain
        from absl import flags

        if self.workers:  # or grain 0.2.18 refuses to start them outside absl.app: google/grain#1355
            flags.FLAGS.mark_as_parsed()
        load = _Load(self, np.asarray(order), tuple(seed))
        ahead = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.threads)
        chosen = range(len(load.order)) if numbers is None else [int(number) for number in numbers]
        dataset = grain.MapDataset.source(chosen).map(load).to_iter_dataset(ahead)
        processes = grain.MultiprocessingOptions(num_workers=self.workers)
        with closing(iter(dataset.mp_prefetch(processes))) as batches:
            yield batches


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set; `mean` and `std` are those of each channel of the training images scaled to [0, 1]."""

    name: str
    train: Split | Stream
    validation: Split | Stream
    test: Split | Stream
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def enlarged(dataset: Dataset, factor: int) -> Dataset:
    """Returns a data set in which pixels become squares of factor x factor, for networks that want larger images.

    Raises:
      ValueError: `factor` is less than 1, or the data set is a stream, which has a transformation for that.
    """
    if factor == 1:
        return dataset
    parts = (dataset.train, dataset.validation, dataset.test)
    if factor < 1 or not all(isinstance(part, Split) for part in parts):
        raise ValueError(f"factor={factor}: pixels of images in memory become squares of 1 or more pixels each way")
    larger = [Split(part.images.repeat(factor, 1).repeat(factor, 2), part.labels) for part in parts]
    return dataclasses.replace(dataset, train=larger[0], validation=larger[1], test=larger[2])


@dataclasses.dataclass(frozen=True, eq=False)
class _Load:
    """Number of a batch -> the batch: one read for all of its images, which is much faster than one each."""

    stream: Stream
    order: np.ndarray
    seed: tuple[int, ...]

    def __call__(self, number: int) -> Batch:
        rng = np.random.default_rng((*self.seed, number))
        order = self.order[number]
        images = np.zeros((len(order), *self.stream.image_shape), np.uint8)
        labels = np.full(len(order), -1, np.int32)
        known = np.flatnonzero(order >= 0)
        examples = self.stream.source.__getitems__(order[known].tolist())
        for place, example in zip(known, examples, strict=True):
            images[place] = self._image(example["image"], rng)
            labels[place] = self._label(example["label"])
        return images, labels

    def _image(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = self.stream.transform(image, rng)
        if (image.shape, image.dtype) != (self.stream.image_shape, np.uint8):
            raise ValueError(
                f"transform: got a {image.dtype} image of shape {image.shape}, but the stream promises uint8 and "
                f"{self.stream.image_shape}; change the transform or image_shape"
            )
        return image

    def _label(self, label: Any) -> int:
        if label < 0:
            raise ValueError(f"source: got label {label}, as in a split without labels; choose another split")
        return int(label)
