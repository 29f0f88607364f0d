"""The endpoint probe against real sockets, one of which is silent."""

from __future__ import annotations

import json
import socket
import socketserver
import subprocess
import sys
import threading
import time

import pytest

HTTP2_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
REPLIES = {
    "docker": b"HTTP/1.0 200 OK\r\n\r\nOK",
    "broken": b"HTTP/1.0 500 Internal Server Error\r\n\r\n",
    "grpc": HTTP2_SETTINGS,
}


@pytest.fixture
def served(tmp_path):
    """Unix sockets that reply as named; `silent` accepts and says nothing."""
    servers = []

    def start(name, reply):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.recv(4096)
                if reply:
                    self.request.sendall(reply)
                else:
                    time.sleep(2)

        server = socketserver.ThreadingUnixStreamServer(str(tmp_path / name), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)

    for name, reply in {**REPLIES, "silent": b""}.items():
        start(name, reply)
    yield tmp_path
    for server in servers:
        server.shutdown()


def ask(*what, deadline="0.4"):
    done = subprocess.run(
        [sys.executable, "-I", "-m", "clustertools.sources.endpoints", "--deadline", deadline, *what],
        capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    return {a["what"]: a["error"] for a in map(json.loads, done.stdout.splitlines())}


def test_real_sockets(served):
    with socket.create_server(("127.0.0.1", 0)) as open_port:
        port = open_port.getsockname()[1]
        told = ask(
            f"docker:{served}/docker", f"grpc:{served}/grpc", f"docker:{served}/broken",
            f"grpc:{served}/docker", f"docker:{served}/silent", f"docker:{served}/none",
            f"tcp:localhost:{port}", "tcp:127.0.0.1:1",
            "dns:127.0.0.1", "tcp:garbage", "what:is:this",
        )  # fmt: skip
    good = {f"docker:{served}/docker", f"grpc:{served}/grpc", f"tcp:localhost:{port}"}
    assert {what for what, error in told.items() if not error} == good
    assert "500" in told[f"docker:{served}/broken"]
    assert "No such file" in told[f"docker:{served}/none"]
    assert "refused" in told["tcp:127.0.0.1:1"]
    assert len(told) == 11


def test_a_name_server_that_refuses_is_one_that_answers():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind(("127.0.0.1", 53))
        except OSError:
            # without root, or where one runs already
            return
        server.settimeout(5)

        def reply():
            question, peer = server.recvfrom(512)
            server.sendto(question[:2] + b"\x81\x05" + question[4:], peer)

        threading.Thread(target=reply, daemon=True).start()
        assert ask("dns:127.0.0.1", deadline="2") == {"dns:127.0.0.1": ""}
