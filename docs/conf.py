"""How `make docs` builds the pages: Sphinx over this repository's Markdown, and the reference from the commands.

The source folder is the repository's root: a link between two files is the same here and where the repository is shown,
and every one of them is checked.
"""

from itertools import pairwise

import click
from sphinx.application import Sphinx

from hswq_hub import __version__

project, release = "HSWQ Hub", __version__
extensions = ["myst_parser", "sphinx_click"]
root_doc = "docs/index"
include_patterns = [
    *("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "RELEASING.md"),
    *("docs/*.md", "benchmarks/*.md", "skills/**/*.md", "model_cards/demo-hswq/*.md"),
]
exclude_patterns = [".venv", ".git", "build"]
highlight_language = "none"
smartquotes = False  # two hyphens are two hyphens
default_role = "code"  # help texts are Markdown: `publish` is what somebody types
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"HSWQ Hub {release}"
html_copy_source = False
templates_path = ["templates"]
html_additional_pages = {"index": "index.html"}
linkcheck_ignore = ["https?://"]  # listed, not fetched: a build needs no network

_OPTION, _EXAMPLE = ".. option::", "| "


def as_code(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Lines of a help text that are not to be wrapped are commands."""
    shown: list[str] = []
    for line in lines:
        example = line.startswith(_EXAMPLE)
        if example and not (shown and shown[-1].startswith("   ")):
            shown += [".. code-block:: none", ""]
        shown.append(f"   {line.removeprefix(_EXAMPLE)}" if example else line)
    lines[:] = shown


def under_headings(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Say the range of numbers, and put options under the headings that the command's own help has."""
    starts = [number for number, line in enumerate(lines) if line.startswith(_OPTION)]
    blocks = [lines[start:end] for start, end in pairwise([*starts, len(lines)])]
    options = [p for p in context.command.params if isinstance(p, click.Option) and not p.hidden]
    headings = getattr(context.command, "headings", {"": ()})
    groups: dict[str, list[str]] = {heading: [] for heading in headings}
    for option, block in zip(options, blocks, strict=True):
        heading = next((name for name, names in headings.items() if option.name in names), list(headings)[-1])
        numbers = option.get_help_extra(context).get("range")
        groups[heading] += [*block, f"    :range: ``{numbers}``", ""] if numbers else block
    lines[:] = [
        line
        for heading, block in groups.items()
        if block
        for line in (*((f".. rubric:: {heading}", "") if heading else ()), *block)
    ]


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-description", as_code)
    app.connect("sphinx-click-process-options", under_headings)
