"""Entries for Mega in the tables of a clone of transformers."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "src"))

from mega_transformers.registration import MODEL_NAMES

MODELS = Path("src/transformers/models")
CONTENTS = Path("docs/source/en/_toctree.yml")
MODEL_TYPE = "mega"


class UnknownTableError(ValueError):
    """A table of transformers is not where it was."""


def is_clone(tree: Path) -> bool:
    """Whether a folder holds transformers' own sources."""
    return (tree / MODELS / "auto/auto_mappings.py").is_file()


def registered(tree: Path, exported: Collection[str]) -> dict[Path, str]:
    """The files of a clone of transformers that change where Mega is registered; none where it is already.

    Args:
        tree: The clone; in any other folder nothing changes.
        exported: The classes that the model's module has.

    Returns:
        File within the clone -> its new text.

    Raises:
        UnknownTableError: naming the table or file that was not found.
    """
    if not is_clone(tree):
        return {}
    missing = [str(name) for name in _files(tree) if not (tree / name).is_file()]
    if missing:
        raise UnknownTableError(f"{tree} is not a whole clone of transformers: it has no {', '.join(missing)}")
    texts = {name: (tree / name).read_text(encoding="utf-8") for name in _files(tree)}
    edited = dict(texts)
    imports, configurations, models = MODELS / "__init__.py", MODELS / "auto/auto_mappings.py", _files(tree)[2]
    edited[imports] = _inserted(edited[imports], "    from .mega import *", r"    from \.(\w+) import \*")
    edited[configurations] = _entered(edited[configurations], "CONFIG_MAPPING_NAMES", "MegaConfig")
    for table, names in MODEL_NAMES.values():
        if names.get(MODEL_TYPE) in exported:
            edited[models] = _entered(edited[models], table, names[MODEL_TYPE])
    if CONTENTS in edited and "model_doc/mega\n" not in edited[CONTENTS]:
        edited[CONTENTS] = _in_contents(edited[CONTENTS])
    return {name: text for name, text in edited.items() if text != texts[name]}


def _files(tree: Path) -> list[Path]:
    names = [MODELS / "__init__.py", MODELS / "auto/auto_mappings.py", MODELS / "auto/modeling_auto.py"]
    return names + [CONTENTS] * (tree / CONTENTS).is_file()


def _entered(text: str, table: str, name: str) -> str:
    """A module with an entry in one of its tables."""
    found = re.search(rf"^{table} = OrderedDict\(\n    \[\n(.*?)^    \]", text, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise UnknownTableError(f"transformers has no table {table}, or keeps it in another form; add {name} by hand")
    entries = _inserted(found[1], f'        ("{MODEL_TYPE}", "{name}"),', r'        \("([\w-]+)", .*\),')
    return text[: found.start(1)] + entries + text[found.end(1) :]


def _inserted(text: str, line: str, pattern: str) -> str:
    """Lines with one more, before the first that fits the pattern with a name that follows in the alphabet."""
    if line in text.splitlines():
        return text
    later = (each for each in re.finditer(rf"^{pattern}$", text, flags=re.MULTILINE) if each[1] > MODEL_TYPE)
    place = next(later, None)
    if place is None:
        raise UnknownTableError(f"there is no place for {line.strip()!r}")
    return f"{text[: place.start()]}{line}\n{text[place.start() :]}"


def _in_contents(text: str) -> str:
    """The table of contents of the documentation, with Mega before Megatron-BERT."""
    found = re.search(r"^( *)- local: model_doc/megatron-bert$", text, flags=re.MULTILINE)
    if found is None:
        raise UnknownTableError(f"{CONTENTS} has no model_doc/megatron-bert, before which Mega goes")
    entry = f"{found[1]}- local: model_doc/mega\n{found[1]}  title: MEGA\n"
    return text[: found.start()] + entry + text[found.start() :]
