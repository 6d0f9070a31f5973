"""What an operator asks of lockd: a session without a replica, one request, its answer."""

import os
from typing import Final, Self, TypeVar

import zmq

from client.reach import reach
from common.errors import CommandError, refused
from common.messages import (
    Break,
    Broken,
    CallBack,
    CalledBack,
    FromLockd,
    GiveUp,
    Goodbye,
    Hello,
    Inspect,
    Inspection,
    InSync,
    Refused,
    ToLockd,
    Welcome,
)
from common.printing import printable
from common.sockets import caller
from common.wire import WireError, decode, encode

_ANSWER_MS: Final = 10_000
_HELLO, _REQUEST = 1, 2

Answer = TypeVar("Answer")


def give_up(lockd: str, name: str | None, file: str, hosts: list[str]) -> int:
    """Accept the loss of what these absent hosts alone have of a file; return how many replicas go on.

    Raises CommandError where lockd refuses, or does not answer.
    """
    with Operator(lockd, name) as operator:
        request = GiveUp(operator.epoch, operator.session, _REQUEST, file, tuple(sorted(set(hosts))))
        try:
            return len(operator.ask(request, InSync).in_sync)
        except KeyboardInterrupt:
            line = f"give-up of {file} was ended by SIGINT: it may have happened; look into lockd.log, or ask again"
            raise CommandError(130, line) from None


def break_lock(lockd: str, name: str | None, lock: str, token: int) -> Broken:
    """Take a lock away from who holds it under `token`; return from whom. Raises CommandError."""
    with Operator(lockd, name) as operator:
        request = Break(operator.epoch, operator.session, _REQUEST, lock, token)
        try:
            return operator.ask(request, Broken)
        except KeyboardInterrupt:
            line = f"break of {printable(lock)} was ended by SIGINT: it may have happened; see client locks"
            raise CommandError(130, line) from None


def call_back(lockd: str, name: str | None, lock: str) -> CalledBack:
    """Ask the holders of a lock to give it back unless they use it; return who they are. Raises CommandError."""
    with Operator(lockd, name) as operator:
        return operator.ask(CallBack(operator.epoch, operator.session, _REQUEST, lock), CalledBack)


def inspect(lockd: str, lock: str = "") -> Inspection:
    """Return what lockd knows of the group, or of one lock; it needs no session. Raises CommandError."""
    with Caller(lockd) as line:
        return line.ask(Inspect(_REQUEST, lock), Inspection)


class Caller:
    """A connection with lockd, for one request after another. A context: its end is the connection's."""

    def __init__(self, lockd: str) -> None:
        """Connect. Raises CommandError."""
        reach(lockd)
        self._lockd, self._incarnation = lockd, os.urandom(8).hex()
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._socket = caller(self._context, self._incarnation.encode())
        self._socket.set(zmq.RCVTIMEO, _ANSWER_MS)
        self._socket.connect(lockd)

    def ask(self, request: ToLockd, expected: type[Answer]) -> Answer:
        """Return lockd's answer. Raises CommandError."""
        self._socket.send(encode(request))
        while True:
            try:
                answer: FromLockd = decode(self._socket.recv(), FromLockd)  # type: ignore[arg-type]
            except zmq.Again:
                raise refused(f"lockd at {self._lockd} does not answer; start it, or set --lockd") from None
            except WireError as error:
                raise refused(f"what listens at {self._lockd} is no lockd of this version: {error}") from None
            if isinstance(answer, Refused):
                raise refused(f"lockd refused: {answer.reason}")
            if isinstance(answer, expected):
                return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=500)


class Operator(Caller):
    """A session with lockd, without a replica. A context: its end is the session's."""

    def __init__(self, lockd: str, name: str | None) -> None:
        """Open the session. Raises CommandError."""
        super().__init__(lockd)
        name = name or f"operator-{self._incarnation}"
        try:
            welcome = self.ask(Hello(_HELLO, name, self._incarnation, None, "", 0, "", 0, 0, ()), Welcome)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.epoch, self.session = welcome.epoch, welcome.session

    def __exit__(self, *_: object) -> None:
        self._socket.send(encode(Goodbye(self.epoch, self.session)))
        super().__exit__()
