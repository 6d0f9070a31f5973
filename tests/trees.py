"""Trees of processes that do not want to end, and how a test finds those that are left of one.

All of a tree carry the lock's name in their environment, whatever they did to leave their parents.
"""

import os
from pathlib import Path

STUBBORN = """
trap '' TERM INT HUP
sh -c 'setsid sh -c "trap \\"\\" TERM; echo 1 >> here; while :; do sleep 60; done" &'
sh -c 'trap "" TERM; echo 2 >> here; kill -STOP $$; while :; do sleep 60; done' &
echo 3 >> here
while :; do sleep 60; done
"""
"""For sh: ignores SIGTERM, has a child that forked twice and left its session, and a stopped one. Writes 3 lines."""

FLEEING = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
open('here', 'a').write('1\\n')
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
"""
"""For Python: two that live on by having a child and ending, again and again, each time in a session of its own."""


def left_of(lock: str) -> list[int]:
    """Return the processes whose environment says that they run under this lock, but for zombies."""
    mark = b"LOCKSTEP_LOCK=" + os.fsencode(lock)
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and mark in _environment(name)]


def _environment(process: str) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
