"""What the site adds to the pages here: linked files, the commands, tables of fields, tutorials as notebooks."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that are elsewhere in the repository."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+://|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
FIELDS = re.compile(r"^<!-- fields: ([\w.]+)(?:: ([\w, \n]+))? -->$", re.MULTILINE)
"""Where a table of a class's fields belongs: its dotted name, and which fields; all of them if none are named."""
BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?<!\\\n)^(?=[^#\n])", re.MULTILINE)  # where one begins that is not a continued line
RELATIVE_LINK = re.compile(r"!?\[([^\]]*)\]\((?![a-z]+://)[^)\s]*\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds pages from elsewhere, the reference of the commands, notebooks, and whatever pages link to."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    pages = [page.src_uri for page in files.documentation_pages()]
    for page in pages:  # which grows: linked pages have links of their own
        source = _source(page)
        if source is None:
            continue
        if _is_tutorial(page):
            made = notebook(source.read_text(encoding="utf-8"))
            files.append(File.generated(config, _notebook_of(page), content=made))
        for match in LINK.finditer(source.read_text(encoding="utf-8")):
            target = _resolved(source, match[1])
            if _in_repository(target) and files.get_file_from_path(_place(target)) is None:
                files.append(File.generated(config, _place(target), abs_src_path=str(target)))
                if target.suffix == ".md":
                    pages.append(_place(target))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fills in tables of fields, and makes links lead to where the site has what they lead to in the repository."""
    markdown = FIELDS.sub(lambda match: fields_table(match[1], match[2]), markdown)
    source = _source(page.file.src_uri)
    if source is None:
        return markdown

    def moved(match: re.Match[str]) -> str:
        target = _resolved(source, match[1])
        place = next((page for page, path in PAGES.items() if ROOT / path == target), None)
        if place is None and target.is_relative_to(DOCS):
            place = target.relative_to(DOCS).as_posix()
        elif place is None and _in_repository(target):
            place = _place(target)
        elif place is None:
            return match[0]
        return os.path.relpath(place, os.path.dirname(page.file.src_uri) or ".") + (match[2] or "")

    markdown = LINK.sub(moved, markdown)
    if _is_tutorial(page.file.src_uri):
        title, _, rest = markdown.partition("\n")
        name = Path(_notebook_of(page.file.src_uri)).name
        markdown = f'{title}\n\n[Download this page as a notebook]({name}){{ download="{name}" }}\n{rest}'
    return markdown


def notebook(markdown: str) -> str:
    """A tutorial as a Jupyter notebook, whose cells run the page's Python and, after `!`, its commands."""
    import jupytext

    def cell(block: re.Match[str]) -> str:
        return f"```python\n{COMMAND.sub('!', block[1])}```"

    made = jupytext.reads(COMMANDS.sub(cell, markdown), "md")
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for number, part in enumerate(made.cells):
        part["id"] = f"cell-{number}"  # jupytext's are random
        if part.cell_type == "markdown":  # the other pages are not beside a notebook
            part.source = RELATIVE_LINK.sub(r"\1", part.source)
    return jupytext.writes(made, "ipynb")


def _is_tutorial(page: str) -> bool:
    return page.startswith("tutorials/") and page != "tutorials/index.md"


def _notebook_of(page: str) -> str:
    return page.removesuffix(".md") + ".ipynb"


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


def fields_table(path: str, names: str | None = None) -> str:
    """The fields of a class as a table: name, type and default, and what its docstring says of it.

    Args:
        path: Dotted name of a dataclass, or of a model of pydantic.
        names: Fields to show, separated by commas; None for all that the class adds to those it inherits.

    Raises:
        ValueError: for a field that the class lacks or does not document.
    """
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    meanings = documented_fields(kind)
    fields = {field: (shown, default) for field, shown, default in _fields(kind)}
    wanted = list(meanings) if names is None else [field.strip() for field in names.split(",")]
    rows = ["| field | type and default | meaning |", "|---|---|---|"]
    for field in wanted:
        if field not in fields or field not in meanings:
            raise ValueError(f"{path}.{field}: there is no such field, or its class does not document it")
        shown, default = fields[field]
        default = "required" if default is None else f"`{default}`"
        rows.append(f"| `{field}` | `{shown}`<br>{default} | {meanings[field]} |")
    return "\n".join(rows)


def documented_fields(kind: type) -> dict[str, str]:
    """The fields in the docstring of a class under `Args:`, and what it says of each, on one line."""
    found = {}
    for section in griffe.Docstring(inspect.getdoc(kind) or "").parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.parameters:
            for parameter in section.value:
                meaning = " ".join(parameter.description.split()).replace("|", "\\|")
                found |= {name.strip(): meaning for name in parameter.name.split(",")}
    return found


def _fields(kind: Any) -> Iterator[tuple[str, str, str | None]]:
    """Name, type and default of every field; None for a field without default."""
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        for field in dataclasses.fields(kind):
            default = repr(field.default) if field.default is not missing else None
            if field.default_factory is not missing:
                default = repr(field.default_factory())
            yield field.name, field.type if isinstance(field.type, str) else _name(field.type), default
        return
    for name, field in kind.model_fields.items():
        limits = [(sign, getattr(bound, key, None)) for bound in field.metadata for key, sign in BOUNDS]
        bounds = [f"{sign} {limit}" for sign, limit in limits if limit is not None]
        shown = ", ".join([_name(field.annotation), *bounds])
        if field.default_factory is not None:
            yield name, shown, "computed"
        else:
            yield name, shown, None if field.is_required() else _name(field.default)


def _name(value: Any) -> str:
    """A type, or a default, as people write it in YAML or Python."""
    if hasattr(type(value), "model_fields"):  # a section of a recipe, with the defaults of its own fields
        return "{}"
    if isinstance(value, type) and not hasattr(value, "__args__"):
        return "mapping" if hasattr(value, "model_fields") else value.__name__
    shown = re.sub(r"mega_transformers(?:\.\w+)+", "mapping", repr(value)).replace("NoneType", "None")
    shown = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", shown.replace("typing.", ""))
    return re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace(", ", " | "), shown)


class Escaped(griffe.Extension):
    """Docstrings stay what they are in Markdown, where `<a, b>`, an inner product, would be a tag of HTML."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            parts = re.split(r"(``?[^`]*``?)", obj.docstring.value)
            obj.docstring.value = "".join(x if x.startswith("`") else x.replace("<", "&lt;") for x in parts)


def _commands() -> str:
    """The reference of the command line: what typer writes, as tables that show it as it is."""
    import click
    import typer.main
    from typer.cli import get_docs_for_click

    from mega_transformers.cli import app
    from mega_transformers.cli.examples import EXAMPLES

    command: Any = typer.main.get_command(app)
    with click.Context(command, info_name="mega") as context:
        written = get_docs_for_click(obj=command, ctx=context, name="mega", title="Commands")
    first, *sections = re.split(r"^## ", written, flags=re.MULTILINE)
    intro, _, _ = first.partition("**Usage**")
    lines = [_plain(intro), "| command | what it does |", "|---|---|"]
    for section in sections:
        title, text = section.split("\n", 1)
        anchor = title.strip("`").replace(" ", "-")
        lines.append(f"| [{title}](#{anchor}) | {_plain(text.strip().partition(chr(10))[0])} |")
    lines += [
        "",
        "Every command has `--help`. `mega --version` prints the version, and `mega --install-completion` makes the",
    ]
    lines += ["shell complete commands and options.", ""]
    for section in sections:
        title, text = section.split("\n", 1)
        about, _, rest = text.partition("**Usage**:")
        usage = re.search(r"^\$ (.*)$", rest, re.MULTILINE)
        lines += [f"## {title}", _plain(about), "```text", usage[1] if usage else "", "```"]
        for kind in ("Arguments", "Options"):
            _, _, items = rest.partition(f"**{kind}**:")
            found = [item for item in ITEM.findall(items.partition("**Options**")[0]) if item[0] != "--help"]
            if found:
                lines += ["", f"| {kind.lower()} | meaning |", "|---|---|"]
                lines += [f"| {_names(*item[:2])} | {_meaning(*item[2:])} |" for item in found]
        lines += ["", "Examples:", "", "```bash", *EXAMPLES[title.strip("`").removeprefix("mega ")], "```", ""]
    return "\n".join(lines)


ITEM = re.compile(r"^\* `(.+?)(?: (<[^`]*>|[A-Z/]+))?`: (.*?)(?:  \[(.*)\])?$", re.MULTILINE)
"""An argument or option as typer writes it: its names, what it takes, its help, and its default and bounds."""
KINDS = {
    "str": "TEXT",
    "path": "PATH",
    "int": "NUMBER",
    "int range": "NUMBER",
    "float": "NUMBER",
    "float range": "NUMBER",
}


def _names(names: str, kind: str) -> str:
    kind = re.sub(r"^<(?:list\[)?(.*?)\]?>$", r"\1", kind)
    shown = [f"`{name}`" for name in re.split(", | / ", names)]
    return ", ".join(shown) + (f" `{KINDS.get(kind, kind)}`" if kind and names.startswith("-") else "")


def _meaning(text: str, extra: str) -> str:
    """The help, then what it does not say itself: the default, bounds, the environment variable."""
    text = _plain(text).replace("|", "\\|").rstrip(".") + "."
    for part in filter(None, (extra or "").split("; ")):
        name, _, value = part.partition(": ")
        if name == "env var":
            text += f" Environment variable: `{value}`."
        elif name == "default":
            text += "" if "default" in text.lower() else f" Default: `{value}`."
        elif part != "required" and (bounds := re.fullmatch(r"(?:([\d.]+)<=)?x(?:([<>])=([\d.]+))?", part)):
            low, sign, other = bounds.groups()
            words = [f"at least {low or other}"] if low or sign == ">" else []
            words += [f"at most {other}"] if sign == "<" and float(other) < 2**31 - 1 else []
            text += f" {' and '.join(words).capitalize()}."
    return text


def _plain(text: str) -> str:
    """Text that stays what it is in Markdown, where `<mask>` would be a tag of HTML; options are code."""
    text = re.sub(r"(?<![\w`-])(--[a-z][\w-]*|<[\w-]+>)", r"`\1`", text)
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*") for part in parts)
