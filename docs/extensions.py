"""What mkdocs.yml adds to the builder: names of the library in text become links to the reference, examples code."""

import re

import griffe

NAME = re.compile(r"`(sparsejax(?:\.\w+)+)`")
SHORT = re.compile(r"`sj\.(\w+(?:\.\w+)*)`")


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Returns a page in which every `sj.name` is a link; to a name that is not public the strict build says no."""
    return SHORT.sub(r"[`sj.\1`][sparsejax.\1]", markdown)


class Docstrings(griffe.Extension):
    """Makes Markdown of the paragraphs of docstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rewrites the docstring of an object that has been loaded."""
        if obj.docstring:
            obj.docstring.value = "\n\n".join(map(rendered, obj.docstring.value.split("\n\n")))


def rendered(paragraph: str) -> str:
    """Returns a paragraph whose example is a code block, for else it were a quotation, and whose names are links."""
    if paragraph.startswith("    "):
        return paragraph
    if paragraph.startswith(">>>"):
        return f"```pycon\n{paragraph}\n```"
    return NAME.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', paragraph)
