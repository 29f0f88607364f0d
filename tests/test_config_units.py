"""Durations, sizes and rates: what is read, what is refused with advice, and that both directions agree."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.config_units import (
    format_bit_rate,
    format_byte_rate,
    format_duration,
    format_size,
    parse_bit_rate,
    parse_byte_rate,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("90s", 90), ("1h30m", 5400), ("2d", 172800), ("1w", 604800), ("250ms", 0.25),
     ("50us", 5e-5), ("1.5h", 5400), ("0s", 0), ("1d2h3m4s", 93784)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "advice"),
    [("300", "write 300s or 5m"), ("45", "write 45s or 45m"), ("5 min", "write 5m"),
     ("10 seconds", "write 10s"), ("2hours", "write 2h"), ("3M", "write 3m"), ("20msec", "write 20ms"),
     ("5m5m", "as in 1h30m"), ("30m1h", "as in 1h30m"),
     ("2months", "such as 90s"), ("-5s", "such as 90s"), ("", "such as 90s"), ("٣s", "such as 90s"),
     ("9" * 400 + "s", "too long")],
)  # fmt: skip
def test_wrong_durations(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)):
        parse_duration(text)


@pytest.mark.parametrize(
    ("parse", "text", "amount"),
    [(parse_size, "80GiB", 80 << 30), (parse_size, "80GB", 80 * 10**9), (parse_size, "80 kB", 80_000),
     (parse_size, "1.5TiB", 3 << 39), (parse_size, "0B", 0), (parse_bit_rate, "400Gb/s", 400 * 10**9),
     (parse_bit_rate, "1.6Tb/s", 1600 * 10**9), (parse_byte_rate, "360GB/s", 360 * 10**9),
     (parse_byte_rate, "2GiB/s", 2 << 30)],
)  # fmt: skip
def test_amounts(parse: Callable[[str], int], text: str, amount: int) -> None:
    assert parse(text) == amount


@pytest.mark.parametrize(
    ("parse", "text", "advice"),
    [(parse_size, "80", "80 has no unit"), (parse_size, "80G", "write 80GB or 80GiB"),
     (parse_size, "80Gb", "(b is bits, B is bytes); write 80GB or 80GiB"),
     (parse_size, "80KB", "write 80kB or 80KiB"),
     (parse_size, "1.5B", "not a whole number of bytes"), (parse_size, "lots", "write 80GiB"),
     (parse_bit_rate, "400Gb", "write 400Gb/s"), (parse_bit_rate, "400Gbps", "write 400Gb/s"),
     (parse_bit_rate, "400GB/s", "(b is bits, B is bytes); write 400Gb/s"),
     (parse_byte_rate, "360Gb/s", "(b is bits, B is bytes); write 360GB/s or 360GiB/s"),
     (parse_byte_rate, "360", "360 has no unit")],
)  # fmt: skip
def test_wrong_amounts(parse: Callable[[str], int], text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(advice)):
        parse(text)


@settings(max_examples=100)
@given(
    st.one_of(
        st.integers(0, 10**9).map(float), st.integers(0, 10**9).map(lambda n: n / 1000), st.floats(1e-6, 1e9)
    )
)
def test_durations_survive_being_written(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@settings(max_examples=100)
@given(st.one_of(st.integers(0, 2**60), st.integers(0, 4000).map(lambda n: n << 30)))
def test_amounts_survive_being_written(count: int) -> None:
    assert parse_size(format_size(count)) == count
    assert parse_bit_rate(format_bit_rate(count)) == count
    assert parse_byte_rate(format_byte_rate(count)) == count


def test_what_is_written_is_short() -> None:
    assert [format_duration(s) for s in (0, 300, 5400, 90, 93600, 86400, 0.25)] == [
        "0s", "5m", "90m", "90s", "26h", "1d", "250ms"
    ]  # fmt: skip
    assert [format_size(n) for n in (0, 80 << 30, 80 * 10**9, 1000, 1025)] == [
        "0B",
        "80GiB",
        "80GB",
        "1kB",
        "1025B",
    ]
