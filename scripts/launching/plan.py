"""What a run is asked to do, checked before any process starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from client.workload import parse_delay, read_lines
from common.errors import wrong_use
from common.names import file_name_problem

CLIENTS_MAX: Final = 256
"""Each client is a process with a connection to every other one."""
OPS_MAX: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """A run as it was asked for; `delay` and `lines` as they were written."""

    clients: int = 4
    ops: int = 40
    files: tuple[str, ...] = ("notes.txt",)
    delay: str = "0.0..0.2"
    lines: str | None = None
    seed: str | None = None
    durability: Literal["disk", "memory"] = "disk"

    def shares(self) -> dict[str, int]:
        """Return how many ops each client does, by its name: as equal as can be, the first ones one more."""
        each, more = divmod(self.ops, self.clients)
        return {f"client-{number}": each + (number < more) for number in range(self.clients)}


DEFAULT: Final = Plan()


def parse_count(option: str, text: str, what: str, count_max: int) -> int:
    """Read a count from 1 to `count_max` of `what`, such as "client". Raises CommandError."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise wrong_use(f"{option} {text}: a number of {what}s is wanted, like 4")
    if text.startswith("-") or not int(digits[:18]):
        raise wrong_use(f"{option} {text}: at least 1 {what} is needed")
    if len(digits) > 18 or int(digits) > count_max:
        raise wrong_use(f"{option} {text}: at most {count_max} {what}s can be had in one run")
    return int(digits)


def parse_clients(text: str) -> int:
    """Read the number of clients. Raises CommandError."""
    return parse_count("--clients", text, "client", CLIENTS_MAX)


def parse_ops(text: str) -> int:
    """Read the number of ops of all clients together. Raises CommandError."""
    return parse_count("--ops", text, "op", OPS_MAX)


def check_files(names: Sequence[str]) -> None:
    """Check that one replica can hold all the files. Raises CommandError."""
    for name in names:
        if problem := file_name_problem(name):
            raise wrong_use(f"--file {name!r}: {problem}")
    for name in names:
        for other in names:
            if other.startswith(name + "/"):
                raise wrong_use(f"--file {name}: it is a folder of --file {other}; it cannot be a file as well")


def check_lines(path: str) -> None:
    """Check that every client can take its texts from the file. Raises CommandError."""
    if not path:
        raise wrong_use("--lines '': a path cannot be empty; name a text file")
    lines = Path(path)
    if lines.exists() and not lines.is_file() and not lines.is_dir():
        raise wrong_use(f"--lines {path}: it is no plain file, and each client has to read it; save it to one")
    read_lines(lines)


def check_seed(seed: str) -> None:
    """Check that the seed can be kept. Raises CommandError."""
    try:
        seed.encode()
    except UnicodeEncodeError:
        raise wrong_use(f"--seed {seed!r}: it is not valid UTF-8") from None


def check_delay(delay: str) -> None:
    """Check the range of pauses. Raises CommandError."""
    parse_delay(delay)


def parse_durability(text: str) -> Literal["disk", "memory"]:
    """Read a durability. Raises CommandError."""
    match text:
        case "disk" | "memory":
            return text
        case _:
            raise wrong_use(f"--durability {text}: it is disk or memory")
