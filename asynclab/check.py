"""Checks of settings; the messages are for users and name the setting as it is written on the command line."""

import math
from collections.abc import Sequence
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


def not_negative(name: str, value: Any) -> float:
    """Return ``value`` if it is a finite number of 0 or more, else raise ValueError."""
    if number(name, value) < 0:
        raise ValueError(f"{name}={value} must be a number of 0 or more")
    return value


def fraction(name: str, value: Any) -> float:
    """Return ``value`` if it is a number from 0 to 1, else raise ValueError."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must be a number from 0 to 1")
    return value


def below_one(name: str, value: Any) -> float:
    """Return ``value`` if it is a number from 0 to below 1, else raise ValueError."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name}={value} must be a number from 0 to below 1")
    return value


def decays(name: str, value: Any) -> tuple[float, float]:
    """Return ``value`` if it is two numbers from 0 to below 1, else raise ValueError."""
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 2 or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in numbers):
        raise ValueError(f"{name}={value} must be two numbers from 0 to below 1, such as [0.9,0.999]")
    return float(numbers[0]), float(numbers[1])


def flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is true or false, else raise ValueError: a text such as "off" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value} must be true or false")
    return value


def schedule(name: str, value: Any) -> Any:
    """Return ``value`` if it returns a number for a progress, 0 or more at both ends, else raise ValueError."""
    if not callable(value) or not isinstance(value(0.0), float):
        raise ValueError(
            f"{name}={value} must be a schedule; set {name}._target_=asynclab.schedules.Linear or Constant"
        )
    if not all(math.isfinite(factor := value(progress)) and factor >= 0 for progress in (0.0, 1.0)):
        raise ValueError(f"{name}={value} must give factors of 0 or more, and gives {value(0.0)} to {value(1.0)}")
    return value


def whole(name: str, value: Any) -> int:
    """Return ``value`` if it is a whole number of 0 or more, else raise ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}={value} must be a whole number of 0 or more")
    return value
