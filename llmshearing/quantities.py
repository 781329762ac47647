"""Quantities in recipes and arguments: steps, seconds, counts and bytes, and their field types.

A field keeps the text; the functions read it, and raise ValueError for any other.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

SECONDS = {"s": 1, "m": 60, "h": 3600}
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
BYTES = {"": 1, "B": 1}
BYTES |= {f"{prefix}B": 10 ** (3 * n) for n, prefix in enumerate("KMGT", start=1)}
BYTES |= {f"{prefix}IB": 2 ** (10 * n) for n, prefix in enumerate("KMGT", start=1)}
LARGEST = 1 << 62
NUMBER = r"[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?"


def steps(text: str, total: int | None = None) -> int:
    """Optimizer steps of `320ba` or, where the steps of the whole run are given, `0.1dur`."""
    if re.fullmatch("[0-9]{1,9}ba", text):
        return int(text[:-2])
    if total is not None and re.fullmatch(f"{NUMBER}dur", text):
        fraction = float(text[:-3])
        if fraction <= 1:
            return round(fraction * total)
    raise ValueError(text)


def seconds(text: str) -> float:
    """Seconds of `90s`, `30m` or `2h`; more than none."""
    found = re.fullmatch("([0-9]{1,6})([smh])", text)
    if found is None or int(found[1]) == 0:
        raise ValueError(text)
    return float(int(found[1]) * SECONDS[found[2]])


def count(text: str | int | float) -> int:
    """A count such as `1.3B`, `370M`, `2.2e6` or `1_000`, rounded to a whole number."""
    return _scaled(text, COUNTS)


def byte_size(text: str | int | float) -> int:
    """Bytes of `64MiB`, `5GB` or a plain number; binary prefixes are powers of 1,024."""
    return _scaled(text, BYTES)


def token_milliseconds(text: str, sequences: int) -> float:
    """Milliseconds from one token to the next, of `8ms` or `120tok/s`.

    The speed is that of all sequences generated at a time together.
    """
    found = re.fullmatch(rf"({NUMBER})(ms|tok/s)", text)
    if found is None or float(found[1].replace("_", "")) == 0:
        raise ValueError(text)
    value = float(found[1].replace("_", ""))
    return value if found[2] == "ms" else 1e3 * sequences / value


def _scaled(text: str | int | float, units: dict[str, int]) -> int:
    found = re.fullmatch(rf"\s*({NUMBER})\s*([A-Z]*)\s*", str(text), re.IGNORECASE | re.ASCII)
    if found is None or isinstance(text, bool) or found[2].upper() not in units:
        raise ValueError(text)
    digits, unit = found[1].replace("_", ""), units[found[2].upper()]
    value = int(digits) * unit if digits.isdigit() else float(digits) * unit
    if value >= LARGEST:
        raise ValueError(text)
    return round(value)


@dataclass(frozen=True)
class Readable:
    """Annotates a field of text that `parse` reads as more than nothing."""

    parse: Callable[[Any], float]  # raises ValueError for text it cannot read
    expected: str  # what a value has to be, for the message
    pattern: str  # a regular expression of such text, for editors
    numbers: bool = False  # whether a plain number will do as well

    def check(self, value: Any) -> str:
        """The value as text."""
        if isinstance(value, str) or (self.numbers and isinstance(value, (int, float))):
            try:
                if self.parse(value):
                    return str(value)
            except ValueError:
                pass
        raise PydanticCustomError("quantity", "{words}", {"words": self.expected})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, *_: Any) -> dict[str, Any]:
        kinds = ["string", "number"] if self.numbers else "string"
        return {"type": kinds, "pattern": rf"^({self.pattern}|\?\?\?)$"}


Steps = Annotated[str, Readable(steps, "steps with a unit, e.g. 300ba, below 1e9", "[0-9]{1,9}ba")]
PointInRun = Annotated[
    str,
    Readable(
        lambda text: steps(text, 1) + 1,
        "a time such as 0.1dur or 320ba",
        r"[0-9]{1,9}ba|[0-9._]+(e-?[0-9]+)?dur",
    ),
]
WallTime = Annotated[str, Readable(seconds, "a time with a unit, e.g. 30m", "[0-9]{1,6}[smh]")]
Quantity = Annotated[
    str, Readable(count, "a number such as 1.3B", "[0-9._e+]+ *[kKmMbBtT]?", numbers=True)
]
ByteSize = Annotated[
    str, Readable(byte_size, "a size such as 64MiB", "[0-9._]+ *([kKMGT]i?)?B?", numbers=True)
]
Latency = Annotated[
    str,
    Readable(
        lambda text: token_milliseconds(text, 1),
        "a time per token such as 8ms, or a speed such as 120tok/s",
        "[0-9._e+-]+(ms|tok/s)",
    ),
]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]
