"""One client of one lock, for each system: what `scripts.benchmark.peers.taker` takes and gives back.

An opening connects to the system's server, over TCP on the loopback or a Unix socket, and returns (acquire, release).
Each imports its library itself: a process has one system's client and no other's. Connections end with the process.
"""

import atexit
import functools
import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from scripts.benchmark.peers.address import HOST, Address

Act = Callable[[], object]

TTL_S: Final = 60
"""A lock outlives its client by so many seconds at most, where the system lets one say so."""


def _lockstep(address: Address, lock: str, *, unix: bool = False, sticky: bool = False) -> tuple[Act, Act]:
    from client import LockClient

    client = LockClient(address.lockd if unix else f"tcp://{HOST}:{address.port}")
    atexit.register(client.close)
    taken = client.lock(lock, wait=TTL_S, sticky=sticky)
    return taken.acquire, taken.release


def _redis(address: Address, unix: bool) -> Any:
    from redis import Redis

    if unix:
        return Redis(unix_socket_path=address.redis, single_connection_client=True)
    return Redis(HOST, address.port, single_connection_client=True)


def _redis_lock(address: Address, lock: str, *, sleep_s: float, unix: bool = False) -> tuple[Act, Act]:
    taken = _redis(address, unix).lock(lock, timeout=TTL_S, sleep=sleep_s)
    return taken.acquire, taken.release


def _redis_tokens(address: Address, lock: str, *, unix: bool = False) -> tuple[Act, Act]:
    """A list that holds one token: who pops it has the lock, and pushes it back."""
    redis = _redis(address, unix)
    if redis.set(f"{lock}:made", 1, nx=True):
        redis.rpush(lock, "token")

    def acquire() -> None:
        if redis.blpop([lock], TTL_S) is None:
            raise TimeoutError(f"no token in {TTL_S} s")

    return acquire, functools.partial(redis.rpush, lock, "token")


def _postgres(address: Address, lock: str, *, unix: bool = False) -> tuple[Act, Act]:
    """By psycopg2: psycopg 3, with prepared statements, was slower alone and among many."""
    import psycopg2

    key = zlib.crc32(lock.encode())
    host = address.postgres if unix else HOST
    connection = psycopg2.connect(host=host, port=address.port, user="bench", dbname="postgres")
    connection.autocommit = True
    execute = connection.cursor().execute  # the cursor keeps the connection
    return (
        functools.partial(execute, f"SELECT pg_advisory_lock({key})"),
        functools.partial(execute, f"SELECT pg_advisory_unlock({key})"),
    )


def _etcd(address: Address, lock: str) -> tuple[Act, Act]:
    """By etcd's own lock service (v3lock), called by gRPC: no Python client of etcd wraps it.

    The recipe of aetcd, the one such client that is kept up, asks for a lease each time, and handed on less often.
    Its messages are few and small enough to write by hand: field numbers are those of etcd's v3lock.proto, rpc.proto.
    """
    import grpc

    channel = grpc.insecure_channel(f"{HOST}:{address.port}")
    granted = channel.unary_unary("/etcdserverpb.Lease/LeaseGrant")(_field(1, TTL_S))
    ask = channel.unary_unary("/v3lockpb.Lock/Lock")
    give_back = channel.unary_unary("/v3lockpb.Lock/Unlock")
    request = _field(1, lock.encode()) + _field(2, dict(_fields(granted))[2])
    keys: list[int | bytes] = []

    def acquire() -> None:
        keys.append(dict(_fields(ask(request)))[2])

    return acquire, lambda: give_back(_field(1, keys.pop()))


def _kazoo(address: Address, lock: str) -> tuple[Act, Act]:
    from kazoo.client import KazooClient

    client = KazooClient(f"{HOST}:{address.port}")
    client.start()
    atexit.register(client.stop)
    taken = client.Lock(f"/{lock}", str(os.getpid()))
    return taken.acquire, taken.release


OPENINGS: Final[dict[str, Callable[[Address, str], tuple[Act, Act]]]] = {
    "lockstep": _lockstep,
    "lockstep-unix": functools.partial(_lockstep, unix=True),
    "lockstep-sticky": functools.partial(_lockstep, sticky=True),
    "redis-lock-100-ms": functools.partial(_redis_lock, sleep_s=0.1),
    "redis-lock-5-ms": functools.partial(_redis_lock, sleep_s=0.005),
    "redis-lock-1-ms": functools.partial(_redis_lock, sleep_s=0.001),
    "redis-lock-1-ms-unix": functools.partial(_redis_lock, sleep_s=0.001, unix=True),
    "redis-blpop": _redis_tokens,
    "redis-blpop-unix": functools.partial(_redis_tokens, unix=True),
    "postgres": _postgres,
    "postgres-unix": functools.partial(_postgres, unix=True),
    "etcd": _etcd,
    "zookeeper-kazoo": _kazoo,
}
"""(address of the server, name of the lock) to (acquire, release), by setting."""


def _field(number: int, value: int | bytes) -> bytes:
    """Return one field of a Protocol Buffers message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give (number, value) of each field of a message that has only varints and bytes at its top."""
    octets = iter(message)
    for first in octets:
        tag = _read_varint(itertools.chain((first,), octets))
        if tag & 7 == 0:
            yield tag >> 3, _read_varint(octets)
        else:
            yield tag >> 3, bytes(itertools.islice(octets, _read_varint(octets)))


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def _read_varint(octets: Iterator[int]) -> int:
    value = 0
    for place, octet in enumerate(octets):
        value |= (octet & 127) << 7 * place
        if octet < 128:
            break
    return value
