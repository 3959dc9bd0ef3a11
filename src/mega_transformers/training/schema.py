"""Builds dataclasses from the plain values of a YAML file, with errors that name key, value and what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class RecipeError(ValueError):
    """A recipe, or an option of its run, that cannot work."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The known names that resemble a wrong one, as a question; `otherwise` where none does."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def build(cls: type[T], value: Any, where: str = "") -> T:
    """An instance of the dataclass `cls` from a mapping.

    Args:
        cls: The dataclass; its annotations say what each key may hold.
        value: What YAML gave: mappings, lists, strings, numbers, None.
        where: The key that holds `value`, for error messages; empty at the top.

    Raises:
        RecipeError: for an unknown or missing key, or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise RecipeError(f"{where or 'the recipe'} must be a mapping of {', '.join(fields)}; got {value!r}")
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            hint = did_you_mean(str(key), fields, f"known are {', '.join(fields)}")
            raise RecipeError(f"{prefix}{key} is unknown; {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise RecipeError(f"{prefix}{name} is missing")
    hints = get_type_hints(cls)
    arguments = {key: convert(hints[key], item, prefix + key) for key, item in value.items()}
    try:
        return cls(**arguments)
    except RecipeError as error:
        raise RecipeError(f"{prefix}{error}") from None


def convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `kind` wants it; numbers may be strings, since YAML reads 1e-3 as one."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [some for some in arguments if some is not type(None)]
        # of several kinds, the one that the value has; otherwise the first tells what would be right
        return convert(
            next((some for some in kinds if type(value) is (get_origin(some) or some)), kinds[0]), value, where
        )
    if origin is list:
        values = value if isinstance(value, list) else [value]
        return [convert(arguments[0], item, f"{where}.{index}") for index, item in enumerate(values)]
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise RecipeError(f"{where} must be a mapping with names as keys; got {value!r}")
        return dict(value)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            if math.isfinite(float(value)):
                return float(value)
        except ValueError:
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise RecipeError(f"{where} must be {_NAMES.get(kind, kind)}; got {value!r}")


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
