"""From the head's config to what each node is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from clustertools.check import discover
from clustertools.cli.node_requests import requests_for
from clustertools.cli.request import choose
from clustertools.config import load
from clustertools.errors import ConfigError
from clustertools.fleet.looking import Request

CONFIG = """
cluster: alpha
node_classes:
  h100:
    nodes: "gpu[001-003]"
    gpu_count: 8
    expect: {modules: [nvidia_peermem], files: [{path: /etc/x, mode: "0644"}]}
  spare: {nodes: "gpu[003-004]", mounts: [/data]}
checks:
  gpu_ecc: {limits: {uncorrected_volatile: 3}, timeout: 7s}
  gpu_xid: {enabled: false}
plugins:
  raid: {command: [/usr/lib/check_raid]}
"""


def asked(tmp_path: Path, text: str, nodes: tuple[str, ...], **options):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return requests_for(nodes, load([path]), **options)


def test_each_class_is_asked_for_what_it_expects(tmp_path):
    requests, left_out = asked(tmp_path, CONFIG, ("gpu001", "gpu003", "gpu004", "login1"))
    assert requests["gpu001"].expect["gpu_count"] == 8
    assert requests["gpu001"].expect["files"] == [{"path": "/etc/x", "mode": "0644"}]
    assert requests["gpu003"] is requests["gpu001"]  # the first class that names it
    assert requests["gpu004"].expect == {"node_class": "spare", "mounts": ["/data"]}
    assert requests["login1"].expect == {}
    assert requests["login1"].limits == {"gpu_ecc": {"uncorrected_volatile": 3}}
    assert requests["login1"].timeouts == {"gpu_ecc": 7.0}
    assert requests["login1"].disabled == ("gpu_xid",)
    assert requests["login1"].cluster == "alpha"
    assert left_out == ("plugin_raid",)
    for request in requests.values():
        again = Request.read(request.text())
        assert again == Request.read(again.text())
        assert "gpu_xid" not in {each.name for each in choose(again, discover(site_folders=()))}


def test_without_a_config_the_checks_are_as_declared():
    requests, left_out = requests_for(("n1",), None, without={"gpu_ecc", "gemm"}, facts=False)
    assert requests == {"n1": Request(disabled=("gpu_ecc",), facts=False)}
    assert left_out == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node_classes: {a: {nodes: 'gpu[1-'}}", "not a node set"),
        ("node_classes: {a: {nodes: 'n1', expect: {services: ['-H']}}}", "begins like an option"),
        ("checks: {gpu_ecc: {limits: {none: 1}}}", "none"),
    ],
)
def test_what_is_wrong_is_said_on_the_head(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        asked(tmp_path, text, ("n1",))
