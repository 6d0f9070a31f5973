"""A network of one's own for each process: namespaces, joined by a bridge that leads nowhere else. Needs root.

A way is cut at its receiver: a rule drops whatever comes from the sender, without a word, as a broken network does.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Final

from scripts.faults.proxy import Proxy
from scripts.faults.schedule import LOCKD, Kind

_NET: Final = "10.77.0"
_PORT: Final = 7461
_PREFIX: Final = "lockstep"
_CLIENTS_MAX: Final = 200


class Namespaces:
    """Each process in a namespace of its own, all on one bridge in another one."""

    kinds: frozenset[Kind] = frozenset(("partition", "one-way"))
    peers = True
    proxy: Proxy | None = None

    def __init__(self, clients: list[str]) -> None:
        """Make them. Raises OSError."""
        if len(clients) > _CLIENTS_MAX:
            raise OSError(f"a network has room for {_CLIENTS_MAX} clients")
        self._hub = f"{_PREFIX}-{os.getpid()}"
        self._numbers = {name: number for number, name in enumerate((LOCKD, *clients), 1)}
        self._cuts: Counter[tuple[str, str]] = Counter()
        self.bind = self._endpoint = f"tcp://{_NET}.1:{_PORT}"
        _remove_stale()
        try:
            self._make()
        except OSError:
            self.close()
            raise

    def _make(self) -> None:
        _ip(f"netns add {self._hub}")
        _ip(f"-n {self._hub} link add hub type bridge")
        _ip(f"-n {self._hub} link set hub up")
        for name, number in self._numbers.items():
            space = self._space(name)
            _ip(f"netns add {space}")
            _ip(f"-n {self._hub} link add port{number} type veth peer name eth0 netns {space}")
            _ip(f"-n {self._hub} link set port{number} master hub up")
            _ip(f"-n {space} address add {_NET}.{number}/24 dev eth0")
            _ip(f"-n {space} link set eth0 up")
            _ip(f"-n {space} link set lo up")

    def inside(self, name: str) -> list[str]:
        """Return the command that runs a command at the place of this process."""
        return ["ip", "netns", "exec", self._space(name)]

    def lockd_at(self, endpoint: str) -> None:
        """Take in where lockd listens."""

    def endpoint(self, client: str) -> str:
        """Return where this client finds lockd."""
        return self._endpoint

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing more pass from the one to the other."""
        self._cuts[sender, receiver] += 1
        if self._cuts[sender, receiver] == 1:
            self._rule("add", sender, receiver)

    def mend(self, sender: str, receiver: str) -> None:
        """Take one cut back."""
        self._cuts[sender, receiver] -= 1
        if self._cuts[sender, receiver] == 0:
            self._rule("del", sender, receiver)

    def delay(self, client: str, seconds: float) -> None:
        """Never asked for: such faults are drawn only where a proxy stands in the way (scripts.faults.network)."""
        raise NotImplementedError("a way between namespaces is open or cut; only a proxy can do more")

    def reset(self, client: str) -> None:
        """Never asked for: such faults are drawn only where a proxy stands in the way (scripts.faults.network)."""
        raise NotImplementedError("a way between namespaces is open or cut; only a proxy can do more")

    def close(self) -> None:
        """Remove the namespaces, and with them all that is in them."""
        for space in (*map(self._space, self._numbers), self._hub):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)

    def _rule(self, what: str, sender: str, receiver: str) -> None:
        number = self._numbers[sender]
        _ip(f"-n {self._space(receiver)} rule {what} from {_NET}.{number} pref {number} blackhole")

    def _space(self, name: str) -> str:
        return f"{self._hub}-{name}"


def are_here() -> bool:
    """Tell whether namespaces can be had: not without rights, nor without the command `ip`."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"{_PREFIX}-{os.getpid()}-probe"
    try:
        _ip(f"netns add {probe}")
        _ip(f"-n {probe} link add eth0 type veth peer name eth1")
        _ip(f"-n {probe} rule add from {_NET}.1 blackhole")
    except OSError:
        return False
    finally:
        subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return True


def _remove_stale() -> None:
    """Remove what was left by a run that was killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        space = line.split(" ")[0]
        match = re.match(rf"{_PREFIX}-([0-9]+)(-|$)", space)
        if match and not Path(f"/proc/{match[1]}").exists():
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)


def _ip(arguments: str) -> None:
    """Run `ip`. A Ctrl-C does not reach it. Raises OSError with what it said."""
    done = subprocess.run(
        ["ip", *arguments.split()], capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode:
        raise OSError(f"ip {arguments}: {done.stderr.strip()}")
