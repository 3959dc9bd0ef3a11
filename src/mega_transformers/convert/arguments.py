"""Checked access to the settings of a checkpoint, which may have any type or be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ConversionError

MAX_SIZE = 1 << 40
"""No width, length or count of a model is this large: a larger number means damage."""


class Arguments:
    """Named values with defaults.

    Args:
        values: The values in the file.
        where: Their name in the file, for messages: "args".
        defaults: The defaults of the source's code, for names that the file lacks.

    `read` holds the names that were read.
    """

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values = dict(values)
        self.where = where
        self.defaults = dict(defaults or {})
        self.read: set[str] = set()

    def with_defaults(self, defaults: Mapping[str, Any]) -> Arguments:
        """The same with `defaults`."""
        return Arguments(self.values, self.where, defaults)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Any:
        """The value as it is, or its default.

        Raises:
            ConversionError: if there is neither a value nor a default.
        """
        self.read.add(name)
        if name in self.values:
            return self.values[name]
        if name in self.defaults:
            return self.defaults[name]
        raise ConversionError(f"{self.where}.{name} is missing: without it the model cannot be rebuilt")

    def integer(self, name: str, minimum: int = 1) -> int:
        """A whole number; a float without a fraction is accepted."""
        value = self.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= MAX_SIZE:
            raise ConversionError(
                f"{self.where}.{name}={self._shown(value)} must be a whole number of at least {minimum}"
            )
        return value

    def probability(self, name: str) -> float:
        """A number of at least 0 and below 1."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ConversionError(
                f"{self.where}.{name}={self._shown(value)} must be a number of at least 0 and below 1"
            )
        return float(value)

    def flag(self, name: str) -> bool:
        """True or False."""
        value = self.get(name)
        if value not in (True, False) or not isinstance(value, (bool, int)):
            raise ConversionError(f"{self.where}.{name}={self._shown(value)} must be True or False")
        return bool(value)

    def choice(self, name: str, known: Iterable[str]) -> str:
        """One of `known`."""
        value, words = self.get(name), sorted(known)
        if value not in words:
            raise ConversionError(
                f"{self.where}.{name}={self._shown(value)} is unknown; the known values are {', '.join(words)}"
            )
        return value

    def cutoffs(self, name: str) -> list[int] | None:
        """Ascending whole numbers, from a list, or from text such as "20000,60000"; None if it is missing."""
        value = self.get(name)
        if value is None:
            return None
        parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
        try:
            numbers = [int(part) for part in parts]
        except (TypeError, ValueError):
            numbers = []
        if not numbers or any(low >= high for low, high in zip([0, *numbers], numbers)):
            raise ConversionError(f"{self.where}.{name}={self._shown(value)} must be ascending whole numbers")
        return numbers

    @staticmethod
    def _shown(value: Any) -> str:
        plain = value is None or isinstance(value, (str, int, float, list, tuple))
        shown = repr(value) if plain else type(value).__name__
        return shown if len(shown) <= 60 else shown[:60] + "…"
