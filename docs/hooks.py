"""Adds pages to the site that are not files in `docs/`: those of the folders above, and the command-line reference.

MkDocs calls the functions `on_…` by their names.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: File of the repository to page of the site.
INCLUDED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
_COMMANDS = "commands.md"
#: `](target#anchor)` of a relative link.
_LINK = re.compile(r"\]\((?![a-z]+:|#|/)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for path, page in INCLUDED.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    files.append(File.generated(config, _COMMANDS, content=_command_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    stored = next((path for path, included in INCLUDED.items() if included == here), f"docs/{here}")

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(stored), match["target"]))
        if target not in INCLUDED and not target.startswith("docs/"):
            raise PluginError(f"{stored}: the link to {match['target']} leads to a file that is not on the site")
        to = INCLUDED.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(to, posixpath.dirname(here) or '.')}{match['anchor'] or ''})"

    return _LINK.sub(rewrite, markdown)


def _command_reference() -> str:
    """The `--help` of each command."""
    # argparse wraps its texts at the width of the terminal.
    os.environ["COLUMNS"] = "100"
    from kabuki_rlds.cli.main import _parser

    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    sections = [f"## {name}\n\n```text\n{parser.format_help()}```\n" for name, parser in commands.choices.items()]
    return "\n".join(["# Command line\n\nThe same texts are printed by `kabuki-rlds COMMAND --help`.\n", *sections])
