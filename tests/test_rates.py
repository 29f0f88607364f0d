"""Context.rates: the growth of counters from one look of a check to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clustertools.check import Check, Context, NoLimits, run
from clustertools.model import Reading
from tests.lab.memory_host import MemoryHost

SEEN: dict[str, Any] = {}


def _look(counters: Mapping[str, float], width_bits: int | None = None) -> Check:
    def look(ctx: Context) -> Iterator[Reading]:
        SEEN.clear()
        SEEN.update(ctx.rates(counters, width_bits=width_bits))
        return iter(())

    return Check("counting", look, "doc", NoLimits, frozenset({"watch"}), {})


def test_the_first_look_has_no_rates_and_the_second_has() -> None:
    host = MemoryHost()
    memory = run(_look({"a": 5, "b": 1}), host).memory
    assert SEEN == {}
    host.time += 10
    run(_look({"a": 25, "c": 3}), host, past=memory)
    assert {key: (rate.delta, rate.per_second, rate.reset) for key, rate in SEEN.items()} == {
        "a": (20, 2, False)
    }


def test_a_reset_counts_from_zero_and_a_wrap_goes_on() -> None:
    host = MemoryHost()
    memory = run(_look({"a": 4_294_967_290}), host).memory
    host.time += 1
    run(_look({"a": 4}), host, past=memory)
    assert (SEEN["a"].delta, SEEN["a"].reset) == (4, True)
    run(_look({"a": 4}, width_bits=32), host, past=memory)
    assert (SEEN["a"].delta, SEEN["a"].reset) == (10, False)


def test_no_rate_over_a_reboot_nor_when_the_clock_went_back() -> None:
    host = MemoryHost()
    memory = run(_look({"a": 5}), host).memory
    host.time -= 3600
    run(_look({"a": 25}), host, past=memory)
    assert SEEN == {}
    host.time += 7200
    host.boot_id = "boot-2"
    run(_look({"a": 25}), host, past=memory)
    assert SEEN == {}
