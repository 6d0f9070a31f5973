"""Finding out early that nobody listens at lockd's address."""

import socket
import time
from collections.abc import Callable
from typing import Final

from common.errors import refused
from common.moments import SteadyClock

REACH_S: Final = 2.0
"""How long a lockd that refuses connections is tried before the command gives up, in seconds."""
_PAUSE_S: Final = 0.05
"""It is tried so often."""


def reach(lockd: str, given_up: Callable[[], bool] = lambda: False) -> None:
    """Return once somebody listens there, or early where `given_up()`. Raises CommandError with the system's reason."""
    if not lockd.startswith("tcp://"):
        return
    host, _, port = lockd.removeprefix("tcp://").rpartition(":")
    clock = SteadyClock()
    deadline = clock.now_ns() + int(REACH_S * 1e9)
    while not given_up():
        try:
            socket.create_connection((host, int(port)), timeout=REACH_S).close()
        except OSError as error:
            if clock.now_ns() > deadline:
                reason = error.strerror or str(error)
                raise refused(f"lockd at {lockd} cannot be reached ({reason}); start lockd, or set --lockd") from None
            time.sleep(_PAUSE_S)
        else:
            return
