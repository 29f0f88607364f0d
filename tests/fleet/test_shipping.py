"""The archive: what it is, and how it comes onto nodes of every ugly kind."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import stat
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from clustertools.fleet import Answer, Fate, shipping
from clustertools.fleet.local import LocalTransport
from clustertools.fleet.shipping import Tool, archive, bootstrap, build_archive
from clustertools.host import Completed
from tests.fleet.pretended_nodes import BARE, PretendedNodes, pretended_node, program

HOSTS = Path(__file__).parent.parent / "hosts"


@pytest.fixture(scope="module")
def pyz(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "clustertools.pyz"
    build_archive(path)
    return path


def bare(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter that sees no site-packages at all, in an empty environment."""
    return subprocess.run(
        [BARE, "-I", "-S", *map(str, words)],
        env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# the archive


def test_the_same_content_is_the_same_archive():
    first = archive()
    archive.cache_clear()
    assert archive().sha256 == first.sha256
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()


def test_it_holds_checks_playbooks_data_dependencies_and_their_licences(pyz):
    names = set(zipfile.ZipFile(pyz).namelist())
    assert {
        "__main__.py", "clustertools/checks/gpu_ecc.py", "clustertools/catalog/xid.yaml", "yaml/__init__.py",
        "clustertools/catalog/kernel_lines.txt", "click/__init__.py", "pynvml.py", "ClusterShell/NodeSet.py",
        "clustertools/sources/nvidia.py", "clustertools/fleet/bootstrap.py",
    } <= names  # fmt: skip
    assert any(name.startswith("clustertools/playbooks/") and name.endswith(".yaml") for name in names)
    assert {n.split("/")[1] for n in names if n.startswith("licences/")} >= {*shipping.DEPENDENCIES}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_whatever_is_installed_is_in_the_archive_and_is_not_opened_as_a_file(pyz):
    repository = Path(__file__).parent.parent.parent
    names = set(zipfile.ZipFile(pyz).namelist())
    for folder, place in (("clustertools", ""), ("checks", "clustertools/"), ("playbooks", "clustertools/")):
        there = {
            f"{place}{path.relative_to(repository).as_posix()}"
            for path in (repository / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert there <= names
    # in an archive there is no file: catalog.packaged_text and importlib.resources read there as well
    opening = [
        str(path.relative_to(repository))
        for folder in ("clustertools", "checks")
        for path in sorted((repository / folder).rglob("*.py"))
        if "__file__" in path.read_text()
    ]
    assert opening == ["clustertools/catalog/__init__.py", "clustertools/check.py"]
    ask = (
        f"import sys; sys.path.insert(0, {str(pyz)!r}); from importlib import resources\n"
        "from clustertools.catalog import hardware, performance\n"
        "print(len(performance.gpu_rows()), len(hardware.catalogue()))\n"
        "print(len(resources.files('clustertools.render').joinpath('preflight.html').read_text()))"
    )
    done = bare("-c", ask)
    assert done.returncode == 0, done.stderr


def test_it_runs_by_a_relative_path(pyz):
    done = subprocess.run(
        [BARE, "-I", "-S", pyz.name, "explain", "xid 79"], cwd=pyz.parent, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "XidGpuLost" in done.stdout


def test_an_archive_ships_itself(pyz, tmp_path):
    again = tmp_path / "again.pyz"
    done = bare(pyz, "-m", "clustertools.fleet.shipping", again)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == pyz.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["h100-healthy", "h100-dbe-gpu3"])
def test_it_says_of_a_recorded_host_what_the_installed_tool_says(pyz, host, capsys):
    from clustertools.cli import main

    main(["check", "--stage", "preflight", "--json", "--host", str(HOSTS / host)])
    here = capsys.readouterr().out
    there = bare(pyz, "check", "--stage", "preflight", "--json", "--host", HOSTS / host)

    def verdicts(text: str) -> list[dict[str, object]]:
        return [{**json.loads(line), "elapsed_seconds": 0} for line in text.splitlines()]

    assert len(verdicts(here)) > 40
    assert verdicts(there.stdout) == verdicts(here)


def test_a_child_finds_its_module_in_the_archive_and_the_argv_is_as_recorded(pyz):
    ask = (
        f"import sys; sys.path.insert(0, {str(pyz)!r}); from clustertools.host import LocalHost; "
        "done = LocalHost().run('python', '-m', 'clustertools.sources.mounts', '--deadline', '5', '/'); "
        "print(done.argv[:3], done.returncode, done.stdout, done.stderr)"
    )
    done = bare("-c", ask, PATH="/usr/bin:/bin")
    assert done.stdout.startswith("('python', '-m', 'clustertools.sources.mounts') 0 "), done.stdout


def test_nvml_is_asked_with_the_pynvml_of_the_archive(pyz, nvml):
    done = bare(pyz, "-m", "clustertools.sources.nvidia", "--json", **nvml.environment)
    assert len(json.loads(done.stdout)["gpus"]) == 8, done.stderr


def test_checks_of_a_site_are_found_beside_those_of_the_archive(pyz, tmp_path):
    (tmp_path / "site_fan.py").write_text(
        "from clustertools.check import check\n"
        '@check(stages={"watch"}, codes={})\ndef site_fan(ctx):\n    "Looks at a fan."\n    return ()\n'
    )
    ask = (
        f"import sys; sys.path.insert(0, {str(pyz)!r}); from clustertools.check import discover; "
        f"found = discover([{str(tmp_path)!r}]); print('site_fan' in found, 'gpu_ecc' in found, len(found))"
    )
    words = bare("-c", ask).stdout.split()
    assert words[:2] == ["True", "True"]
    assert int(words[2]) > 60


@pytest.mark.parametrize("words", [(), ("no_such",), ("children",), ("../serve",)])
def test_what_is_no_probe_is_not_run(pyz, words):
    done = bare(pyz, "probe", *words)
    assert done.returncode == 3
    assert "there is no probe" in done.stderr


@pytest.mark.slow
def test_a_prober_speaks_from_the_archive_by_a_python_that_was_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with LocalTransport("n1") as here:
        tool = Tool.install(here, ["n1"], installed=None)
        talk = here.talk(["n1"], tool.argv("probe", "serve", "--without-torch", python=BARE))
        hello = json.loads(next(talk.receive(30)).text)["hello"]
        assert hello["node"] == "n1"
        talk.send('{"end": true}')
        [end] = talk.receive(30)
        assert end.completed.returncode == 0, end.completed.stderr
        talk.close()


# the bootstrap


def test_python_3_6_can_read_the_bootstrap():
    ast.parse(bootstrap(), feature_version=(3, 6))
    assert len(bootstrap()) < 8000  # it is in every argv


@pytest.fixture
def node(tmp_path) -> dict[str, str]:
    return pretended_node(tmp_path / "n1")


def cached(node: dict[str, str]) -> Path:
    return Path(node["HOME"], ".cache/clustertools", f"clustertools-{archive().sha256}.pyz")


def test_the_first_look_sends_the_archive_and_the_second_does_not(node):
    nodes = PretendedNodes({"n1": node})
    tool = Tool.install(nodes, ["n1"])
    assert tool.ready["n1"].was_sent
    assert not tool.missing
    assert cached(node).read_bytes() == archive().data
    assert stat.S_IMODE(cached(node).parent.stat().st_mode) == 0o700
    again = Tool.install(nodes, ["n1"])
    assert not again.ready["n1"].was_sent
    assert [sent for *_, sent in nodes.asked] == [0, len(archive().data), 0]
    [answer] = nodes.run(["n1"], tool.argv("--version"))
    assert answer.completed.stdout.startswith("clustertools, version")


def test_words_arrive_as_they_are(node):
    nodes = PretendedNodes({"n1": node})
    tool = Tool.install(nodes, ["n1"])
    hostile = "$(touch /tmp/x); `id` 'a' \"b\" \n -e"
    [answer] = nodes.run(["n1"], tool.argv("explain", hostile))
    assert answer.completed.returncode == 3
    assert "$(touch /tmp/x); `id`" in answer.completed.stderr


def test_modules_of_the_user_are_not_ours(node, tmp_path):
    for name in ("json", "hashlib", "click", "clustertools"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user was imported')")
    nodes = PretendedNodes({"n1": {**node, "PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": "/nowhere"}})
    tool = Tool.install(nodes, ["n1"])
    [answer] = nodes.run(["n1"], tool.argv("check", "cpu_count", "--json"))
    assert '"cpu_count"' in answer.completed.stdout, answer.completed.stderr


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 something else", b"cut"])
def test_a_cut_or_changed_archive_is_never_run_and_is_replaced(node, damage):
    nodes = PretendedNodes({"n1": node})
    tool = Tool.install(nodes, ["n1"])
    cached(node).write_bytes(archive().data[:5000] if damage == b"cut" else damage)
    [answer] = nodes.run(["n1"], tool.argv("--version"))
    assert answer.completed.returncode == 3
    assert "cut or changed" in answer.completed.stderr
    assert Tool.install(nodes, ["n1"]).ready["n1"].was_sent
    assert cached(node).read_bytes() == archive().data


def test_a_planted_link_or_a_folder_that_others_may_write_is_refused(node, tmp_path):
    elsewhere, cache = tmp_path / "elsewhere", Path(node["HOME"], ".cache")
    elsewhere.mkdir()
    cache.mkdir()
    (cache / "clustertools").symlink_to(elsewhere)
    xdg = tmp_path / "xdg"
    (xdg / "clustertools").mkdir(parents=True)
    (xdg / "clustertools").chmod(0o777)
    open_above = tmp_path / "open"
    open_above.mkdir()
    open_above.chmod(0o777)
    for environment, said in (
        (node, "symbolic link"),
        ({**node, "XDG_CACHE_HOME": str(xdg)}, "with mode 777"),
        ({**node, "XDG_CACHE_HOME": str(open_above)}, "anybody may rename it"),
    ):
        definitions = bootstrap().rpartition("if __name__")[0]
        ask = f"places = lambda: {places(environment)!r}\nproblems = []\n"
        ask += "print(stored('0' * 64, b'x', problems), problems)"
        answer = bare("-c", f"{definitions}\n{ask}", **environment)
        assert said in answer.stdout, answer.stderr
    assert not list(elsewhere.iterdir())


def places(environment: dict[str, str]) -> list[str]:
    """The first place only: the last one is a folder of this machine."""
    cache = environment.get("XDG_CACHE_HOME") or f"{environment['HOME']}/.cache"
    return [f"{cache}/clustertools"]


def test_where_one_place_cannot_be_written_the_next_is_tried_and_that_is_told(node):
    nodes = PretendedNodes({"n1": {**node, "XDG_CACHE_HOME": "/proc/nowhere"}})
    tool = Tool.install(nodes, ["n1"])
    assert tool.ready["n1"].path == str(cached(node))
    assert "/proc/nowhere/clustertools: No such file" in tool.ready["n1"].refused[0]


@pytest.mark.root
def test_a_full_disk_leaves_nothing_behind_and_the_next_place_is_tried(node, tmp_path):
    """In a mount namespace of its own: the file system goes with the process."""
    full = tmp_path / "full"
    full.mkdir()
    nodes = PretendedNodes({"n1": {**node, "XDG_CACHE_HOME": str(full)}})
    tool = Tool(python="python3", digest=archive().sha256, command="", ready={}, missing={})
    mount = f'mount -t tmpfs -o size=64k none {full} && "$@"; ls -A {full}/clustertools'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", BARE, *tool._bootstrap("store")[1:]],
        input=archive().data, env={**nodes.nodes["n1"], "PATH": os.environ["PATH"]}, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    told, *left = done.stdout.decode().splitlines()
    assert json.loads(told)["state"] == "ready", done.stderr
    assert "No space left" in json.loads(told)["problems"][0]
    assert left == []
    assert cached(node).exists()


class SharedHomes(PretendedNodes):
    """Forty nodes; those of one letter have one home."""

    def __init__(self, letters: str) -> None:
        super().__init__({f"{letter}{n}": {} for letter in letters for n in range(40 // len(letters))})
        self.having: set[str] = set()
        self.rounds: list[tuple[str, int]] = []

    def run(self, nodes, argv, **options):
        mode = argv[4]
        self.rounds.append((mode, len(nodes)))
        for node in nodes:
            if mode == "store":
                self.having.add(node[0])
            state = "ready" if node[0] in self.having else "absent"
            told = json.dumps({"clustertools_bootstrap": 1, "state": state, "path": "/x", "problems": []})
            yield Answer(node, Fate.COMPLETED, Completed(argv, 0, told, ""))


def test_with_one_home_one_node_is_sent_the_archive():
    nodes = SharedHomes("a")
    assert len(Tool.install(nodes, list(nodes.nodes)).ready) == 40
    assert nodes.rounds == [("ask", 40), ("store", 1), ("ask", 1), ("ask", 38)]
    apart = SharedHomes("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN")
    assert len(Tool.install(apart, list(apart.nodes)).ready) == 40
    assert apart.rounds == [("ask", 40), ("store", 1), ("ask", 1), ("store", 39)]


@pytest.mark.slow
def test_twenty_nodes_with_one_home_write_it_at_once(node):
    tool = Tool(python="python3", digest=archive().sha256, command="", ready={}, missing={})
    argv = [BARE, *tool._bootstrap("store")[1:]]
    children = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=node) for _ in range(20)
    ]
    for child in children:
        child.stdin.write(archive().data)
    told = [json.loads(child.communicate()[0]) for child in children]
    assert [one["state"] for one in told] == ["ready"] * 20
    assert [path.name for path in cached(node).parent.iterdir()] == [cached(node).name]
    assert cached(node).read_bytes() == archive().data


def test_what_did_not_arrive_whole_is_not_kept(node):
    tool = Tool(python="python3", digest=archive().sha256, command="", ready={}, missing={})
    done = subprocess.run(
        [BARE, *tool._bootstrap("store")[1:]],
        input=archive().data[:-1],
        env=node,
        capture_output=True,
        check=True,
    )
    assert "which are not the archive" in json.loads(done.stdout)["problems"][0]
    assert not cached(node).exists()


def test_old_archives_of_ours_are_removed_and_nothing_else(node):
    folder = cached(node).parent
    folder.mkdir(parents=True, mode=0o700)
    ours, fresh = f"clustertools-{'a' * 64}.pyz", f"clustertools-{'b' * 64}.pyz"
    half, foreign = f".clustertools-{'c' * 64}.pyz.{'0' * 16}.tmp", "clustertools-notes.txt"
    for name, days in ((ours, 31), (fresh, 29), (half, 2), (foreign, 900)):
        (folder / name).write_text("")
        then = time.time() - days * 86400
        os.utime(folder / name, (then, then))
    Tool.install(PretendedNodes({"n1": node}), ["n1"])
    assert {path.name for path in folder.iterdir()} == {fresh, foreign, cached(node).name}


#: Stands for an interpreter of that version: the text of `-c` sees it in sys.version_info.
_AGED = """#!/bin/sh
shift 2
exec {python} -I -c 'import sys; sys.version_info = {version}; text = sys.argv.pop(1)
exec(compile(text, "<string>", "exec"), {{"__name__": "__main__"}})' "$@"
"""


def test_an_old_python_finds_the_newest_one_that_works(node):
    folder = Path(node["PATH"])
    program(folder / "python3", _AGED.format(python=BARE, version=(3, 6, 8)))
    program(folder / "python3.29", "#!/bin/sh\nexit 127\n")  # a version manager's empty promise
    newest = program(folder / "python3.28", f'#!/bin/sh\nexec {BARE} "$@"\n')
    program(folder / "python3.27", "#!/bin/sh\nexit 1\n")
    tool = Tool.install(nodes := PretendedNodes({"n1": node}), ["n1"])
    assert tool.ready["n1"].interpreter == str(newest)
    [answer] = nodes.run(["n1"], tool.argv("--version"))
    assert answer.completed.returncode == 0, answer.completed.stderr


def test_a_python_that_was_named_is_not_replaced_by_another(node):
    nodes = PretendedNodes({"n1": node})
    tool = Tool.install(nodes, ["n1"], installed=None)
    old = program(Path(node["PATH"]) / "job/python", _AGED.format(python=BARE, version=(3, 9, 2)))
    [answer] = nodes.run(["n1"], tool.argv("probe", "serve", python=str(old)))
    assert answer.completed.returncode == 3
    assert "python 3.9 found" in answer.completed.stderr
    assert "3.10 needed" in answer.completed.stderr
    [answer] = nodes.run(["n1"], tool.argv("--version", python=BARE))
    assert answer.completed.returncode == 0


@pytest.mark.parametrize("version", ["3.6.15", "3.9.18"])
def test_real_old_pythons_say_that_they_are_too_old(pyz, version):
    old = Path.home() / f".pyenv/versions/{version}/bin/python3"
    if not old.exists():
        pytest.skip("needs an old Python beside this one")
    tool = Tool("python3", archive().sha256, "", {}, {})
    told = subprocess.run([old, *tool._bootstrap("with")[1:]], capture_output=True, text=True, check=False)
    assert "3.10 needed" in told.stderr
    direct = subprocess.run([old, pyz, "check"], capture_output=True, text=True, check=False)
    assert direct.returncode == 3
    assert "3.10 or newer" in direct.stderr


def test_an_installed_command_of_our_version_is_used_and_nothing_is_sent(node):
    from clustertools import __version__

    installed = Path(node["PATH"]) / "clustertools"
    program(
        installed,
        f'#!/bin/sh\n[ "$1" = --version ] && echo "clustertools, version {__version__}" || echo "$@"\n',
    )
    nodes = PretendedNodes({"n1": node})
    tool = Tool.install(nodes, ["n1"])
    assert tool.ready["n1"].path == str(installed)
    assert tool.ready["n1"].is_installed
    [answer] = nodes.run(["n1"], tool.argv("check", "--request", "-"))
    assert answer.completed.stdout == "check --request -\n"
    with pytest.raises(ValueError, match="installed=None"):
        tool.argv("probe", "serve", python="/job/python")
    assert Tool.install(nodes, ["n1"], installed=None).ready["n1"].was_sent


def test_an_installed_command_of_another_version_is_not_used(node):
    program(Path(node["PATH"]) / "clustertools", "#!/bin/sh\necho clustertools, version 0.0.1\n")
    assert Tool.install(PretendedNodes({"n1": node}), ["n1"]).ready["n1"].was_sent


def test_a_node_without_python_is_missing_and_the_others_go_on(node, tmp_path):
    bad = {"HOME": node["HOME"], "PATH": "/nowhere"}
    noisy = pretended_node(tmp_path / "n3")
    program(Path(noisy["PATH"]) / "python3", f'#!/bin/sh\necho "Welcome! {{}}"\n{BARE} "$@"\necho []\n')
    tool = Tool.install(PretendedNodes({"n1": node, "n2": bad, "n3": noisy}), ["n1", "n2", "n3"])
    assert set(tool.nodes) == {"n1", "n3"}
    assert tool.missing["n2"].fate is Fate.COMPLETED
    assert "python3: command not found" in tool.missing["n2"].reason


def test_a_node_that_no_transport_reaches_is_missing_with_its_fate():
    class Away(PretendedNodes):
        def run(self, nodes, argv, **options):
            yield Answer("n1", Fate.UNREACHABLE, reason="no route to host")

    tool = Tool.install(Away({}), ["n1", "n2"])
    assert tool.missing["n1"].fate is Fate.UNREACHABLE
    assert tool.missing["n2"].fate is Fate.LOST
