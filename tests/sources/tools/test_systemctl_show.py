"""`systemctl show` read to plain values; anything else refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import systemctl_show as reader
from tests.lab.parts.services import shown, unit
from tests.lab.whole_node import CPU


def test_units():
    assert reader.recognise(shown(CPU))
    assert not reader.recognise("Id=3\n")
    (first, *_) = reader.read(unit("a.service", Description="x=y"))["units"]
    assert (first["id"], first["n_restarts"], first["description"]) == ("a.service", "0", "x=y")
    found = {u.name: u for u in reader.units(shown(CPU))}
    assert found["home.mount"].restarts is None
    assert found["slurmctld.service"].active_state == "active"


@given(st.text())
def test_any_text_is_read_or_refused(text):
    for form in (text, unit("a.service") + text, shown(CPU)[: len(text)]):
        reader.recognise(form)
        for parse in (reader.read, reader.units):
            with contextlib.suppress(Unparsable):
                parse(form)


def test_a_long_line():
    with pytest.raises(Unparsable):
        reader.units("a" * 10_000_000)
