"""How frameworks leave out data: every row can be said, and every log format gets an answer."""

from __future__ import annotations

import re

import pytest

from clustertools.catalog.skip_data import around, frameworks, how
from clustertools.sources.training_formats import FAMILIES
from clustertools.sources.training_log import FORMATS


def test_every_row_says_what_it_can_and_where_that_was_read() -> None:
    for row in frameworks():
        assert row.can in ("yes", "part", "no"), row.name
        assert row.source, row.name
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row.date), row.name
        assert set(row.formats) <= set(FORMATS), row.name
        known = {"{first}", "{last}", "{before_first}", "{before_last}", "{stop}"}
        assert set(re.findall(r"\{\w*\}", row.how)) <= known, row.name


@pytest.mark.parametrize("format", [*FAMILIES, "olmo", "jsonl", "tensorboard", ""])
def test_every_format_gets_an_answer_with_the_steps_in_it(format: str) -> None:
    said = how(format, 4101, 4300)
    assert "4101" in said
    assert "4300" in said or "4301" in said
    assert "{" not in said
    assert "\n" not in said


def test_the_numbers_are_those_of_the_frameworks() -> None:
    # Megatron-LM's iteration is what it has done so far: the log's step 4101 is its 4100
    assert "--iterations-to-skip $(seq 4100 4299)" in how("megatron", 4101, 4300)
    # the endpoint of OLMo-core's range is not in it
    assert "start=4101, stop=4301" in how("olmo", 4101, 4300)


def test_what_is_left_out_begins_after_the_checkpoint() -> None:
    assert around(4200) == (4100, 4300)
    assert around(4200, begun=4150) == (4151, 4300)
    assert around(40) == (1, 140)
