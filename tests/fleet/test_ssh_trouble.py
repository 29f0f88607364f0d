"""Nodes that cannot be reached, do not let us in, or go away: each is told by itself, in time."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import threading
import time

import pytest

from clustertools.errors import ConfigError
from clustertools.fleet import Answer, Fate, Line
from clustertools.fleet.ssh import SshSettings, SshTransport
from tests.lab.sshd import Sshds, needs_sshd

pytestmark = needs_sshd


def transport(lab: Sshds, *lines: str, seconds: float | None = None, **settings: object) -> SshTransport:
    """To the lab, with lines before everything else in its ssh_config."""
    config = lab.folder / f"config-{time.monotonic_ns()}"
    config.write_text("\n".join(lines) + "\n" + lab.ssh_config.read_text())
    return SshTransport(SshSettings(config=config, connect_timeout_seconds=seconds, **settings))  # type: ignore[arg-type]


def ask(ssh: SshTransport, *nodes: str) -> dict[str, Answer]:
    return {answer.node: answer for answer in ssh.run(nodes, ("echo", "here"), timeout_seconds=20)}


@pytest.mark.slow
def test_nodes_in_trouble_do_not_hold_up_the_others(tmp_path):
    """One of each kind at the same time; nobody waits longer than for the connect deadline."""
    with Sshds(tmp_path / "lab", 8) as lab:
        other = " ".join((lab.folder / "lab8.key.pub").read_text().split()[:2])
        lab.kill("lab1")
        lab.hang("lab2")
        lab.configure("lab3", refuses=True)
        lab.start("lab3")
        lab.wait_for("lab3")
        lab.write_known_hosts({"lab4": other, "lab5": None})
        hole = lab.black_hole()
        with transport(lab, seconds=2.0) as ssh:
            began = time.monotonic()
            got = ask(ssh, *lab.nodes, hole, "no-such-host.invalid")
            elapsed = time.monotonic() - began
    fates = {node: answer.fate for node, answer in got.items()}
    assert fates == {
        "lab1": Fate.UNREACHABLE, "lab2": Fate.UNREACHABLE, "lab3": Fate.REFUSED, "lab4": Fate.HOST_KEY,
        "lab5": Fate.HOST_KEY, "lab6": Fate.COMPLETED, "lab7": Fate.COMPLETED, "lab8": Fate.COMPLETED,
        hole: Fate.UNREACHABLE, "no-such-host.invalid": Fate.UNREACHABLE,
    }  # fmt: skip
    assert elapsed < 2.0 + 3.0
    says = {node: answer.reason for node, answer in got.items()}
    assert "Connection refused" in says["lab1"]
    assert "no answer within 2 s, while waiting for its SSH banner" in says["lab2"]
    assert "does not let labrat in" in says["lab3"] or "not let" in says["lab3"]
    assert "host key changed" in says["lab4"]
    assert f"ssh-keygen -R lab4 -f {lab.known_hosts}" in says["lab4"]
    assert "is not known" in says["lab5"]
    assert f"ssh-keyscan -p {lab.port} 127.0.1.5 | sed 's/^[^ ]*/lab5/' >> {lab.known_hosts}" in says["lab5"]
    assert "no answer within 2 s, while connecting" in says[hole]
    assert "does not resolve" in says["no-such-host.invalid"]


@pytest.mark.parametrize("setting", ["StrictHostKeyChecking no", "StrictHostKeyChecking accept-new"])
def test_an_unknown_host_key_is_refused_whatever_the_configuration_says(lab, setting):
    empty = lab.folder / "nobody"
    empty.write_text("# nobody\n")
    with transport(lab, setting, f"UserKnownHostsFile {empty}") as ssh:
        assert ask(ssh, "lab1")["lab1"].fate is Fate.HOST_KEY


def test_the_advice_for_an_unknown_host_key_works(lab):
    file = lab.folder / "learnt"
    with transport(lab, f"UserKnownHostsFile {file}") as ssh:
        reason = ask(ssh, "lab1")["lab1"].reason
    command = reason.rsplit("`", 2)[1]
    assert command.startswith("ssh-keyscan")
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    with transport(lab, f"UserKnownHostsFile {file}") as ssh:
        assert ask(ssh, "lab1")["lab1"].fate is Fate.COMPLETED


def test_a_key_that_was_revoked_is_refused(lab):
    file = lab.folder / "revoked"
    line = " ".join((lab.folder / "lab1.key.pub").read_text().split()[:2])
    file.write_text(f"lab1 {line}\n@revoked * {line}\n")
    with transport(lab, f"UserKnownHostsFile {file}") as ssh:
        answer = ask(ssh, "lab1")["lab1"]
    assert (answer.fate, "revoked" in answer.reason) == (Fate.HOST_KEY, True)


def test_hashed_names_and_ports(lab):
    """As ssh itself writes them with HashKnownHosts: `|1|...` for `[127.0.1.1]:port`."""
    file = lab.folder / "hashed"
    file.write_text(lab.known_hosts.read_text())
    subprocess.run(["ssh-keygen", "-H", "-f", file], check=True, capture_output=True)
    assert "|1|" in file.read_text()
    assert "127.0.1.1" not in file.read_text()
    with transport(lab, f"UserKnownHostsFile {file}") as ssh:
        assert {a.fate for a in ask(ssh, "lab1", "127.0.1.2").values()} == {Fate.COMPLETED}


@pytest.mark.slow
def test_a_server_with_several_keys_shows_the_one_that_is_known(tmp_path):
    with Sshds(tmp_path / "lab", 1, extra=f"HostKey {tmp_path}/lab/rsa") as lab_before:
        pass
    rsa = lab_before.make_key("rsa", "rsa")
    with Sshds(tmp_path / "lab", 1, extra=f"HostKey {rsa}") as lab:
        lab.write_known_hosts({"lab1": " ".join(rsa.with_suffix(".pub").read_text().split()[:2])})
        with transport(lab) as ssh:
            assert ask(ssh, "lab1")["lab1"].fate is Fate.COMPLETED


def test_a_key_with_a_passphrase_and_no_key_at_all(lab):
    locked = lab.folder / "locked"
    if not locked.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    with transport(lab, f"IdentityFile {locked}", identity_files=(str(locked),)) as ssh:
        answer = ask(ssh, "lab1")["lab1"]
    assert answer.fate is Fate.REFUSED
    assert f"ssh-add {locked}" in answer.reason
    with transport(lab, identity_files=(str(lab.folder / "none"),)) as ssh:
        answer = ask(ssh, "lab1")["lab1"]
    assert "no private key" in answer.reason


def test_an_agent_opens_what_a_locked_file_does_not(lab, tmp_path, monkeypatch):
    agent = tmp_path / "agent"
    daemon = subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 5
        while not agent.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
        subprocess.run(["ssh-add", "-q", lab.identity], env=environment, check=True)
        with transport(
            lab, f"IdentityAgent {agent}", "IdentitiesOnly no", identity_files=(str(tmp_path / "none"),)
        ) as ssh:
            assert {a.fate for a in ask(ssh, *lab.nodes).values()} == {Fate.COMPLETED}
    finally:
        daemon.kill()
        daemon.wait()


def test_a_server_that_asks_for_more_than_a_key(tmp_path):
    extra = "AuthenticationMethods publickey,password\nPasswordAuthentication yes"
    with Sshds(tmp_path / "lab", 1) as lab:
        # the first value of a keyword counts
        conf = lab.folder / "lab1.conf"
        conf.write_text(extra + "\n" + conf.read_text())
        lab.start("lab1")
        lab.wait_for("lab1")
        with transport(lab) as ssh:
            answer = ask(ssh, "lab1")["lab1"]
    assert answer.fate is Fate.REFUSED
    assert "also asks for password" in answer.reason


@pytest.mark.slow
def test_a_connection_that_breaks_in_the_middle(tmp_path):
    with Sshds(tmp_path / "lab", 2) as lab, transport(lab) as ssh:
        talk = ssh.talk(lab.nodes, ("sh", "-c", "echo here; exec sleep 4721"))
        assert {next(talk.receive(10)) for _ in range(2)} == {Line("lab1", "here"), Line("lab2", "here")}
        answers = ssh.run(("lab1",), ("sh", "-c", "echo begun; sleep 4722"))
        threading.Timer(0.5, lab.break_sessions, ["lab1"]).start()
        (answer,) = answers
        assert (answer.fate, answer.said) == (Fate.LOST, "begun")
        assert "connection broke" in answer.reason
        last = next(talk.receive(5))
        assert (last.node, last.fate) == ("lab1", Fate.LOST)
        # and the next command makes a new connection
        assert ask(ssh, "lab1")["lab1"].fate is Fate.COMPLETED
        talk.close()


@pytest.mark.slow
def test_a_node_that_freezes_after_the_login(tmp_path):
    with Sshds(tmp_path / "lab", 2) as lab, transport(lab, seconds=2.0) as ssh:
        assert ask(ssh, *lab.nodes).keys() == set(lab.nodes)
        lab.freeze_sessions("lab1")
        began = time.monotonic()
        got = {a.node: a for a in ssh.run(lab.nodes, ("echo", "here"), timeout_seconds=1.0)}
        assert got["lab2"].fate is Fate.COMPLETED
        assert got["lab1"].fate is Fate.TIMEOUT
        assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_busy_server_is_tried_again(tmp_path):
    """MaxStartups: beyond two connections that are not logged in yet, every second one is hung up on."""
    with Sshds(tmp_path / "lab", 1, extra="MaxStartups 2:50:30") as lab:
        text = lab.ssh_config.read_text()
        names = [f"alias{i}" for i in range(12)]
        lab.ssh_config.write_text(
            f"Host {' '.join(names)}\n  HostName 127.0.1.1\n  HostKeyAlias lab1\n{text}"
        )
        with transport(lab) as ssh:
            got = ask(ssh, *names)
    fates = [answer.fate for answer in got.values()]
    assert fates.count(Fate.COMPLETED) >= 9, [a.reason for a in got.values()]


def test_through_a_gateway(lab):
    """lab1 is the only way to the others; never more than two are logging in through it at the same time."""
    lines = ("Host lab2 lab3 lab4 lab5 lab6", "  ProxyJump lab1", "Host *")
    with transport(lab, *lines, per_gateway=2) as ssh:
        got = ask(ssh, "lab2", "lab3", "lab4", "lab5", "lab6")
        assert {a.fate for a in got.values()} == {Fate.COMPLETED}, got
        assert len(lab.sessions("lab1")) in (1, 2), "one connection, which may be two processes"
        answer = next(ssh.run(("lab2",), ("sh", "-c", "echo ${SSH_CONNECTION%% *}")))
        assert answer.completed.stdout == "127.0.0.1\n" or answer.completed.stdout.startswith("127.")
    with transport(lab, "Host lab7", f"  ProxyJump lab1,{lab.user}@lab2:{lab.port}", "Host *") as ssh:
        assert ask(ssh, "lab7")["lab7"].fate is Fate.COMPLETED


def test_a_gateway_that_does_not_work(lab):
    with transport(lab, "Host lab2", "  ProxyJump 127.0.1.253", "Host *") as ssh:
        answer = ask(ssh, "lab2")["lab2"]
        assert answer.fate is Fate.UNREACHABLE
        assert "gateway 127.0.1.253" in answer.reason
        assert "Connection refused" in answer.reason
    with transport(lab, "Host lab2 lab3", "  ProxyJump lab3", "Host *") as ssh:
        assert "lead to each other" in ask(ssh, "lab2")["lab2"].reason
    with transport(lab, "Host dead", "  HostName 127.0.1.252", "  ProxyJump lab1", "Host *") as ssh:
        assert ask(ssh, "dead")["dead"].fate is Fate.UNREACHABLE


def test_through_a_proxy_command(lab):
    relay = lab.folder / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while d := os.read(0, 65536): s.sendall(d)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while d := s.recv(65536): os.write(1, d)\n"
    )
    with transport(lab, f"ProxyCommand python3 {relay} %h %p") as ssh:
        assert {a.fate for a in ask(ssh, "lab1", "lab2").values()} == {Fate.COMPLETED}
        assert lab.running("python3", str(relay))
    until = time.monotonic() + 5
    while lab.running("python3", str(relay)):
        assert time.monotonic() < until, "the ProxyCommand outlives the transport"
        time.sleep(0.02)
    with transport(lab, "ProxyCommand /nowhere/proxy %h") as ssh:
        assert "ProxyCommand cannot be started" in ask(ssh, "lab1")["lab1"].reason


def test_what_is_no_ssh_server(lab):
    """A web server on that port, and one that hangs up at once."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.1.251", lab.port)))
        rude = stack.enter_context(socket.create_server(("127.0.1.250", lab.port)))

        def answer(listener: socket.socket, text: bytes) -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer = listener.accept()[0]
                    peer.sendall(text)
                    peer.close()

        threading.Thread(
            target=answer, args=(server, b"HTTP/1.1 400 Bad\r\n\r\n\x1b[2J"), daemon=True
        ).start()
        threading.Thread(target=answer, args=(rude, b""), daemon=True).start()
        with transport(lab, seconds=3.0) as ssh:
            got = ask(ssh, "127.0.1.251", "127.0.1.250")
        server.shutdown(socket.SHUT_RDWR)
        rude.shutdown(socket.SHUT_RDWR)
    assert {a.fate for a in got.values()} == {Fate.UNREACHABLE}
    assert "\x1b" not in got["127.0.1.251"].reason
    assert "tried 3 times" in got["127.0.1.250"].reason


def test_a_configuration_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        SshTransport(SshSettings(config=tmp_path / "nowhere"))
    config = tmp_path / "config"
    config.write_text("Host a\n  Port many\n")
    with SshTransport(SshSettings(config=config)) as ssh, pytest.raises(ConfigError, match="many"):
        list(ssh.run(("a",), ("true",)))


def test_match_and_include(lab):
    """What paramiko has to be asked for, and what it does not know."""
    included = lab.folder / "included"
    included.write_text(f"Host other\n  HostName 127.0.1.3\n  HostKeyAlias lab3\nHost *\n  User {lab.user}\n")
    lines = (
        f"Include {included}",
        f"Match originalhost third exec true user {getpass.getuser()}",
        "  HostName 127.0.1.4",
        "  HostKeyAlias lab4",
        "Host *",
    )
    with transport(lab, *lines) as ssh:
        assert {a.fate for a in ask(ssh, "other").values()} == {Fate.COMPLETED}
