"""Writes Mega as a model inside transformers: files of transformers' tree, made from this package's sources.

    python contrib/transformers/build.py PATH

PATH is a clone of transformers, which then also registers Mega, or any other folder, for the new files alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE)]

import docstrings  # noqa: E402
import plan  # noqa: E402
import registrations  # noqa: E402
from simplify import Rules, simplified  # noqa: E402
from sources import Package, collect, read_module, with_quoted_annotations  # noqa: E402

MODEL = Path("src/transformers/models/mega")
TEMPLATES = {
    "init.py.txt": MODEL / "__init__.py",
    "convert_mega_to_hf.py.txt": MODEL / "convert_mega_to_hf.py",
    "test_modeling_mega.py.txt": Path("tests/models/mega/test_modeling_mega.py"),
    "mega.md": Path("docs/source/en/model_doc/mega.md"),
}
LICENSE = (HERE / "templates" / "license.txt").read_text(encoding="utf-8")
# what transformers exports -> the module of it that its own models take this from
MODULES = {"PreTrainedConfig": "configuration_utils"}


class OutdatedError(RuntimeError):
    """The sources have changed, and plan.py or plain.py no longer match them."""


def build(target: Path) -> list[Path]:
    """Writes all files into `target`, a folder, and registers Mega if that is a clone of transformers.

    Returns:
        The files that were written or changed.

    Raises:
        OutdatedError: if plan.py or plain.py do not match the sources. After any error, nothing is written.
        registrations.UnknownTableError: if transformers' tables are not found.
        RuntimeError: if ruff does not accept a file.
    """
    files = {MODEL / "configuration_mega.py": configuration(), MODEL / "modeling_mega.py": modeling()}
    for name, place in TEMPLATES.items():
        files[place] = filled((HERE / "templates" / name).read_text(encoding="utf-8"))
    files[Path("tests/models/mega/__init__.py")] = ""
    files |= registrations.registered(target, plan.EXPORTED)
    with tempfile.TemporaryDirectory() as scratch:
        for place, text in files.items():
            (scratch / place).parent.mkdir(parents=True, exist_ok=True)
            (scratch / place).write_text(text, encoding="utf-8")
        tidy([scratch / place for place in files if MODEL.name in place.parts and place.suffix == ".py"])
        for place in files:
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(scratch / place, target / place)
    return [target / place for place in files]


def configuration() -> str:
    """The text of configuration_mega.py."""
    package = Package(ROOT / "src/mega_transformers", read_module(HERE / "plain.py", ""), ())
    rules = plan.CONFIGURATION_RULES
    found = collect(
        package,
        [(plan.CONFIGURATION, "MegaConfig")],
        [plan.CONFIGURATION],
        lambda text: simplified(text, rules),
        {"auto_docstring": ("transformers.utils", "auto_docstring")},
    )
    texts = reworded(found.texts, plan.CONFIGURATION_TEXTS)
    texts["MegaConfig"] = docstrings.of_configuration(texts["MegaConfig"])
    imports = {**found.imports, "auto_docstring": ("transformers.utils", "auto_docstring")}
    return _file(texts, imports, ["MegaConfig"], rules)


def modeling() -> str:
    """The text of modeling_mega.py."""
    package = Package(ROOT / "src/mega_transformers", read_module(HERE / "plain.py", ""), plan.WHOLE)
    rules = plan.MODELING_RULES
    found = collect(package, plan.MODELS, plan.ORDER, lambda text: simplified(text, rules), plan.OUTSIDE)
    unknown = set(package.plain.definitions) - package.replaced - {"MegaConfig", "logger"}
    if unknown:
        raise OutdatedError(f"plain.py: nothing is replaced by {', '.join(sorted(unknown))}")
    texts = {
        name: docstrings.of_model(text) if name in plan.EXPORTED else text
        for name, text in with_quoted_annotations(reworded(found.texts, plan.MODELING_TEXTS)).items()
    }
    return _file(texts, found.imports | plan.ALWAYS, plan.EXPORTED, rules)


def reworded(texts: Mapping[str, str], words: Mapping[str, str]) -> dict[str, str]:
    """Definitions with replaced phrases in docstrings and comments, across line breaks.

    Raises:
        OutdatedError: for phrases that do not occur.
    """
    result = dict(texts)
    for old, new in words.items():
        pattern = r"\s+" * old.startswith(" ") + r"\s+(?:# )?".join(map(re.escape, old.split()))
        found = [name for name, text in result.items() if re.search(pattern, text)]
        if not found:
            raise OutdatedError(f"plan.py: the sources do not say {old!r}")
        for name in found:
            result[name] = re.sub(pattern, lambda _: new, result[name])  # noqa: B023
    return result


def _file(
    texts: Mapping[str, str], imports: Mapping[str, tuple[str, str | None]], exported: Iterable[str], rules: Rules
) -> str:
    """A file of definitions, its license, imports and exports."""
    if rules.unused():
        raise OutdatedError("plan.py: the sources have nothing that fits " + "; ".join(rules.unused()))
    order = sorted(texts, key=lambda name: name != "logger")  # a stable sort: the rest stays as it is
    body = "\n\n".join(texts[name] for name in order)
    body = re.sub(r"(?<=\n)([A-Z_0-9]+ = .*\n)\n\n(?=[A-Z_0-9]+ = )", r"\1", body)
    names = ", ".join(f'"{name}"' for name in exported)
    lines = [LICENSE, *map(_import, imports, imports.values()), body, f"\n__all__ = [{names}]\n"]
    return "\n".join(lines)


def _import(name: str, source: tuple[str, str | None]) -> str:
    module, original = source
    if original is None:
        return f"import {module}" if module == name else f"import {module} as {name}"
    if module == "transformers":
        module = f"transformers.{MODULES.get(original, '')}".rstrip(".")
    alias = "" if original == name else f" as {name}"
    return f"from {re.sub(r'^transformers.?', '...', module)} import {original}{alias}"


def filled(template: str) -> str:
    """A template with license, date and tables of this package's conversion in their places."""
    package = Package(ROOT / "src/mega_transformers", read_module(HERE / "plain.py", ""), ())

    def table(place: re.Match[str]) -> str:
        module, _, name = place[1].rpartition(".")
        definition = package.module(module).definitions.get(name)
        if definition is None:
            raise OutdatedError(f"templates: {module} does not define {name}")
        return definition

    template = template.replace("# {{LICENSE}}\n", LICENSE).replace("{{TODAY}}", date.today().isoformat())
    return re.sub(r"# \{\{([\w.]+)\}\}\n", table, template)


def tidy(files: list[Path]) -> None:
    """Sorts imports and formats, by transformers' settings.

    Raises:
        RuntimeError: if ruff is missing, or finds a file that is not valid.
    """
    settings = str(HERE / "style.toml")
    for command in (["check", "--fix", "--quiet"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", settings, *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ruff does not accept what was written:\n{done.stdout}{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="A clone of transformers, or a folder to write to.")
    target = parser.parse_args().path
    if target.exists() and not target.is_dir():
        parser.error(f"{target} is a file; name a folder")
    if shutil.which("ruff") is None and not _has_ruff():
        parser.error("ruff is missing: pip install ruff")
    try:
        written = build(target)
    except (RuntimeError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    for path in written:
        print(f"{len(path.read_text(encoding='utf-8').splitlines()):6} lines  {path}")
    if not registrations.is_clone(target):
        print(f"{target} is not a clone of transformers: Mega is registered nowhere")


def _has_ruff() -> bool:
    import importlib.util

    return importlib.util.find_spec("ruff") is not None


if __name__ == "__main__":
    main()
