"""The peers' servers: where they are installed, and each as a process of our own with the durability it ships with.

None of them is a system's own server, none has data from before, and all listen on the loopback alone.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.benchmark.peers.address import HOST, Address, free_port
from scripts.benchmark.processes import PATIENCE_S, Child, NotMeasured, Stage

_JAR: Final = Path("/usr/share/java/zookeeper.jar")
_PAUSE_S: Final = 0.05
_ANSWER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A lock service that may be installed here."""

    package: str
    """Debian's package of its server."""
    find: Callable[[], Path | None]
    """Return its program, or the directory of its programs."""
    start: Callable[[Stage, Path, Address], None]
    """Start what was found at an address, and wait until it answers. Raises NotMeasured."""

    def serve(self, place: Stage, program: Path) -> Address:
        """Start what `find` found; return where it serves. Raises NotMeasured."""
        address = Address(free_port(), place.directory)
        self.start(place, program, address)
        return address


def _find_redis() -> Path | None:
    return _in_path("redis-server")


def _start_redis(place: Stage, program: Path, address: Address) -> None:
    # Without a file it is configured as its own redis.conf does: snapshots now and then, no append-only file.
    data = place.data("redis")
    options = ("--bind", HOST, "--port", str(address.port), "--unixsocket", address.redis, "--dir", str(data))
    _await(place.serve("redis", [str(program), *options]), address.port, b"PING\r\n", b"+PONG")


def _find_postgres() -> Path | None:
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    newest = max(versions, key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)], default=None)
    program = _in_path("postgres")
    return newest or (program.parent if program else None)


def _start_postgres(place: Stage, programs: Path, address: Address) -> None:
    # It refuses to run as root, and then runs as the user that its package made.
    user = _unprivileged() if os.geteuid() == 0 else None
    data = place.data("postgres", user)
    options = ["--auth=trust", "--username=bench", "--encoding=UTF8", "--no-locale", "--no-sync"]
    place.serve("initdb", [str(programs / "initdb"), f"--pgdata={data}", *options], user=user).finish()
    settings = (f"listen_addresses={HOST}", f"port={address.port}", f"unix_socket_directories={address.postgres}")
    server = place.serve(
        "postgres",
        [str(programs / "postgres"), "-D", str(data), *[f"--{setting}" for setting in settings]],
        user=user,
        ends_on=signal.SIGINT,  # on SIGTERM it waits for its clients
    )
    # A start-up message of protocol 3.0; R is the answer about authentication, E comes while it still starts.
    message = b"\x00\x03\x00\x00user\x00bench\x00database\x00postgres\x00\x00"
    _await(server, address.port, (len(message) + 4).to_bytes(4) + message, b"R")


def _find_etcd() -> Path | None:
    return _in_path("etcd")


def _start_etcd(place: Stage, program: Path, address: Address) -> None:
    client, peer = f"http://{HOST}:{address.port}", f"http://{HOST}:{free_port()}"
    options = [
        "--name=bench",
        f"--data-dir={place.data('etcd')}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=bench={peer}",
    ]
    _await(
        place.serve("etcd", [str(program), *options]), address.port, b"GET /health HTTP/1.0\r\n\r\n", b"HTTP/1.0 200"
    )


def _find_zookeeper() -> Path | None:
    return _in_path("java") if _JAR.exists() else None


def _start_zookeeper(place: Stage, program: Path, address: Address) -> None:
    data = place.data("zookeeper")
    port = f"clientPort={address.port}\nclientPortAddress={HOST}\n"
    (data / "zoo.cfg").write_text(f"tickTime=2000\ndataDir={data}\n{port}admin.enableServer=false\n")
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    # UsePerfData would leave a file in the system's temporary directory.
    command = [str(program), "-XX:-UsePerfData", "-cp", f"{data}:{_JAR}", main, str(data / "zoo.cfg")]
    _await(place.serve("zookeeper", command), address.port, b"srvr", b"Zookeeper version")


PEERS: Final = {
    "redis": Peer("redis-server", _find_redis, _start_redis),
    "postgres": Peer("postgresql", _find_postgres, _start_postgres),
    "etcd": Peer("etcd-server", _find_etcd, _start_etcd),
    "zookeeper": Peer("zookeeper", _find_zookeeper, _start_zookeeper),
}


def _in_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _unprivileged() -> str:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def _await(server: Child, port: int, request: bytes, answer: bytes) -> None:
    """Ask until the server gives the answer. Raises NotMeasured."""
    deadline = time.monotonic() + PATIENCE_S
    while not _answers(port, request, answer):
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise NotMeasured(f"{server.out.stem} never answered: {server.last_words()}")
        time.sleep(_PAUSE_S)


def _answers(port: int, request: bytes, answer: bytes) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=_ANSWER_S) as connection:
            connection.settimeout(_ANSWER_S)
            connection.sendall(request)
            heard = b""
            while len(heard) < len(answer) and (more := connection.recv(4096)):
                heard += more
    except OSError:
        return False
    return heard.startswith(answer)
