"""The bundled models, each in its own folder with its model card, and the bundled recipes."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

DEFAULT_MODEL = "mega-prose-5m"
DEFAULT_CAUSAL_MODEL = "mega-prose-clm-3m"
DEFAULT_PAIR_MODEL = "mega-g2p-1m"
BUNDLED_MODELS = (DEFAULT_MODEL, DEFAULT_CAUSAL_MODEL, DEFAULT_PAIR_MODEL)
RECIPES = Path(str(files(__name__))) / "recipes"
"""The folder of the recipes and of a sample text."""


def bundled_model(name: str = DEFAULT_MODEL) -> Path:
    """The folder of a bundled model, for `from_pretrained` and `pipeline`.

    Raises:
        ValueError: if there is no such model; the message lists the bundled models.
    """
    root = Path(str(files(__name__)))
    folder = root / name
    if not (folder / "config.json").is_file():
        known = sorted(path.parent.name for path in root.glob("*/config.json"))
        raise ValueError(f"there is no bundled model {name!r}; the bundled models are: {', '.join(known) or 'none'}")
    return folder


def model_path(name: str) -> str:
    """What `from_pretrained` takes for a model: the folder of a bundled one, unless a folder here has its name.

    Raises:
        ValueError: for a name that looks like a misspelt bundled model.
    """
    if Path(name).is_dir():
        return name
    if name in BUNDLED_MODELS:
        return str(bundled_model(name))
    # ids of the hub have a slash, except a few old ones
    close = [] if "/" in name else difflib.get_close_matches(name, BUNDLED_MODELS, n=1, cutoff=0.8)
    if close:
        raise ValueError(f"{name}: there is no such folder or bundled model; did you mean {close[0]}?")
    return name
