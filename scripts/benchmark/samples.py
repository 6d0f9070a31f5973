"""Messages as a group of four sends them: the raw limits carry payloads of the same sizes."""

from typing import Final

from common.messages import Ack, Acquire, Grant, Push
from common.records import EMPTY, Record, Version
from common.tokens import make_token
from common.wire import encode

CHANGE_BYTES: Final = 50
"""What a write of the benchmark adds to a file, its newline included."""
TEXT: Final = "x" * (CHANGE_BYTES - 1)
FILE: Final = "notes.txt"
LOCK: Final = "bench"

_REPLICAS: Final = tuple([f"{number:016x}" for number in range(4)])
_CLOCK: Final = {f"client-{number}": 5000 + number for number in range(4)}
_TOKEN: Final = make_token(1, 20_000)
_VERSION: Final = Version(5000, _TOKEN, bytes(16))
_TIME_US: Final = 1_800_000_000_000_000

ACQUIRE_PLAIN: Final = len(encode(Acquire(1, 5, 5000, LOCK, "plain", "exclusive", 10_000, 1, 0, 0, False)))
GRANT_PLAIN: Final = len(encode(Grant(1, 5000, LOCK, _TOKEN, "exclusive", {}, EMPTY, (), (), _TIME_US, False)))
ACQUIRE_FILE: Final = len(encode(Acquire(1, 5, 5000, FILE, "file", "exclusive", 10_000, 0, 0, 0, False)))
GRANT_FILE: Final = len(
    encode(Grant(1, 5000, FILE, _TOKEN, "exclusive", _CLOCK, _VERSION, _REPLICAS, (), _TIME_US, False))
)
PUSH: Final = len(
    encode(
        Push(
            _REPLICAS[0],
            FILE,
            _TOKEN,
            _VERSION,
            (Record(5001, _TOKEN, "client-0:5000", "write", 250_000, TEXT.encode() + b"\n", _CLOCK, _TIME_US),),
            {},
        )
    )
)
ACK: Final = len(encode(Ack(FILE, _TOKEN, 5001)))
