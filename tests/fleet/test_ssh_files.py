"""known_hosts, ssh_config and the words of a command: what is read and written without any connection."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import ConfigError
from clustertools.fleet.known_hosts import AUTHORITY, REVOKED, KnownHosts
from clustertools.fleet.remote_command import command_line
from clustertools.fleet.ssh_config import ConfigText
from clustertools.fleet.ssh_target import SshSettings, Targets
from clustertools.fleet.ssh_wire import read_config

KEY = base64.b64encode(b"a key").decode()


def known(*lines: str) -> KnownHosts:
    return KnownHosts([("file", "\n".join(lines))])


def test_names_ports_patterns_and_marks():
    found = known(
        "# a remark",
        f"gpu1,10.0.0.1 ssh-ed25519 {KEY} comment",
        f"[gpu2]:2200 ssh-ed25519 {KEY}",
        f"rack7-*,!rack7-9 ssh-rsa {KEY}",
        f"@revoked gpu1 ssh-ed25519 {KEY}",
        f"@cert-authority *.example ssh-ed25519 {KEY}",
    )
    assert [(k.line, k.marker) for k in found.find("GPU1")] == [(2, ""), (5, REVOKED)]
    assert [k.line for k in found.find("10.0.0.1")] == [2]
    assert [k.line for k in found.find("[gpu2]:2200")] == [3]
    assert found.find("gpu2") == []
    assert [k.key_type for k in found.find("rack7-1")] == ["ssh-rsa"]
    assert found.find("rack7-9") == []
    assert [k.marker for k in found.find("a.example")] == [AUTHORITY]


def test_hashed_names():
    salt = b"0123456789abcdefghij"
    digest = hmac.digest(salt, b"gpu1", hashlib.sha1)
    words = "|".join(["", "1", base64.b64encode(salt).decode(), base64.b64encode(digest).decode()])
    assert [k.line for k in known(f"{words} ssh-ed25519 {KEY}").find("gpu1")] == [1]
    assert known(f"{words} ssh-ed25519 {KEY}").find("gpu2") == []


@given(st.lists(st.text(max_size=60), max_size=5))
def test_lines_that_nobody_can_read_are_left_out_and_counted(lines):
    hosts = KnownHosts([("file", "\n".join(lines))])
    hosts.find("gpu1")
    assert all(where.startswith("file:") for where in hosts.unreadable)


CONFIG = """
Compression yes
Host gpu1
  HostName %h.example
  Port=2201
  IdentityFile "~/with blank"
Host gpu* !gpu9
  User trainer
  Port 22
  IdentityFile ~/.ssh/%r
Host *
  User everybody
  UserKnownHostsFile ~/a ~/b-%h
"""


def test_the_index_says_what_paramiko_says(tmp_path):
    path = tmp_path / "config"
    path.write_text(CONFIG)
    ours = ConfigText([(path, True)], read_config)
    for host in ("gpu1", "gpu2", "gpu9", "login"):
        theirs = read_config(CONFIG, host)
        mine = dict(ours.of(host))
        assert mine.get("user") == theirs.get("user")
        assert mine.get("port") == theirs.get("port")
        assert len(mine.get("identityfile", [])) == len(theirs.get("identityfile", []))


def test_a_target(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "config"
    path.write_text(CONFIG + "  ProxyJump a@gate:2222,b\n  ConnectTimeout 3\n")
    target = Targets(SshSettings(config=path), read_config).of("gpu1")
    assert (target.address, target.port, target.user) == ("gpu1.example", 2201, "trainer")
    assert target.identity_files == ("/home/me/with blank", "/home/me/.ssh/trainer")
    assert target.known_hosts_files[:2] == ("/home/me/a", "/home/me/b-gpu1.example")
    assert target.known_as == "[gpu1.example]:2201"
    assert (target.gateways, target.connect_timeout_seconds) == (("a@gate:2222", "b"), 3.0)
    gate = Targets(SshSettings(config=path), read_config).of_gateway(("a@gate:2222",))
    assert (gate.address, gate.port, gate.user) == ("gate", 2222, "a")


def test_what_ssh_says_of_the_same_file(tmp_path):
    """`ssh -G` prints what ssh itself makes of a configuration."""
    included = tmp_path / "more"
    included.write_text("Host gpu1\n  Port 2205\nHost other\n  Port 1\n")
    path = tmp_path / "config"
    path.write_text(
        f"Include {included}\nHost gpu1 gpu2\n  User one\nMatch host gpu2\n  User two\n  Port 2206\n"
        "Host *\n  User three\n  Port 2207\n  HostName %h.example\n"
    )
    targets = Targets(SshSettings(config=path), read_config)
    for host in ("gpu1", "gpu2", "gpu3", "other"):
        said = subprocess.run(
            ["ssh", "-G", "-F", path, host], capture_output=True, text=True, check=True
        ).stdout
        theirs = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
        mine = targets.of(host)
        assert (mine.address, str(mine.port), mine.user) == (
            theirs["hostname"],
            theirs["port"],
            theirs["user"],
        )


def test_files_that_include_each_other(tmp_path):
    path = tmp_path / "config"
    path.write_text(f"Include {path}\n")
    with pytest.raises(ConfigError, match="include each other"):
        ConfigText([(path, True)], read_config)


@pytest.mark.slow
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=4
    )
)
def test_sh_reads_the_words_as_they_were(words):
    line = command_line(["printf", "%s\\0", *words], "n1", "mark")
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert done.stdout == b"".join(word.encode() + b"\0" for word in words)
