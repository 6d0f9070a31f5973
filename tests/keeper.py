"""A process that keeps a guardian as `client lock` does, but holds no lock; it tells what the guardian says, as JSON.

Usage: python -P -m tests.keeper LOCK DEADLINE_MS KILL_GRACE_MS renew|once|shorten COMMAND...
"""

import json
import os
import select
import sys
import time

from client.guardian import Frame, Guardian, Kind


def _tell(name: str, first: int = 0, second: int = 0) -> None:
    print(json.dumps([name, first, second]), flush=True)


def main() -> None:
    """Keep it until it ends."""
    lock, deadline_ms, kill_grace_ms, renew, *command = sys.argv[1:]

    def deadline_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(deadline_ms) * 1_000_000

    guardian = Guardian(command, int(kill_grace_ms) * 1_000_000)
    _tell("GUARDIAN", guardian.process)
    guardian.say(Frame(Kind.START, deadline_ns(), 0, b"1.42\0" + os.fsencode(lock)))
    while True:
        select.select([guardian], [], [], 0.02)
        guardian.look_after()
        if renew == "renew":
            guardian.say(Frame(Kind.RENEW, deadline_ns()))
        try:
            frame = guardian.hear()
        except EOFError:
            guardian.replace()
            _tell("REPLACED")
            break
        if frame is not None:
            if renew == "shorten" and frame.kind is Kind.STARTED:
                guardian.say(Frame(Kind.RENEW, deadline_ns() - int(deadline_ms) * 1_000_000))
            _tell(frame.kind.name, frame.first, frame.second)
            if frame.kind in (Kind.EXITED, Kind.FAILED):
                break
    guardian.close()


if __name__ == "__main__":
    main()
