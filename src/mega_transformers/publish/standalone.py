"""Writes this package's modelling code beside a model, for `trust_remote_code=True` without the package.

transformers copies such files, and those they import, from a model's folder or repository into a package of its own.
It finds imports in the text and does not support sub-packages. So every module that a model needs becomes a file, such
as `ops_ema_chunked.py`, with the same text except for imports of other modules of this package. The files are made
from the installed sources.
"""

from __future__ import annotations

import ast
import re
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import transformers

from .._version import __version__
from ..convert.conversion_card import AUTO
from .errors import PublishError

PACKAGE = "mega_transformers"
MODELS = "models.mega."
CONFIGURATION = "models.mega.configuration_mega"
PAIRS = "models.mega.modeling_mega_pairs"


def auto_map(config: Any) -> dict[str, str]:
    """Auto class -> "file.Class", for every class that this package registers for such a configuration.

    Raises:
        PublishError: for a configuration of transformers itself.
    """
    if not type(config).__module__.startswith(PACKAGE):
        raise PublishError(
            f"{type(config).__name__}: transformers' encoder-decoder loads its two Mega models by name, which does "
            "not work with code beside the model; leave out --standalone"
        )
    classes = {"AutoConfig": type(config)}
    for name in ("AutoModel", *sorted(set(AUTO.values()))):
        mapping = getattr(getattr(transformers, name), "_model_mapping", {})
        if type(config) in mapping:
            classes[name] = mapping[type(config)]
    return {auto: f"{flat(_within(each))}.{each.__name__}" for auto, each in classes.items()}


def modules_of(config: Any) -> dict[str, str]:
    """File name -> text, for all modules that the models of such a configuration need.

    Raises:
        PublishError: for an import that cannot work among files of one folder.
    """
    entries = sorted({MODELS + reference.partition(".")[0] for reference in auto_map(config).values()} | {PAIRS})
    texts: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in texts:
            texts[module], imported = _flattened(module)
            waiting += imported
    texts[CONFIGURATION] += _imports_of(entries)
    return {f"{flat(module)}.py": text for module, text in sorted(texts.items())}


def flat(module: str) -> str:
    """The name of a module's file: "ops.ema.chunked" -> "ops_ema_chunked"; models keep their names."""
    return module.removeprefix(MODELS).replace(".", "_")


def _within(each: type[Any]) -> str:
    return each.__module__.removeprefix(f"{PACKAGE}.")


def _source(module: str) -> tuple[str, str]:
    """The file of a module, relative to the package's parent, and its text."""
    path = module.replace(".", "/")
    for name in (f"{path}.py", f"{path}/__init__.py"):
        file = files(PACKAGE).joinpath(name)
        if file.is_file():
            return f"{PACKAGE}/{name}", file.read_text(encoding="utf-8")
    raise PublishError(f"{PACKAGE}.{module} is imported, but has no source file; install the package from its sources")


def _flattened(module: str) -> tuple[str, list[str]]:
    """The text of a module as a file beside the model, and the modules that it imports."""
    file, text = _source(module)
    parts = PurePosixPath(file).parent.parts[1:]
    lines, imported = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        if node.module is None or node.level > len(parts) + 1:
            raise PublishError(f"{file}, line {node.lineno}: only `from .module import name` can be published")
        target = ".".join((*parts[: len(parts) + 1 - node.level], *node.module.split(".")))
        line, start = lines[node.lineno - 1], node.col_offset
        rewritten = re.sub(r"^from\s+[.\w]+", f"from .{flat(target)}", line[start:])
        lines[node.lineno - 1] = line[:start] + rewritten
        imported.append(target)
    header = (
        f"# {file} of mega-transformers {__version__}, except for its imports; SPDX-License-Identifier: Apache-2.0\n"
    )
    return header + "".join(lines), imported


def _imports_of(modules: list[str]) -> str:
    """Imports that never run: transformers copies only those files beside a model that other files import."""
    lines = [f"    from .{flat(module)} import __name__ as _\n" for module in modules if module != CONFIGURATION]
    return "\n\nif False:  # all files of the model stay together when transformers copies one\n" + "".join(lines)
