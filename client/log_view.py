"""How `client log` shows a line: as it stands in its log, coloured on a terminal, or as JSON.

A log may come from anywhere. So whatever is not printable, a terminal's control sequences above all, is shown as the
escape that JSON has for it.
"""

import json
import re
from typing import Final

from client.log_filters import values_of, verb_of
from client.merge import Head
from common.printing import printable

_COLOURS: Final = (36, 33, 35, 32, 34, 31, 96, 93, 95, 92, 94, 91)
"""SGR codes of the terminal's own colours, those far from each other first; the 13th client begins anew."""
_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBERS: Final = ("seq", "bytes", "of")


class Colours:
    """A colour for each client, in the order in which they are first seen."""

    def __init__(self) -> None:
        """Begin without a client."""
        self._by_client: dict[str, int] = {}

    def paint(self, line: str) -> str:
        """Return a printable line with its host in its client's colour and its clock dim."""
        time, host, clock, rest = line.split(" ", 3)
        client = host.partition("#")[0]
        colour = self._by_client.setdefault(client, _COLOURS[len(self._by_client) % len(_COLOURS)])
        return f"{time} \x1b[{colour}m{host}{_PLAIN} {_DIM}{clock}{_PLAIN} {rest}"


def as_text(head: Head, colours: Colours | None) -> bytes:
    """Return a line as it stands in the log, with its newline."""
    line = printable(head.line.decode(errors="backslashreplace"))
    return f"{line if colours is None else colours.paint(line)}\n".encode()


def event_values(head: Head) -> dict[str, object]:
    """Return a line as a JSON object has it. Raises ValueError where it does not read."""
    told: dict[str, object] = {
        "time": head.time.decode(),
        "host": head.host,
        "clock": head.clock,
        "verb": verb_of(head),
    }
    for key, value in values_of(head).items():
        told.setdefault(key, int(value) if key in _NUMBERS and _NUMBER.fullmatch(value) else value)
    return told


def as_json(values: dict[str, object]) -> bytes:
    """Return a JSON object on a line of its own."""
    return json.dumps(values).encode() + b"\n"
