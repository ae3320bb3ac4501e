"""Checks of settings; the messages are for users and name the setting as it is written on the command line."""

import math
from typing import Any


def count(name: str, value: Any) -> int:
    """Return ``value`` if it is a whole number of 1 or more, else raise ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value} must be a whole number of 1 or more")
    return value


def positive(name: str, value: Any) -> float:
    """Return ``value`` if it is a number above 0, else raise ValueError."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{name}={value} must be a number above 0")
    return value


def number(name: str, value: Any) -> float:
    """Return ``value`` if it is a finite number, else raise ValueError."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a number")
    return value


def fraction(name: str, value: Any) -> float:
    """Return ``value`` if it is a number from 0 to 1, else raise ValueError."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must be a number from 0 to 1")
    return value


def whole(name: str, value: Any) -> int:
    """Return ``value`` if it is a whole number of 0 or more, else raise ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}={value} must be a whole number of 0 or more")
    return value
