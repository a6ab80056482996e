"""Takes what a summary holds out of it, each value checked, with errors that name the value."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distforge.errors import InputError

_REQUIRED = object()
_UNKNOWN_INTERVAL = (math.nan, math.nan)


class SummaryFields:
    """The keys of one JSON object, taken one by one; ``rest`` is what nobody has taken yet.

    A number that is null was not measured: it is NaN. Where a method takes ``default``, that stands
    in for an absent key; otherwise an absent key is an error.

    Args:
        values: the parsed object.
        origin: how an error names it.
        remedy: what an error about an absent key advises.
    """

    def __init__(self, values: Mapping[str, Any], origin: str, remedy: str) -> None:
        self.rest = dict(values)
        self._origin = origin
        self._remedy = remedy

    def flag(self, key: str) -> bool:
        """True or false.

        Raises:
            InputError: it is absent, or something else; so for every method.
        """
        value = self._take(key)
        if not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def count(self, key: str) -> int:
        """A whole number, at least 0."""
        value = self._take(key)
        if type(value) is not int or value < 0:
            raise self._error(key, value, "a whole number, at least 0")
        return value

    def choice(self, key: str, options: Sequence[str]) -> str:
        """One of ``options``."""
        value = self._take(key)
        if value not in options:
            raise self._error(key, value, f"one of {', '.join(map(repr, options))}")
        return str(value)

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A number in [low, high] or null."""
        return self._number(key, self._take(key), low, high)

    def fraction(self, key: str, default: object = _REQUIRED) -> float:
        """A number in [0, 1] or null."""
        return self._number(key, self._take(key, default), 0.0, 1.0)

    def fractions(
        self, key: str, known: Sequence[str], default: object = _REQUIRED
    ) -> dict[str, float]:
        """Numbers in [0, 1] or null by name; the names are among ``known``, in its order."""
        values = self._object(key, known, self._take(key, default))
        return {name: self._number(f"{key}.{name}", values[name], 0.0, 1.0) for name in values}

    def numbers(self, key: str, known: Sequence[str]) -> dict[str, float]:
        """Numbers or null by name; the names are among ``known``, in its order."""
        values = self._object(key, known, self._take(key))
        return {
            name: self._number(f"{key}.{name}", values[name], -math.inf, math.inf)
            for name in values
        }

    def intervals(self, key: str, known: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Pairs low ≤ high by name, NaN where null; the names are among ``known``."""
        values = self._object(key, known, self._take(key))
        return {name: self._interval(f"{key}.{name}", values[name]) for name in values}

    def nested(self, key: str, default: object = _REQUIRED) -> "SummaryFields":
        """The fields of an object inside this one."""
        value = self._take(key, default)
        if not isinstance(value, Mapping):
            raise self._error(key, value, "an object")
        return SummaryFields(value, f"{self._origin}, {key}", self._remedy)

    def _take(self, key: str, default: object = _REQUIRED) -> Any:
        if key not in self.rest and default is _REQUIRED:
            raise InputError(f"{self._origin} lacks {key!r}; {self._remedy}")
        return self.rest.pop(key, default)

    def _number(self, key: str, value: Any, low: float, high: float) -> float:
        if value is None:
            return math.nan
        wanted = "a number or null"
        if math.isfinite(low) and math.isfinite(high):
            wanted = f"a number in [{low:g}, {high:g}] or null"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(key, value, wanted)
        if value < low or value > high:
            raise self._error(key, value, wanted)
        return float(value)

    def _interval(self, key: str, value: Any) -> tuple[float, float]:
        if value is None:
            return _UNKNOWN_INTERVAL
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise self._error(key, value, "a pair [low, high] or null")
        low, high = (self._number(key, bound, -math.inf, math.inf) for bound in value)
        if low > high:
            raise self._error(key, value, "a pair [low, high] with low at most high")
        return low, high

    def _object(self, key: str, known: Sequence[str], value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not set(value) <= set(known):
            raise InputError(
                f"{self._origin}: {key} is {value!r}; its keys must be among {', '.join(known)}"
            )
        return {name: value[name] for name in known if name in value}

    def _error(self, key: str, value: object, wanted: str) -> InputError:
        return InputError(f"{self._origin}: {key} is {value!r}; it must be {wanted}")
