"""Matrix products at full load: how fast each GPU computes, and whether every element is right.

The inputs are whole numbers so small that every sum is exact in the accumulator (24 bits for all but
float64) in any order; so there is one right answer, which is computed in 64-bit integers, and each element of
each product is compared with it. Rows repeat every `_PERIOD` rows and columns likewise: that makes the right
answer cheap, while each sum still runs over different numbers.

float8 has no public product in torch, and is not looked at.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from clustertools.measurement import Ending
from clustertools.probes.devices import Bench, on_each, stuck_at
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import Order, Report, figure, together

#: Largest value of an input; with 8192 terms, 31 * 31 * 8192 is below 2^24, and below float16's 65504 are
#: 7 * 7 * 1024 for certain and, as signs differ, five standard deviations of a sum over 8192 terms.
_LARGEST = {"float64": 4095, "float32": 31, "tf32": 31, "bfloat16": 31, "float16": 7}
DTYPES = tuple(_LARGEST)
_PERIOD = 64
_TERMS_LIMIT = 16384
stuck = stuck_at
gather = together


def tasks(order: Order, here: Here) -> list[Task]:
    """Parameters: `dtypes`, `size` (rows of the square matrices), `seconds` (for each type)."""
    default = ("float32", "tf32", "bfloat16", "float16", "float64") if here.cuda else ("float32", "bfloat16")
    dtypes = order.texts("dtypes", default, DTYPES)
    rows = order.whole("size", 8192 if here.cuda else 512, _PERIOD, _TERMS_LIMIT)
    rows -= rows % _PERIOD
    seconds = order.number("seconds", 2.0, 0.01, 3600.0)

    def measure(bench: Bench) -> Report:
        report = Report(Ending.DONE)
        for dtype in dtypes:
            found = _product(bench, dtype, rows, seconds)
            report.figures += found.figures
            if found.ending is not Ending.DONE:
                found.figures = report.figures
                return found
        return report

    return on_each(order, here, measure)


def _product(bench: Bench, dtype: str, rows: int, seconds: float) -> Report:
    torch = bench.torch
    bench.progress.at(1, rows)
    kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    if bench.is_gpu:
        matmul = torch.backends.cuda.matmul
        matmul.allow_tf32 = dtype == "tf32"
        # partial sums in the short type would be rounded, and by how much depends on their order
        for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
            setattr(matmul, name, False)
    left, right, truth = inputs(torch, rows, _LARGEST[dtype])
    a = left.to(bench.device, kind).repeat(rows // _PERIOD, 1)
    b = right.to(bench.device, kind).repeat(1, rows // _PERIOD)
    expected = truth.to(bench.device, kind)
    product = torch.empty(rows, rows, dtype=kind, device=bench.device)
    torch.mm(a, b, out=product)  # loads the libraries
    times: list[float] = []
    until = min(time.monotonic() + seconds, bench.until - 1.0)
    while True:
        bench.fault.strike()
        bench.progress.at(2, rows, len(times))
        times.append(bench.timed(lambda: torch.mm(a, b, out=product)))
        bench.fault.spoil(product)
        if wrong := mistakes(product, expected):
            return bench.wrong(f"the product of {rows} x {rows} matrices in {dtype}", wrong, rows * rows)
        if time.monotonic() >= until:
            break
    return Report(
        Ending.DONE,
        figures=[
            figure(
                "flop_per_second",
                2.0 * rows**3 / statistics.fmean(times),
                variant=f"{dtype} {rows}",
                part=bench.part,
            )
        ],
    )


def inputs(torch: Any, terms: int, largest: int) -> tuple[Any, Any, Any]:
    """The repeating rows of the left matrix, the columns of the right one, and their exact product."""
    numbers = torch.arange(_PERIOD * terms, dtype=torch.int64)
    # two full-period generators modulo 2^31 (Numerical Recipes' constants): the same numbers everywhere
    left = (numbers * 1664525 + 1013904223) % 2147483648
    right = (numbers * 22695477 + 1) % 2147483648
    span = 2 * largest + 1
    left = ((left >> 8) % span - largest).view(_PERIOD, terms)
    right = ((right >> 8) % span - largest).view(terms, _PERIOD)
    return left, right, (left @ right).double()


def mistakes(product: Any, expected: Any) -> int:
    """How many elements of the product are not those of the tile that it must consist of."""
    tiles = product.view(product.shape[0] // _PERIOD, _PERIOD, product.shape[1] // _PERIOD, _PERIOD)
    return int((tiles != expected.view(1, _PERIOD, 1, _PERIOD)).sum().item())
