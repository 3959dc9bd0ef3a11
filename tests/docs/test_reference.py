"""The reference is complete and true: every public name is in it, exists, and says what its users need to know."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import mega_transformers

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
ENTRY = re.compile(r"^::: ([\w.]+)\n((?:    .*\n|(?=\n))*)", re.MULTILINE)
FIELDS = re.compile(r"^<!-- fields: ([\w.]+)(?:: ([\w, \n]+))? -->$", re.MULTILINE)
NOT_FOR_IMPORT = {
    "mega_transformers.cli": "its commands are the reference of commands",
    "mega_transformers.training.tasks": "recipes name tasks",
    "mega_transformers.training.lra": "recipes name readers",
}
"""Modules with an `__all__` that are not public, and what is instead."""
SHAPE = re.compile(r"\((?:\.\.\.|[A-Z]'?|[a-z]\w*)(?: or [\w ]+)?,|\(\.\.\.\)|scalar|any shape|any equal shapes")


def entries() -> Iterator[tuple[str, list[str]]]:
    """Every object that a page asks mkdocstrings for, and the members that it is to show."""
    for page in PAGES:
        for match in ENTRY.finditer(page.read_text(encoding="utf-8") + "\n"):
            options = yaml.safe_load(match[2]) or {"options": {}} if match[2].strip() else {"options": {}}
            yield match[1], options["options"].get("members") or []


def resolve(path: str) -> Any:
    """The object of a dotted name."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def public() -> dict[str, Any]:
    """Dotted name -> object, for everything that the reference shows; of modules their members alone."""
    found = {}
    for path, members in entries():
        owner = resolve(path)
        if not isinstance(owner, ModuleType):
            found[path] = owner
        found |= {f"{path}.{member}": getattr(owner, member) for member in members}
    return found


PUBLIC = public()
FUNCTIONS = {path: of for path, of in PUBLIC.items() if inspect.isfunction(of) or inspect.ismethod(of)}
CLASSES = {path: of for path, of in PUBLIC.items() if inspect.isclass(of)}


def test_nothing_is_listed_twice() -> None:
    named = [f"{path}.{member}" for path, members in entries() for member in members or [""]]
    assert sorted(set(named)) == sorted(named)


def test_every_exported_name_is_in_the_reference() -> None:
    missing = []
    modules = [mega_transformers.__name__]
    modules += [each.name for each in pkgutil.walk_packages(mega_transformers.__path__, "mega_transformers.")]
    listed = {id(of) for of in PUBLIC.values()}
    for name in modules:
        # no import of modules that have nothing to export
        spec = importlib.util.find_spec(name)
        source = Path(spec.origin) if spec is not None and spec.origin is not None else None
        if source is None or "\n__all__ =" not in source.read_text(encoding="utf-8") or name in NOT_FOR_IMPORT:
            continue
        module = importlib.import_module(name)
        exported = [each for each in module.__all__ if not each.startswith("__")]
        missing += [f"{name}.{each}" for each in exported if id(getattr(module, each)) not in listed]
    assert not missing, "add them to docs/reference, or take them out of __all__"


@pytest.mark.parametrize("path", sorted({**FUNCTIONS, **CLASSES}))
def test_has_a_docstring(path: str) -> None:
    own = vars(PUBLIC[path]).get("__doc__") if inspect.isclass(PUBLIC[path]) else PUBLIC[path].__doc__
    assert own and own.strip(), f"{path} has no docstring of its own"


def explained(of: Any, seen: tuple[Any, ...] = ()) -> str:
    """What a docstring says, with what it refers to for the rest."""
    text = inspect.getdoc(of) or ""
    for name in re.findall(r"(?:[Ss]ee|[Aa]s(?: in| of)?|what) `([\w.]+)`|`(\w+)`'s", text):
        words = tuple((name[0] or name[1]).split("."))
        others = (other for path, other in PUBLIC.items() if tuple(path.split(".")[-len(words) :]) == words)
        text += "".join("\n" + explained(other, (*seen, of)) for other in others if other not in (*seen, of))
    return text


