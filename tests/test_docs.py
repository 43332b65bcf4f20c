"""The documentation: it builds without a warning, names everything public, and what it tells to type can be typed."""

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import test_public

from experiments import __main__ as cli

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in [*PAGES, ROOT / "README.md"]}
EXAMPLES = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in TEXTS.items()}


def commands(text):
    """What follows `python -m` in code spans, which may be broken, and in blocks, where comments may stand behind."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line for block in blocks for line in block.splitlines()] + [" ".join(span.split()) for span in spans]
    return {command.strip() for line in lines for command in re.findall(r"python -m (\w[^#&|]*)", line)}


COMMANDS = sorted(set().union(*map(commands, TEXTS.values())))


class Page(HTMLParser):
    """Holds a page, its anchors, and what it loads."""

    def __init__(self, page):
        super().__init__()
        self.anchors, self.loaded, self.text = set(), [], page.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        self.loaded += [attributes.get("src") if tag != "link" else attributes.get("href")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, built strictly: a warning, such as for a link to nowhere, is an error."""
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet, under which --strict does not see warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {page.relative_to(folder).as_posix(): Page(page) for page in folder.rglob("*.html")}


def test_every_public_name_has_a_place_in_the_built_reference(site):
    anchors = set().union(*(page.anchors for name, page in site.items() if name.startswith("reference/")))
    modules = {f"sparsejax.{module}" for module in test_public.MODULES}
    assert modules | {f"sparsejax.{name}" for name in test_public.NAMES} <= anchors


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site):
    assert {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in PAGES} <= site.keys()
    assert not [source for page in site.values() for source in page.loaded if source and "//" in source]


def test_names_and_examples_of_docstrings_are_rendered(site):
    for name, page in site.items():
        assert not re.search(r"&lt;autoref|<autoref|<blockquote|\]\[sparsejax", page.text), name


@pytest.mark.parametrize("name", [name for name, found in EXAMPLES.items() if found and name != "README.md"])
@pytest.mark.usefixtures("relaxed")
def test_the_examples_of_a_page_run_and_print_what_it_says(name, capsys):
    exec("\n".join(EXAMPLES[name]), {})
    printed = capsys.readouterr().out
    assert all(output in printed for output in re.findall(r"```output\n(.*?)```", TEXTS[name], re.DOTALL))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_a_page_names_can_be_typed(command):
    module, *arguments = shlex.split(command)
    if module == "experiments" and arguments and not arguments[0].isupper():
        cli.parse(arguments)
    elif module.startswith("benchmarks") or module == "experiments":
        path = ROOT / module.replace(".", "/")
        assert (path / "__main__.py").exists() or path.with_suffix(".py").exists()
    else:
        assert module in ("pytest", "venv", "pip")
