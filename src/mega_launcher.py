"""Starts the `mega` command without importing torch, so that `mega --help` answers at once.

Python imports a package before its submodules, and `mega_transformers` imports torch and transformers to register with
their Auto classes: seconds. The launcher therefore puts the package into `sys.modules` without running it. It runs at
`load_package()`, which every command calls before it computes, or at the first use of a name it does not have yet.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

PACKAGE = "mega_transformers"


def main() -> None:
    """Run the command line interface; the console script `mega`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        if PACKAGE not in sys.modules:
            _postpone_package()
        from mega_transformers.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)


def load_package() -> None:
    """Run `mega_transformers/__init__.py` if that was postponed."""
    package = sys.modules.get(PACKAGE)
    if package is not None and package.__dict__.pop("__getattr__", None) is not None:
        spec = package.__spec__
        if spec is None or spec.loader is None:
            raise ImportError(f"{PACKAGE} has no loader", name=PACKAGE)
        spec.loader.exec_module(package)


def _postpone_package() -> None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    package: ModuleType = importlib.util.module_from_spec(spec)

    def load_on_first_use(name: str) -> Any:
        load_package()
        return getattr(package, name)

    package.__dict__["__getattr__"] = load_on_first_use
    sys.modules[PACKAGE] = package
