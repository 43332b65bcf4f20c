"""Every public name has a docstring, an executed example and a place in the README's API table."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import sparsejax

README = (Path(__file__).parent.parent / "README.md").read_text()
MODULES = [name for name in sparsejax.__all__ if inspect.ismodule(getattr(sparsejax, name))]


def public(module: str) -> list[str]:
    """The functions and classes a module offers: its `__all__`, or what it defines itself."""
    loaded = importlib.import_module(f"sparsejax.{module}")
    names = getattr(loaded, "__all__", None) or [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == loaded.__name__
    ]
    return [f"{module}.{name}" for name in names]


NAMES = [name for module in MODULES for name in public(module)]
VERBS = [name for name in sparsejax.__all__ if name not in MODULES]


def resolve(name: str):
    value = sparsejax
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_there_is_something_to_check():
    assert len(NAMES) > 30
    assert VERBS


@pytest.mark.parametrize("name", NAMES + VERBS)
def test_it_has_a_docstring_with_an_example(name):
    value = resolve(name)
    first = (inspect.getdoc(value) or "").split("\n")[0]
    assert re.match(r"(An? |The |[A-Z][a-z]+s )", first), f"{name}: {first!r} should say what it does, in the present"
    assert first.endswith((".", ":")), f"{name}: {first!r} should be one sentence"
    example = re.findall(r"^ *(?:>>>|\.\.\.) ", value.__doc__, re.MULTILINE)
    assert 1 <= len(example) <= 6, f"{name} needs an example of one to six lines, has {len(example)}"


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_names_arguments_results_and_errors(name):
    value = resolve(name)
    doc = inspect.getdoc(value)
    if not inspect.isfunction(value):
        return
    parameters = [p for p in inspect.signature(value).parameters if p not in ("self",)]
    for parameter in parameters:
        assert re.search(rf"^ *\*{{0,2}}{parameter}:", doc, re.MULTILINE), f"{name}: {parameter} is not explained"
    if inspect.signature(value).return_annotation is not None:
        assert "Returns:" in doc, f"{name}: nothing is said of its result"


@pytest.mark.parametrize("name", NAMES + VERBS)
def test_it_stands_in_the_readme(name):
    module, _, function = name.rpartition(".")
    rows = [line for line in README.splitlines() if line.startswith("|")]
    row = [line for line in rows if f"`sj.{module}`" in line] if module else rows
    pattern = rf"`(sj\.)?{re.escape(function)}`"
    assert any(re.search(pattern, line) for line in row), f"{name} is missing from the README's API table"
