"""`clustertools setup`: the files that it prints, tried with the programs that will read them."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from clustertools.cli import main
from clustertools.cli.setup import FILES
from tests.lab.site import Site

BIN = Path(__file__).parents[2] / "bin"
#: What `systemd-analyze security` may say of a service that watches a cluster: "OK" ends at 5, "medium" at 7.
MOST_EXPOSED = 2.5


def program(name: str, *folders: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin", *folders]))
    if not found:
        pytest.skip(f"no {name} here")
    return found


def files(folder: Path, what: str, *words: str) -> Path:
    assert main(["setup", what, "--bin", str(BIN), "--into", str(folder), *words]) == 0
    return folder


def run(*argv: object, **more: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in argv]
    options = {"capture_output": True, "text": True, "check": False, "timeout": 60, **more}
    return subprocess.run(words, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("what", FILES)
def test_the_files_are_for_review(tmp_path, capsys, what):
    assert main(["setup", what, "--into", str(tmp_path / "review")]) == 0
    paths = sorted((tmp_path / "review").iterdir())
    assert capsys.readouterr().out.split() == [str(tmp_path / "review" / name) for name in FILES[what]]
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert not re.search(r"@[A-Z]+@", path.read_text())
        assert "TODO" not in path.read_text()
    before = {path: path.read_text() for path in paths}
    paths[0].write_text("mine\n")
    assert main(["setup", what, "--into", str(tmp_path / "review")]) == 3
    assert f"{paths[0]} is there already; nothing was written" in capsys.readouterr().err
    assert paths[0].read_text() == "mine\n"
    assert all(path.read_text() == before[path] for path in paths[1:])


@pytest.mark.parametrize("what", FILES)
def test_without_a_folder_they_are_printed(capsys, what):
    assert main(["setup", what]) == 0
    out = capsys.readouterr().out
    assert [f"# ---- {name}" in out for name in FILES[what]] == [True] * len(FILES[what])
    assert main(["setup", what, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["name"] for r in records] == list(FILES[what])
    assert all(r["text"] in out for r in records)


@pytest.mark.parametrize(
    "words",
    [
        ["--user", "root ALL=(ALL) NOPASSWD: ALL #"],
        ["--user", "a\nb"],
        ["--bin", "bin"],
        ["--bin", "/opt/%h"],
        ["--bin", "/opt/a b"],
        ["--bin", "/opt/x;reboot"],
        ["--head", 'x",command="sh'],
    ],
)
def test_a_word_that_would_mean_more_than_itself_is_refused(capsys, words):
    for what in FILES:
        assert main(["setup", what, *words]) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert words[0] in captured.err


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["setup", "cron", "--into", str(tmp_path / "file" / "x")]) == 3
    assert "cannot write into" in capsys.readouterr().err


# systemd


@pytest.fixture
def units(tmp_path):
    return files(tmp_path / "units", "systemd", "--user", "daemon")  # an account that every machine has


@pytest.mark.parametrize("name", [n for n in FILES["systemd"] if not n.endswith(".sysusers")])
def test_systemd_understands_every_line(units, name):
    done = run(program("systemd-analyze"), "verify", "--man=no", units / name)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_mistake_in_a_unit_is_found(units):
    unit = units / "clustertools.service"
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert "NoNewPrivilege" in run(program("systemd-analyze"), "verify", "--man=no", unit).stderr


@pytest.mark.parametrize("name", ["clustertools.service", "clustertools-once.service"])
def test_the_service_can_do_little_else(units, name):
    analyze = program("systemd-analyze")
    done = run(
        analyze,
        "security",
        "--offline=true",
        f"--threshold={MOST_EXPOSED * 10:.0f}",
        "--no-pager",
        units / name,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze before 250 cannot look at a file")
    assert done.returncode == 0, done.stdout[-200:]
    exposure = float(re.findall(r"exposure level for \S+: ([\d.]+)", done.stdout)[0])
    assert exposure <= MOST_EXPOSED


def test_what_the_service_must_reach_is_not_closed(units):
    text = (units / "clustertools.service").read_text()
    lines = set(text.splitlines())
    assert {"Type=notify", "NotifyAccess=main", "Restart=on-failure", "KillMode=mixed"} <= lines
    assert "ExecReload=/bin/kill -HUP $MAINPID" in lines
    # slurmctld, the nodes, munge's socket, the kernel log, the runs' logs
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK" in lines
    assert "DeviceAllow=/dev/kmsg r" in lines
    assert "ProtectHome=read-only" in lines
    assert not {"PrivateNetwork=yes", "PrivateDevices=yes", "ProtectHome=yes", "ProcSubset=pid"} & lines


def test_the_account_that_systemd_would_make(tmp_path):
    folder = files(tmp_path / "units", "systemd")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    done = run(program("systemd-sysusers"), f"--root={root}", folder / "clustertools.sysusers")
    assert done.returncode == 0, done.stderr
    (line,) = [x for x in (root / "etc/passwd").read_text().splitlines() if x.startswith("clustertools:")]
    assert line.endswith(":/var/lib/clustertools:/usr/sbin/nologin")


# cron, sudo, ssh, Slurm


@pytest.mark.slow
def test_the_line_of_cron_runs_in_crons_environment(tmp_path):
    """As cron runs it: its variables and nothing else, /bin/sh -c, no terminal."""
    site = Site(tmp_path)
    site.fault("LabFault - it broke")
    text = (files(tmp_path / "cron", "cron") / "clustertools.cron").read_text()
    variables = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z_]+=", line))
    (line,) = [x for x in text.splitlines() if x.startswith("* * * * * ")]
    user, command = line.removeprefix("* * * * * ").split(" ", 1)
    assert user == "clustertools"
    assert variables["CLUSTERTOOLS_STATE"] == "/var/lib/clustertools"
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "logger").write_text(f'#!/bin/sh\necho "$@" >{folder}/words\ncat >{folder}/said\n')
    (folder / "logger").chmod(0o755)
    environment = {
        **variables, "PATH": f"{folder}:{variables['PATH']}", "HOME": "/", "LOGNAME": user,
        # what a test must not touch, in place of /etc/clustertools and /var/lib/clustertools
        "CLUSTERTOOLS_STATE": str(site.state), "CLUSTERTOOLS_CONFIG": str(site.config),
        "CLUSTERTOOLS_ETC": str(site.etc),
    }  # fmt: skip
    done = run(variables["SHELL"], "-c", command, env=environment, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.stderr) == ("", "")  # nothing for cron to mail
    assert "opened LabFault" in (folder / "said").read_text()
    assert (folder / "words").read_text() == "-t clustertools\n"
    assert (site.state / "state.db").exists()


@pytest.mark.parametrize("user", ["clustertools", "ct_watch-1"])
def test_sudo_takes_the_rules(tmp_path, user):
    file = files(tmp_path / "sudo", "sudoers", "--user", user) / "clustertools.sudoers"
    done = run(program("visudo"), "-c", "-f", file)
    assert done.returncode == 0, done.stdout + done.stderr
    text = file.read_text()
    assert "-i 0, \\\n" in text
    assert "*" not in "".join(line for line in text.splitlines() if not line.startswith("#"))


def test_ssh_takes_the_key_line(tmp_path):
    """Every option of the line is one that sshd knows: ssh-keygen reads the key behind them."""
    folder = files(tmp_path / "slurm", "slurm", "--head", "10.0.0.1,head.example.org")
    run(program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    (line,) = [x for x in (folder / "authorized_keys").read_text().splitlines() if not x.startswith("#")]
    assert line.startswith(
        f'restrict,from="10.0.0.1,head.example.org",command="{BIN}/clustertools check --request -" '
    )
    key = (tmp_path / "key.pub").read_text().split()[1]
    (tmp_path / "keys").write_text(line.replace("AAAA...", key) + "\n")
    assert run("ssh-keygen", "-l", "-f", tmp_path / "keys").returncode == 0


def test_the_programs_that_slurm_is_told_of_are_there(tmp_path):
    text = (files(tmp_path / "slurm", "slurm") / "slurm.conf").read_text()
    programs = re.findall(r"^(?:HealthCheckProgram|Prolog|Epilog)=(\S+)$", text, re.M)
    assert len(programs) == 3
    assert all(os.access(path, os.X_OK) for path in programs)


def test_the_operators_script_is_one(tmp_path):
    script = files(tmp_path / "slurm", "slurm") / "slurm-operator.sh"
    assert run("sh", "-n", script).returncode == 0
    assert "adminlevel=Operator" in script.read_text()
