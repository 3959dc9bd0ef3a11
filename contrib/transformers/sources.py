"""The definitions and imports that a set of classes needs, over all modules of a package."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simplify import FUNCTIONS, Source, edited

PACKAGE = "mega_transformers"


@dataclass
class Module:
    """A module's definitions as text, and where other names come from.

    Args:
        name: Within the package: "ops.layout".
        definitions: Name -> text, in the order of the file, with decorators and the comment right above.
        ours: Name -> module of the package, and the name there.
        imports: Name -> module elsewhere, and the name there; None for the module itself.
    """

    name: str
    definitions: dict[str, str] = field(default_factory=dict)
    ours: dict[str, tuple[str, str]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def read_module(file: Path, name: str, is_package: bool = False) -> Module:
    """Reads a module from its file."""
    source, module = Source(file.read_text(encoding="utf-8")), Module(name)
    parts = name.split(".") if name else []
    for node in _statements(source.tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                module.imports[each.asname or each.name] = (each.name, None)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            absolute = node.module or ""
            within = node.level > 0 or absolute.split(".")[0] == PACKAGE
            target = ".".join([*above, *filter(None, [absolute.removeprefix(PACKAGE).lstrip(".")])])
            for each in node.names:
                if within:
                    module.ours[each.asname or each.name] = (target, each.name)
                elif absolute != "__future__":
                    module.imports[each.asname or each.name] = (absolute, each.name)
        else:
            text = source.data[slice(*source.lines_of(node))].decode()
            for bound in _defined(node):
                module.definitions[bound] = text
    return module


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.If):  # `if TYPE_CHECKING`, and the newest release before others
            yield from node.body
        else:
            yield node


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return [node.name]
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]


class Package:
    """A package's modules, read when they are needed.

    Args:
        root: Its folder.
        plain: A module whose functions take the place of those of the same name; so do the methods and fields of its
            classes, except for classes in `whole`, which are replaced completely.
        whole: See above.
    """

    def __init__(self, root: Path, plain: Module, whole: Collection[str]) -> None:
        self.root, self.plain, self.whole = root, plain, whole
        self.modules: dict[str, Module] = {}
        self.replaced: set[str] = set()

    def module(self, name: str) -> Module:
        """A module of the package by its name within it."""
        if name not in self.modules:
            path = self.root.joinpath(*name.split("."))
            is_package = path.is_dir()
            file = path / "__init__.py" if is_package else path.with_suffix(".py")
            self.modules[name] = read_module(file, name, is_package)
        return self.modules[name]

    def home(self, module: str, name: str) -> tuple[str, str] | None:
        """The place in the package that defines a name of a module; None for names from elsewhere."""
        here = self.module(module)
        while name not in here.definitions:
            if name not in here.ours:
                return None
            target, name = here.ours[name]
            here = self.module(target)
        return here.name, name

    def text(self, module: str, name: str) -> str:
        """A definition, or its replacement."""
        text, plain = self.module(module).definitions[name], self.plain.definitions.get(name)
        if plain is None:
            return text
        self.replaced.add(name)
        if name in self.whole or not plain.lstrip().startswith(("class ", "@", "#")):
            return plain
        return merged(text, plain)


def merged(text: str, plain: str) -> str:
    """A class with the methods and fields of another in place of its own; further ones come last."""
    ours, theirs = Source(text), Source(plain)
    target, given = ours.tree.body[0], theirs.tree.body[0]
    if not (isinstance(target, ast.ClassDef) and isinstance(given, ast.ClassDef)):
        return plain
    members = {name: node for node in target.body for name in _defined(node)}
    edits, further = [], ""
    for node in given.body:
        text_of = theirs.data[slice(*theirs.lines_of(node))].decode()
        for name in _defined(node):
            if name in members:
                edits.append((*ours.lines_of(members[name]), text_of))
            else:
                further += f"\n{text_of}"
    return edited(text, edits).rstrip("\n") + "\n" + further


@dataclass
class Collected:
    """Definitions in the order of the file to write, and what they import.

    Args:
        texts: Name -> text.
        imports: Name -> module elsewhere, and the name there.
    """

    texts: dict[str, str]
    imports: dict[str, tuple[str, str | None]]


def collect(
    package: Package,
    entries: Sequence[tuple[str, str]],
    modules: Sequence[str],
    simplify: Callable[[str], str],
    outside: Mapping[str, tuple[str, str]],
) -> Collected:
    """The definitions that some classes need, and no others.

    Args:
        package: Where to look.
        entries: Module and name of each class.
        modules: The modules in the order in which their definitions are to be.
        simplify: Simplifies the text of a definition.
        outside: Names that come from another module than they would.

    Raises:
        ValueError: for a name that two modules define, or that nothing defines, and for modules of unknown place.
    """
    homes: dict[str, str] = {}
    texts: dict[str, str] = {}
    imports: dict[str, tuple[str, str | None]] = {}
    waiting = list(entries)
    while waiting:
        module, name = waiting.pop()
        if name in texts:
            if homes[name] != module:
                raise ValueError(f"{name} is defined in {module} and in {homes[name]}")
            continue
        if module not in modules:
            raise ValueError(f"{name} is used from {module}, which is not among the modules of plan.py")
        homes[name], texts[name] = module, simplify(package.text(module, name))
        own = package.plain if name in package.plain.definitions else None
        for used in names_in(texts[name]):
            if used in outside:
                imports[used] = outside[used]
                continue
            home = package.home(module, used)
            if home is None and own is not None:
                home = package.home(*own.ours[used]) if used in own.ours else None
            if home is not None:
                if home[1] not in outside:
                    waiting.append(home)
                continue
            known = package.module(module).imports | (own.imports if own else {})
            if used in known:
                imports[used] = known[used]
            elif used in package.plain.definitions:
                raise ValueError(f"{used} is defined only in plain.py, but nothing uses that name")
    order = {name: number for number, name in enumerate(modules)}
    places = {name: (order[homes[name]], list(package.module(homes[name]).definitions).index(name)) for name in texts}
    return Collected({name: texts[name] for name in sorted(texts, key=places.__getitem__)}, imports)


def names_in(text: str) -> list[str]:
    """The names that a definition uses and does not define, those in annotations that are strings too."""
    tree = ast.parse(text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[A-Z]\w+", node.value):
            used.add(node.value)
    return sorted(used - set(dir(builtins)))


def with_quoted_annotations(texts: Mapping[str, str]) -> dict[str, str]:
    """Definitions whose annotations may name what is defined after them."""
    result, later = {}, set(texts)
    for name, text in texts.items():
        source = Source(text)
        annotations = [
            annotation
            for node in ast.walk(source.tree)
            for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
            if annotation is not None
        ]
        wanted = [
            each
            for each in annotations
            if any(isinstance(node, ast.Name) and node.id in later for node in ast.walk(each))
        ]
        result[name] = edited(text, [(*source.span(each), f'"{source.text(each)}"') for each in wanted])
        later.discard(name)
    return result