@pytest.mark.parametrize("path", sorted(FUNCTIONS))
def test_a_function_says_what_it_takes_and_raises(path: str) -> None:
    function = inspect.unwrap(FUNCTIONS[path])
    text, own = explained(function), inspect.getdoc(function) or ""
    parameters = [
        each
        for name, each in inspect.signature(function).parameters.items()
        if name not in ("self", "cls", "args", "kwargs")
    ]
    if len(parameters) > 1:
        missing = [each.name for each in parameters if not re.search(rf"\b{re.escape(each.name)}\b", text)]
        assert not missing, f"{path} does not explain {missing}"
    if any("Tensor" in str(each.annotation) or "ndarray" in str(each.annotation) for each in parameters):
        assert SHAPE.search(text), f"{path} names no shape"
    if re.search(r"^ +raise (?!NotImplementedError)\w+\(", inspect.getsource(function), re.MULTILINE):
        assert re.search(r"Raises:|refuses|Refuses|refused", own), f"{path} does not say what it raises"


@pytest.mark.parametrize("path", sorted(path for path, of in CLASSES.items() if dataclasses.is_dataclass(of)))
def test_a_dataclass_explains_its_fields(path: str) -> None:
    kind = CLASSES[path]
    inherited = {name for base in kind.__mro__[1:] for name in inspect.get_annotations(base)}
    own = {name for name, of in inspect.get_annotations(kind).items() if "ClassVar" not in str(of)} - inherited
    text = explained(kind)
    missing = [name for name in sorted(own) if not name.startswith("_") and not re.search(rf"\b{name}\b", text)]
    assert not missing, f"{path} does not explain {missing}"


def hooks() -> ModuleType:
    spec = spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    return module


def test_tables_have_every_field_once() -> None:
    """Of the configurations, and of every section of a recipe."""
    from mega_transformers.training.recipe import RECIPES_OF_TASKS, Section

    shown: dict[str, list[str]] = {}
    for page in PAGES:
        for path, names in FIELDS.findall(page.read_text(encoding="utf-8")):
            fields = (
                [name.strip() for name in names.split(",")]
                if names
                else list(hooks().documented_fields(resolve(path)))
            )
            shown.setdefault(path, []).extend(fields)
    for name in ("MegaConfig", "MegaSeq2SeqConfig"):
        fields = shown[f"mega_transformers.{name}"]
        assert sorted(fields) == sorted(getattr(mega_transformers, name).__annotations__), name
    recipes = ("mega_transformers.training.recipe", "mega_transformers.training.sources")
    tables = {resolve(path): set(fields) for path, fields in shown.items() if path.startswith(recipes)}
    found = [one for name in recipes for one in vars(importlib.import_module(name)).values()]
    for kind in filter(inspect.isclass, found):
        if issubclass(kind, Section):
            known = {name for base in kind.__mro__ for name in tables.get(base, ())}
            assert set(kind.model_fields) <= known, f"{kind.__name__}: {set(kind.model_fields) - known}"
    text = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|.*\| \[", text, re.MULTILINE) == list(RECIPES_OF_TASKS)


def test_tables_show_types_and_defaults() -> None:
    table = hooks().fields_table("mega_transformers.MegaConfig", "chunk_size, truncation")
    assert "| `chunk_size` | `int`<br>`-1` | Tokens per chunk" in table
    assert "| `truncation` | `int \\| None`<br>`None` |" in table or "`int | None`<br>`None`" in table
    with pytest.raises(ValueError, match=r"MegaConfig\.chunk_sise"):
        hooks().fields_table("mega_transformers.MegaConfig", "chunk_sise")


def test_every_command_is_in_the_reference() -> None:
    """With every option, its default and its bounds; and nothing that Markdown would take for a tag of HTML."""
    from mega_transformers.cli import app

    page = hooks()._commands()
    for command in app.registered_commands:
        assert f"## `mega {command.name}`" in page
    assert "| `-k`, `--top-k` `NUMBER` | Number of candidates per mask. Default: `5`. At least 1. |" in page
    assert not re.findall(r"<[a-z]+>", re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL))


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: str(page.relative_to(ROOT / "docs"))
)
def test_pages_name_what_exists(page: Path) -> None:
    """Dotted names of the package, and classes whose names begin with Mega."""
    text = page.read_text(encoding="utf-8")
    for path in set(re.findall(r"`(mega_transformers(?:\.\w+)+)`", text)):
        resolve(path)
    known = {path.rpartition(".")[2] for path in PUBLIC}
    for name in set(re.findall(r"`(Mega(?:Model|For|Seq2Seq|Config)\w*)", text)):
        assert name in known, f"{page.name}: there is no {name}"
