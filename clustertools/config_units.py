"""Durations, sizes and rates as people write them (`5m`, `80GiB`, `400Gb/s`), and back again.

A value without a unit is refused: 300 seconds and 300 minutes are both believable. Bits and bytes, decimal
and binary prefixes are different units (IEC 80000-13): kB is 1000 bytes, KiB is 1024, Gb is 10^9 bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

DURATION_UNITS = {
    "w": Decimal(604800), "d": Decimal(86400), "h": Decimal(3600), "m": Decimal(60), "s": Decimal(1),
    "ms": Decimal("0.001"), "us": Decimal("0.000001"),
}  # fmt: skip
SIZE_UNITS = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50,
}  # fmt: skip
BIT_RATE_UNITS = {"b/s": 1, "kb/s": 10**3, "Mb/s": 10**6, "Gb/s": 10**9, "Tb/s": 10**12}
BYTE_RATE_UNITS = {f"{unit}/s": factor for unit, factor in SIZE_UNITS.items()}

#: What people write for these units, without its plural s.
_LONG_NAMES = {
    "week": "w", "day": "d", "hour": "h", "hr": "h", "minute": "m", "min": "m", "second": "s", "sec": "s",
    "millisecond": "ms", "msec": "ms", "microsecond": "us", "usec": "us",
}  # fmt: skip

#: Longer than anything sensible; keeps the arithmetic below small whatever is written.
_LONGEST = 40

# "1h30m", "90s", "1.5h": one or more numbers, each with its unit
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|[wdhms]))+")
_DURATION_TERM = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|[wdhms])")
# "80GiB", "80 GiB", "1.5TB", "400Gb/s"
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+(?:/s)?)")
# "5 min", "10 seconds": what people write before they have read the manual
_NEAR_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-z]+)")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def parse_duration(text: str) -> float:
    """Seconds in `5m`, `90s`, `1h30m`, `2d`, `250ms`. Raises ValueError that says what to write instead."""
    text = _short(text)
    if not _DURATION.fullmatch(text):
        raise ValueError(_duration_advice(text))
    total, smallest = Decimal(0), None
    for number, unit in _DURATION_TERM.findall(text):
        factor = DURATION_UNITS[unit]
        if smallest is not None and factor >= smallest:
            raise ValueError(
                f"{text!r} is not a duration; write the larger unit first and each once, as in 1h30m"
            )
        total, smallest = total + Decimal(number) * factor, factor
    return float(total)


def parse_size(text: str) -> int:
    """Bytes in `80GiB` (binary) or `80GB` (decimal). Raises ValueError that says what to write instead."""
    return _whole(_amount(text, SIZE_UNITS, "a size", "80GiB (binary) or 80GB (decimal)"), text, "bytes")


def parse_bit_rate(text: str) -> int:
    """Bits per second in `400Gb/s`. Raises ValueError that says what to write instead."""
    return _whole(_amount(text, BIT_RATE_UNITS, "a rate in bits", "400Gb/s"), text, "bits")


def parse_byte_rate(text: str) -> int:
    """Bytes per second in `360GB/s` or `2GiB/s`. Raises ValueError that says what to write instead."""
    return _whole(_amount(text, BYTE_RATE_UNITS, "a rate in bytes", "360GB/s"), text, "bytes")


def format_duration(seconds: float) -> str:
    """The shortest text of whole units that `parse_duration` reads back as exactly `seconds`."""
    amount = Decimal(repr(float(seconds)))
    for unit in ("s", "ms", "us"):
        count = amount / DURATION_UNITS[unit]
        if count == count.to_integral_value():
            return _whole_seconds(int(count)) if unit == "s" else f"{int(count)}{unit}"
    return f"{amount:f}s"


def format_size(count: int) -> str:
    """`count` bytes in the largest unit that divides it: 85899345920 is `80GiB`, 80000000000 is `80GB`."""
    return _largest(count, SIZE_UNITS)


def format_bit_rate(count: int) -> str:
    """`count` bits per second in the largest unit that divides it, `400Gb/s`."""
    return _largest(count, BIT_RATE_UNITS)


def format_byte_rate(count: int) -> str:
    """`count` bytes per second in the largest unit that divides it, `360GB/s`."""
    return _largest(count, BYTE_RATE_UNITS)


@dataclass(frozen=True, slots=True)
class Unit:
    """A kind of quantity: the ending of the field names that hold it, and its two directions."""

    suffix: str
    what: str
    parse: Callable[[str], float]
    format: Callable[[float], str]
    pattern: str


def _pattern(units: dict[str, int]) -> str:
    return f"^[0-9]+(\\.[0-9]+)? ?({'|'.join(units)})$"


#: Which field names hold a quantity with a unit. The longer endings come first: `_bits_per_second` ends in
#: neither `_seconds` nor `_bytes`, but the next reader should not have to check that.
UNITS = (
    Unit("_bits_per_second", "a rate in bits, such as 400Gb/s", parse_bit_rate,
         lambda v: format_bit_rate(int(v)), _pattern(BIT_RATE_UNITS)),
    Unit("_bytes_per_second", "a rate in bytes, such as 360GB/s", parse_byte_rate,
         lambda v: format_byte_rate(int(v)), _pattern(BYTE_RATE_UNITS)),
    Unit("_seconds", "a duration, such as 90s, 5m or 1h30m", parse_duration,
         format_duration, f"^{_DURATION.pattern}$"),
    Unit("_bytes", "a size, such as 80GiB or 80GB", parse_size,
         lambda v: format_size(int(v)), _pattern(SIZE_UNITS)),
)  # fmt: skip


def unit_of(name: str) -> Unit | None:
    """The unit that a field of this name holds, from its ending; None when it holds a plain value."""
    return next((u for u in UNITS if name.endswith(u.suffix) and len(name) > len(u.suffix)), None)


def _short(text: str) -> str:
    text = text.strip()
    if len(text) > _LONGEST:
        raise ValueError(f"{text[:_LONGEST]!r}... is too long for a number with a unit")
    return text


def _duration_advice(text: str) -> str:
    if _NUMBER.fullmatch(text):
        other = format_duration(float(text))
        if other == f"{text}s":
            other = f"{text}m"
        return f"{text} has no unit; write {text}s or {other}"
    near = _NEAR_DURATION.fullmatch(text)
    if near:
        word = near[2].lower()
        unit = word if word in DURATION_UNITS else _LONG_NAMES.get(word.removesuffix("s"))
        if unit:
            return f"{text!r} is not a duration; write {near[1]}{unit}"
    return f"{text!r} is not a duration; write a number with s, m, h or d, such as 90s, 5m or 1h30m"


def _amount(text: str, units: dict[str, int], what: str, example: str) -> Decimal:
    text = _short(text)
    if _NUMBER.fullmatch(text):
        raise ValueError(f"{text} has no unit; write {what} such as {example}")
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {what}; write {example}")
    number, unit = match.groups()
    if unit not in units:
        raise ValueError(_unit_advice(text, number, unit, units, what, example))
    return Decimal(number) * units[unit]


def _unit_advice(text: str, number: str, unit: str, units: dict[str, int], what: str, example: str) -> str:
    wanted, written = ("b" if "b/s" in units else "B"), unit.removesuffix("/s")[-1]
    why = " (b is bits, B is bytes)" if written in "bB" and written != wanted else ""
    alike = [u for u in units if u[0].lower() == unit[0].lower() and u.removesuffix("/s") != wanted]
    instead = " or ".join(number + u for u in alike) or example
    return f"{text!r} is not {what}{why}; write {instead}"


def _whole(amount: Decimal, text: str, what: str) -> int:
    if amount != amount.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of {what}")
    return int(amount)


def _whole_seconds(seconds: int) -> str:
    for unit in ("w", "d", "h", "m"):
        factor = int(DURATION_UNITS[unit])
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds // factor}{unit}"
    for unit, smaller in (("d", "h"), ("h", "m")):
        factor, rest = int(DURATION_UNITS[unit]), seconds % int(DURATION_UNITS[unit])
        if seconds > factor and rest % int(DURATION_UNITS[smaller]) == 0:
            return f"{seconds // factor}{unit}{rest // int(DURATION_UNITS[smaller])}{smaller}"
    return f"{seconds}s"


def _largest(count: int, units: dict[str, int]) -> str:
    fitting = [(count // factor, unit) for unit, factor in units.items() if count % factor == 0]
    number, unit = min(fitting, key=lambda pair: (pair[0], len(pair[1])))
    return f"{number}{unit}" if count else f"0{next(iter(units))}"
