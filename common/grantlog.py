"""The lines of lockd's grants.log, written and read: logfmt, one line per grant, release and expiry."""

from typing import Final, Literal

from common.eventlog import format_time, format_value, parse_pairs, parse_time
from common.tokens import format_token, parse_token
from common.values import Value

GrantEvent = Literal["grant", "release", "expiry"]
_EVENTS: Final[tuple[GrantEvent, ...]] = ("grant", "release", "expiry")


class GrantLine(Value, frozen=True):
    """One line.

    `more` holds the numbers that only some events have: waited_ms and queue of a grant, held_ms of the others.
    """

    time_us: int
    event: GrantEvent
    lock: str
    mode: str
    token: int
    client: str
    more: tuple[tuple[str, str], ...] = ()

    @property
    def waited_us(self) -> int:
        """Return how long a grant's request had waited, in microseconds; 0 where the line does not say, or not well."""
        try:
            return max(0, round(float(dict(self.more).get("waited_ms", "0")) * 1000))
        except (ValueError, OverflowError):
            return 0


def format_grant(line: GrantLine) -> str:
    """Write one line, without its newline."""
    text = (
        f"time={format_time(line.time_us)} event={line.event} lock={format_value(line.lock)} "
        f"mode={line.mode} token={format_token(line.token)} client={line.client}"
    )
    for key, value in line.more:
        text += f" {key}={value}"
    return text


def parse_grant(text: str) -> GrantLine:
    """Read one line, without its newline. Raises ValueError, in words."""
    values = parse_pairs(" " + text)
    try:
        time, event, lock, mode, token, client = (
            values.pop(key) for key in ("time", "event", "lock", "mode", "token", "client")
        )
    except KeyError as error:
        raise ValueError(f"the line has no {error.args[0]}") from error
    for known in _EVENTS:
        if event == known:
            return GrantLine(parse_time(time), known, lock, mode, parse_token(token), client, tuple(values.items()))
    raise ValueError(f"the event {event!r} is unknown")
