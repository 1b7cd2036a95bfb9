"""Arguments of public functions: checked, or refused with the value that was given and the one wanted."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable

import numpy as np

from minitrans.errors import InputError
from minitrans.words import one_of


def as_int(value: object) -> int | None:
    """An integer of any kind (NumPy's too) as an int; None for a bool or anything else."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_int(name: str, value: object, wanted: str = "a positive integer") -> int:
    """An integer of at least 1, of any kind. InputError names the argument."""
    number = as_int(value)
    if number is None or number < 1:
        raise InputError(f"{name} is {value!r:.100}, wanted {wanted}")
    return number


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """InputError unless the value is one of the choices."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} is {value!r:.100}, wanted {one_of(known)}")


def check_flag(name: str, value: object) -> bool:
    """True or False, NumPy's too. InputError for anything else: the text "false" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {value!r:.100}, wanted True or False")
    return bool(value)


def as_number(value: object) -> int | float | None:
    """An integer or finite float of any kind as Python's own; None for anything else."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return as_int(value)
