"""Where peers listen: a free port of the loopback."""

import socket
from typing import Final

HOST: Final = "127.0.0.1"


def free_port() -> int:
    """Return a TCP port that nobody listens on now; not every peer takes port 0 and tells what it got."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
