"""What the site has beyond the pages in this folder: files of the repository that pages link to, and the commands."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that are elsewhere in the repository."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+://|#)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds pages from elsewhere in the repository, the reference of the commands, and whatever pages link to."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    for page in [*files.documentation_pages()]:
        source = _source(page.src_uri)
        if source is None:
            continue
        for match in LINK.finditer(source.read_text(encoding="utf-8")):
            target = _resolved(source, match[1])
            if _in_repository(target) and files.get_file_from_path(_place(target)) is None:
                files.append(File.generated(config, _place(target), abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links lead to where the site has what they lead to in the repository."""
    source = _source(page.file.src_uri)
    if source is None:
        return markdown

    def moved(match: re.Match[str]) -> str:
        target = _resolved(source, match[1])
        if target.is_relative_to(DOCS):
            place = target.relative_to(DOCS).as_posix()
        elif _in_repository(target):
            place = _place(target)
        else:
            return match[0]
        place = next((page for page, path in PAGES.items() if ROOT / path == target), place)
        return os.path.relpath(place, os.path.dirname(page.file.src_uri) or ".") + (match[2] or "")

    return LINK.sub(moved, markdown)


def _source(page: str) -> Path | None:
    """The file of the repository that a page of the site is made of."""
    if page.startswith("repository/"):
        return ROOT / page.removeprefix("repository/")
    path = ROOT / PAGES[page] if page in PAGES else DOCS / page
    return path if path.is_file() else None


def _resolved(source: Path, link: str) -> Path:
    path = Path(os.path.normpath(source.parent / link))
    return path / "README.md" if path.is_dir() else path


def _in_repository(path: Path) -> bool:
    """Whether a file is one of the repository that is not among the pages anyway."""
    outside = path.is_relative_to(ROOT) and not path.is_relative_to(DOCS)
    return outside and path.is_file() and path not in {ROOT / source for source in PAGES.values()}


def _place(path: Path) -> str:
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def _commands() -> str:
    """The reference of the command line, as typer writes it."""
    import typer.main
    from typer.cli import get_docs_for_click

    from mega_transformers.cli import app
    from mega_transformers.cli.examples import EXAMPLES

    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        command.epilog = "\n".join(("**Examples**:\n", "```console", *(f"$ {line}" for line in EXAMPLES[name]), "```"))
    import click

    with click.Context(group, info_name="mega") as context:
        text = get_docs_for_click(obj=group, ctx=context, name="mega", title="Commands")
    # "<mask>" outside of code would be a tag
    return re.sub(
        r"```.*?```|`[^`]*`|<(\w+)>", lambda found: f"`{found[0]}`" if found[1] else found[0], text, flags=re.S
    )
