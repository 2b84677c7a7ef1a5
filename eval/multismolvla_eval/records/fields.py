"""What a file must hold, as tables of fields: a damaged value is named before anything is computed from it.

A *kind* says of a value from a JSON file what is wrong with it, as ``.gate.rgb is 7, expected …``; "" means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Kind = Callable[[Any], str]


def _unlike(value: Any, expected: str) -> str:
    return f" is {repr(value)[:80]}, expected {expected}"


def text(value: Any) -> str:
    """A text."""
    return "" if type(value) is str else _unlike(value, "a text")


def texts(value: Any) -> str:
    """An object whose values are texts; faster than ``each(text)`` where a row has many."""
    right = type(value) is dict and {*map(type, value.values())} <= {str}
    return "" if right else _unlike(value, "texts by name")


def flag(value: Any) -> str:
    """True or false."""
    return "" if type(value) is bool else _unlike(value, "true or false")


def whole(value: Any) -> str:
    """A whole number."""
    return "" if type(value) is int else _unlike(value, "a whole number")


def count(value: Any) -> str:
    """What fits into a column of 32-bit whole numbers."""
    right = type(value) is int and 0 <= value < 2**31
    return "" if right else _unlike(value, "a whole number from 0 to 2147483647")


def number(value: Any) -> str:
    """What stays finite in a column of 32-bit floating point numbers, and in its sum."""
    right = type(value) in (float, int) and -1e30 < value < 1e30
    return "" if right else _unlike(value, "a number")


def share(value: Any) -> str:
    """A number from 0 to 1."""
    right = type(value) in (float, int) and 0 <= value <= 1
    return "" if right else _unlike(value, "a number from 0 to 1")


def clip(value: Any) -> str:
    """A file in the run's folder ``clips``: a page must not embed any other."""
    right = type(value) is str and value.startswith("clips/") and ".." not in value.split("/")
    return "" if right else _unlike(value, "a file in the run's folder clips/")


def mapping(value: Any) -> str:
    """An object."""
    return "" if type(value) is dict else _unlike(value, "an object")


def optional(inner: Kind) -> Kind:
    """The same, or ``None``, or no such field."""
    return lambda value: "" if value is None else inner(value)


def record(fields: Mapping[str, Kind]) -> Kind:
    """An object with these fields; it may have others."""

    def wrong(value: Any) -> str:
        if found := mapping(value):
            return found
        for name, inner in fields.items():
            if found := inner(value.get(name)):
                return f".{name}{found}"
        return ""

    return wrong


def each(inner: Kind) -> Kind:
    """An object whose values are of one kind."""

    def wrong(value: Any) -> str:
        if found := mapping(value):
            return found
        for name, item in value.items():
            if found := inner(item):
                return f".{name}{found}"
        return ""

    return wrong


def listed(inner: Kind) -> Kind:
    """A list whose values are of one kind."""

    def wrong(value: Any) -> str:
        if type(value) is not list:
            return _unlike(value, "a list")
        return next((f"[{i}]{found}" for i, v in enumerate(value) if (found := inner(v))), "")

    return wrong


def parse_json(data: bytes) -> Any:
    """A JSON text's value.

    Raises:
        ValueError: it is none; ``NaN`` and ``Infinity``, which Python reads and writes by default, are no JSON.
    """
    try:
        return _DECODER.decode(data.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
