"""What is handed out: the files and metadata of wheel and source distribution, and a reason for each dependency."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import sparsejax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PACKAGE = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sparsejax").rglob("*.py")} | {"sparsejax/py.typed"}
INFO = f"sparsejax-{sparsejax.__version__}.dist-info"


def build(source, folder, *targets):
    """Builds with the backend that pyproject.toml names; returns the files."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", folder, *(f"-t{target}" for target in targets)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    wheel, sdist = build(ROOT, tmp_path_factory.mktemp("dist"), "sdist", "wheel")
    return {"sdist": sdist, "wheel": wheel}


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def requirements(extra):
    """The requirements of an extra, with those of the extras of this project that it names."""
    found = set()
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        own = requirement.name == "sparsejax"
        found |= set().union(*map(requirements, requirement.extras)) if own else {normal(requirement)}
    return found


def normal(requirement):
    """Name, extras and versions of a requirement, without its marker."""
    return canonicalize_name(requirement.name), frozenset(requirement.extras), str(requirement.specifier)


def test_the_wheel_holds_the_package_and_its_metadata_and_nothing_else(built):
    assert built["wheel"].name == f"sparsejax-{sparsejax.__version__}-py3-none-any.whl"
    metadata = {f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    files = contents(built["wheel"])
    assert set(files) == PACKAGE | metadata
    assert all(files[name] == (ROOT / name).read_bytes() for name in PACKAGE)
    assert files[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_its_metadata_is_what_the_project_says(built):
    message = email.message_from_string(contents(built["wheel"])[f"{INFO}/METADATA"].decode())
    project = PROJECT["project"]
    assert (message["Name"], message["Version"]) == ("sparsejax", sparsejax.__version__)
    assert message["License-Expression"] == project["license"]
    assert message["Requires-Python"] == project["requires-python"]
    assert message.get_payload() == (ROOT / "README.md").read_text()
    wanted = {"": {normal(Requirement(text)) for text in project["dependencies"]}}
    wanted |= {extra: requirements(extra) for extra in EXTRAS}
    found = {extra: set() for extra in wanted}
    for text in message.get_all("Requires-Dist"):
        requirement = Requirement(text)
        extra = re.findall(r"extra == [\"'](\w+)[\"']", str(requirement.marker))
        found["".join(extra)].add(normal(requirement))
    assert found == wanted
    assert set(message.get_all("Provides-Extra")) == set(EXTRAS)


def test_the_source_distribution_holds_the_sources_and_makes_the_same_wheel(built, tmp_path):
    with tarfile.open(built["sdist"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert names >= PACKAGE
    tops = {"sparsejax", "tests", "experiments", "benchmarks", "docs", "mkdocs.yml", "pyproject.toml", ".gitignore"}
    tops |= {"README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO", "constraints.txt"}
    assert {name.split("/")[0] for name in names} == tops
    kinds = {".py", ".md", ".ipynb", ".toml", ".txt", ".yml", ".css", ".png", ".typed", ""}
    assert {Path(name).suffix for name in names} <= kinds
    assert not [name for name in names if re.search(r"__pycache__|\.cache|results/|site/", name)]
    (again,) = build(source, tmp_path / "again", "wheel")
    assert contents(again) == contents(built["wheel"])


def explained():
    """The tables of the page about dependencies: `{heading: {(name, extras, versions)}}`."""
    page = (ROOT / "docs" / "supply-chain.md").read_text()
    tables = {}
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| `([^`]+)` \| *([\w.]*) *\| ([^|]+) \|$", section, re.MULTILINE)
        assert all(reason.strip() for *_, reason in rows)
        found = {normal(Requirement(f"{name}>={least}" if least else name)) for name, least, _ in rows}
        tables |= dict.fromkeys(re.split(", ", section.split("\n")[0]), found)
    return tables


def test_every_dependency_is_explained_with_its_lower_bound():
    tables = explained()
    wanted = {"core": PROJECT["project"]["dependencies"], "build": PROJECT["build-system"]["requires"], **EXTRAS}
    wanted = {name: {normal(Requirement(text)) for text in texts} for name, texts in wanted.items()}
    accelerators = wanted.pop("cuda") | wanted.pop("tpu")
    assert tables.pop("cuda") == tables.pop("tpu") == accelerators
    own = ("sparsejax", frozenset({"experiments", "docs"}), "")  # what the page says in words
    assert own in wanted["test"]
    assert tables == wanted | {"test": wanted["test"] - {own}}


def pinned(file):
    lines = (ROOT / file).read_text().splitlines()
    pins = [Requirement(line) for line in lines if line]
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in pins), "one exact version each"
    return pins


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    pins = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pinned("constraints-oldest.txt")}
    direct = {normal(Requirement(text)) for text in PROJECT["project"]["dependencies"]} | requirements("test")
    for name, _, versions in direct:
        least, found = Version(versions.removeprefix(">=")), Version(pins[name])
        assert found == least or (found > least and found.release[:2] == least.release[:2]), name


def test_the_pinned_versions_are_within_the_bounds():
    direct = {normal(Requirement(text)) for text in PROJECT["project"]["dependencies"]} | requirements("test")
    pins = pinned("constraints.txt")
    for name, _, versions in direct:
        found = [pin for pin in pins if canonicalize_name(pin.name) == name]
        assert found, name
        assert all(Version(str(pin.specifier)[2:]) in Requirement(f"{name}{versions}").specifier for pin in found)
