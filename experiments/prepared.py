"""Finds data sets that TensorFlow Datasets can read without TensorFlow, prepares them, or says how to."""

import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from experiments import builders

PathLike = str | os.PathLike

# Where Debian's package `dataset-fashion-mnist` puts the four files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

PREPARED_HERE = {"digits": builders.Digits, "mnist_5k": builders.Mnist5k, "fashion_mnist": builders.FashionMNIST}


def builder(name: str, data_dir: PathLike | None, manual_dir: PathLike | None = None) -> tfds.core.DatasetBuilder:
    """Returns the builder of the version that is on disk, which is prepared first if that needs no TensorFlow.

    Args:
      name: a data set of tfds, or one of `PREPARED_HERE`.
      data_dir: folder or bucket of prepared data sets; None: TFDS_DATA_DIR or ~/tensorflow_datasets.
      manual_dir: folder of Fashion-MNIST's four files; None: Debian's.

    Raises:
      FileNotFoundError: when one of Fashion-MNIST's files is missing, or the folder on disk is incomplete.
      ValueError: when one of the files has the wrong content.
    """
    # tfds reads the environment when it is imported, which is too early for a notebook.
    data_dir = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if name in PREPARED_HERE:
        ours = PREPARED_HERE[name](data_dir=data_dir)
        if not ours.data_path.exists():
            _prepare(ours, Path(manual_dir or DEBIAN_FASHION_MNIST).expanduser())
        _check_complete(ours.data_path)
    # With a version, even any version, tfds looks at the disk before it looks at its own code.
    found = tfds.builder(f"{name}:*.*.*", data_dir=data_dir)
    _check_complete(found.data_path)
    return found


def _check_complete(path: Path) -> None:
    """Refuses a folder without its description, which tfds would take for another format or for no data set."""
    if path.exists() and not all((path / file).exists() for file in ("dataset_info.json", "features.json")):
        raise FileNotFoundError(f"{path} lacks dataset_info.json or features.json: delete this incomplete copy")


def _prepare(ours: tfds.core.DatasetBuilder, manual_dir: Path) -> None:
    """Writes the data set into a temporary folder, which tfds renames when it is complete."""
    if isinstance(ours, builders.FashionMNIST):
        _check_files(ours, manual_dir)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        ours.download_and_prepare(file_format="array_record", download_config=config)
    except OSError:
        # The name is taken when another process has prepared the data set meanwhile; its folder is as good.
        if not ours.data_path.exists():
            raise


def _check_files(ours: tfds.core.DatasetBuilder, folder: Path) -> None:
    """Says which of Fashion-MNIST's files are missing, and how to get them."""
    missing = [file for file in builders.FASHION_MNIST_FILES if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{ours.name} is not prepared in {ours.data_dir_root}, and {folder} lacks {', '.join(missing)}. "
            "Install them with `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or put the four files of "
            "https://github.com/zalandoresearch/fashion-mnist into a folder DIR of their own and run "
            f"`python -m experiments prepare_data {ours.name} --manual-dir DIR --data-dir {ours.data_dir_root}`"
        )


def sources(found: tfds.core.DatasetBuilder, splits: Sequence[str]) -> dict[str, Sequence[dict]]:
    """Opens splits for random access.

    Args:
      found: what `builder` returns.
      splits: in tfds's notation, such as "train" or "train[:10%]".

    Raises:
      FileNotFoundError: when the data set is not there, or only as TFRecord; the message says what to do.
    """
    try:
        return dict(zip(splits, found.as_data_source(list(splits)), strict=True))
    except NotImplementedError as error:  # tfds's answer to every other format, and to no data at all
        raise FileNotFoundError(_advice(found)) from error


def _advice(found: tfds.core.DatasetBuilder) -> str:
    """Says how to get a data set that can be read."""
    name, path = found.name, found.data_path
    recipe = (
        "on a machine with TensorFlow and a network run\n"
        "    import tensorflow_datasets as tfds\n"
        f'    tfds.builder("{name}", data_dir="DIR").download_and_prepare(file_format="array_record")\n'
        f"copy DIR/{name} here or to a bucket (`gcloud storage cp -r DIR/{name} gs://BUCKET/tfds/`), and pass the "
        "folder or bucket that now holds it as --data-dir (data_dir)"
    )
    if name in PREPARED_HERE:
        recipe = f"run `python -m experiments prepare_data {name} --data-dir DIR`, and pass that DIR"
    if path.exists():
        return (
            f"{path} holds {name} as {found.info.file_format.value}, which only TensorFlow can read. Convert it in "
            "place, on a machine with tensorflow, apache-beam and mlcroissant, by `tfds convert_format "
            f"--dataset_version_dir={path} --out_file_format=array_record`. Or prepare it in another folder: {recipe}"
        )
    files = " ".join((found.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    manual = f". tfds looks in DIR/downloads/manual for files that it cannot download: {files}" if files else ""
    return f"{name} is not prepared in {found.data_dir_root}. To prepare it, {recipe}{manual}"
