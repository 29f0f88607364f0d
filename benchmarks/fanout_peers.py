"""The libraries among the peers: `python fanout_peers.py NAME SSH_CONFIG COUNT TIMES WIDTH`.

Runs one command on node1 to nodeCOUNT, TIMES over kept connections, and prints one JSON line: how many
answered, and the seconds of each time. Each is written as its own documentation does it, with host keys
checked where it can.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COMMAND = "uptime"


def settings(path: str) -> dict[str, str]:
    """The last block of the lab's ssh_config: what holds for all hosts."""
    last = Path(path).read_text().rsplit("Host *\n", 1)[1]
    return dict(line.split(None, 1) for line in last.splitlines() if line.strip())


def addresses(path: str, count: int) -> list[str]:
    lines = Path(path).read_text().split("\n")
    return [line.split()[1] for line in lines if line.strip().startswith("HostName")][:count]


def timed(ask: Callable[[], int], times: int) -> None:
    answered, seconds = 0, []
    for _ in range(times):
        began = time.perf_counter()
        answered = ask()
        seconds.append(round(time.perf_counter() - began, 3))
    print(json.dumps({"answered": answered, "seconds": seconds}))


def ours(path: str, count: int, times: int, width: int) -> None:
    from clustertools.fleet.ssh import SshSettings, SshTransport

    nodes = [f"node{i}" for i in range(1, count + 1)]
    with SshTransport(SshSettings(config=Path(path))) as transport:
        timed(lambda: sum(a.completed is not None for a in transport.run(nodes, (COMMAND,))), times)


def paramiko(path: str, count: int, times: int, width: int) -> None:
    import paramiko as library

    common = settings(path)
    clients: dict[str, library.SSHClient] = {}
    key = library.Ed25519Key.from_private_key_file(common["IdentityFile"])
    # read once and shared: each client reading it anew would be slower still
    known = library.HostKeys(common["UserKnownHostsFile"])

    def one(address: str) -> bool:
        client = clients.get(address)
        if client is None:
            client = clients[address] = library.SSHClient()
            client._host_keys = known
            client.connect(
                address, int(common["Port"]), common["User"], pkey=key, allow_agent=False,
                look_for_keys=False, timeout=10, banner_timeout=10, auth_timeout=10,
            )  # fmt: skip
        _, out, _ = client.exec_command(COMMAND)
        return bool(out.read())

    with ThreadPoolExecutor(width) as pool:
        timed(lambda: sum(pool.map(one, addresses(path, count))), times)
    for client in clients.values():
        client.close()


def fabric(path: str, count: int, times: int, width: int) -> None:
    from fabric import Config, ThreadingGroup

    config = Config(runtime_ssh_path=path)
    group = ThreadingGroup(*(f"node{i}" for i in range(1, count + 1)), config=config)
    timed(lambda: len(group.run(COMMAND, hide=True, in_stream=False)), times)
    group.close()


def asyncssh(path: str, count: int, times: int, width: int) -> None:
    import asyncssh as library

    common = settings(path)
    key = library.read_private_key(common["IdentityFile"])
    known = library.read_known_hosts(common["UserKnownHostsFile"])
    found: dict[str, library.SSHClientConnection] = {}

    async def one(address: str) -> bool:
        if address not in found:
            found[address] = await library.connect(
                address, int(common["Port"]), username=common["User"], client_keys=[key], known_hosts=known,
                config=None, agent_path=None,
            )  # fmt: skip
        return bool((await found[address].run(COMMAND)).stdout)

    async def everybody() -> int:
        return sum(await asyncio.gather(*(one(a) for a in addresses(path, count))))

    with asyncio.Runner() as runner:
        timed(lambda: runner.run(everybody()), times)


def parallel_ssh(path: str, count: int, times: int, width: int) -> None:
    from pssh.clients import ParallelSSHClient

    common = settings(path)
    client = ParallelSSHClient(
        addresses(path, count), user=common["User"], port=int(common["Port"]), pkey=common["IdentityFile"],
        pool_size=width, allow_agent=False, num_retries=1,
    )  # fmt: skip

    def ask() -> int:
        out = client.run_command(COMMAND, stop_on_errors=False)
        client.join()
        return sum(bool(list(host.stdout)) for host in out if host.stdout is not None)

    timed(ask, times)


if __name__ == "__main__":
    name, config, count, times, width = sys.argv[1:6]
    globals()[name](config, int(count), int(times), int(width))
