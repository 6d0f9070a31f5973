"""`python -P -m scripts.benchmark.peers.taker SETTING PORT DIRECTORY LOCK FILE`: one client of one lock.

It says `ready`, reads "START END" (monotonic nanoseconds) from stdin, takes and gives back the lock between them, and
writes to FILE the moments of its grants: signed 64-bit monotonic nanoseconds, comparable between processes.
"""

import sys
import time
from array import array
from pathlib import Path
from typing import Final

from scripts.benchmark.peers.address import Address
from scripts.benchmark.peers.lockers import OPENINGS

_WARM_UP: Final = 5


def take(setting: str, address: Address, lock: str, grants: Path) -> None:
    """Take part in one measurement."""
    acquire, release = OPENINGS[setting](address, lock)
    for _ in range(_WARM_UP):  # statements are prepared, scripts loaded, nodes made
        acquire()
        release()
    print("ready", flush=True)
    start_ns, end_ns = map(int, sys.stdin.readline().split())
    granted_ns = array("q")
    now, note = time.monotonic_ns, granted_ns.append
    time.sleep(max(0.0, (start_ns - now()) / 1e9))
    while now() < end_ns:
        acquire()
        note(now())
        release()
    grants.write_bytes(granted_ns.tobytes())


if __name__ == "__main__":
    take(sys.argv[1], Address(int(sys.argv[2]), Path(sys.argv[3])), sys.argv[4], Path(sys.argv[5]))
