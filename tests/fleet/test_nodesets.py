from __future__ import annotations

import io

import pytest

from clustertools.errors import ConfigError
from clustertools.fleet.nodesets import expand, fold


def test_ranges_come_out_in_natural_order_and_once():
    assert expand("gpu[9-11],gpu10,login1") == ("gpu9", "gpu10", "gpu11", "login1")


def test_folding_is_the_way_back():
    names = expand("gpu[001-128],login[1-2]")
    assert len(names) == 130
    assert fold(reversed(names)) == "gpu[001-128],login[1-2]"


def test_a_list_in_a_file_and_on_standard_input(tmp_path, monkeypatch):
    path = tmp_path / "nodes"
    path.write_text("# rack 7\ngpu[1-2]  gpu3,\n\ngpu3 # twice\n")
    assert expand(f"@file:{path}") == ("gpu1", "gpu2", "gpu3")
    monkeypatch.setattr("sys.stdin", io.StringIO("gpu4\ngpu5\n"))
    assert expand("-") == ("gpu4", "gpu5")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no node"),
        ("gpu[1-2]!gpu[1-2]", "no node"),
        ("gpu[1-", "cannot be read"),
        ("@nobody-defined-this", "empty"),
        # beside a name that is known ClusterShell leaves an unknown group out, in silence
        ("gpu1,@nobody-defined-this", "empty"),
        ("@file:/nowhere/nodes", "No such file"),
        ("-oProxyCommand=reboot", "not a node name"),
        ("gpu1,-G", "not a node name"),
        ("gpu 1", "not a node name"),
        ("gpu1;reboot", "not a node name"),
        ("$(reboot)", "not a node name"),
        ("gpu\x1b[2J", "control character"),
    ],
)
def test_what_selects_nobody_or_is_no_name_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        expand(text)


def test_an_empty_list_is_refused(tmp_path):
    path = tmp_path / "nodes"
    path.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="no node"):
        expand(f"@file:{path}")


def test_names_that_do_not_fold_are_still_said():
    assert fold(["a[b", "c"]) == "a[b,c"
