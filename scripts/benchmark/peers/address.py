"""Where servers listen: a free port of the loopback, and a Unix socket below a directory of this measurement."""

import socket
from pathlib import Path
from typing import Final, NamedTuple

HOST: Final = "127.0.0.1"


class Address(NamedTuple):
    """Where a server listens: a TCP port of HOST, and a directory that has its Unix socket, if it has one."""

    port: int
    directory: Path

    @property
    def lockd(self) -> str:
        """Return lockd's endpoint that is a Unix socket."""
        return f"ipc://{self.directory / 'lockd.socket'}"

    @property
    def redis(self) -> str:
        """Return Redis' Unix socket."""
        return str(self.directory / "redis.data" / "socket")

    @property
    def postgres(self) -> str:
        """Return the directory of PostgreSQL's Unix socket."""
        return str(self.directory / "postgres.data")


def free_port() -> int:
    """Return a TCP port that nobody listens on now; not every peer takes port 0 and tells what it got."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
