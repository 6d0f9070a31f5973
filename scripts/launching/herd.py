"""The processes of a run as one thread has them: it waits for whatever comes first, a line, an end or a signal."""

import os
import selectors
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from common.stopping import Stop
from scripts.launching.processes import Child


@dataclass(frozen=True, slots=True)
class Ears:
    """Whom to tell: of a process's line, of its end once its last line was told, of a signal to us."""

    said: Callable[[Child, bytes], None]
    ended: Callable[[Child], None]
    called: Callable[[int], None]


class HasDescriptor(Protocol):
    """Something to poll."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Herd:
    """Processes under way; `up` has those that have not ended, by name."""

    def __init__(self, ears: Ears) -> None:
        """Catch the signals that ask us to end, and the one that tells of a child's end."""
        self._ears = ears
        self.up: dict[str, Child] = {}
        self._children: list[Child] = []
        self._a_child_ended = False
        self._signals = Stop()
        signal.signal(signal.SIGCHLD, _note)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _note)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals.descriptor, selectors.EVENT_READ)

    def start(self, child: Child) -> None:
        """Take a process in that was started just now."""
        self._children.append(child)
        self.up[child.name] = child
        self._selector.register(child, selectors.EVENT_READ)

    def watch(self, source: HasDescriptor) -> None:
        """Let `step` return when this becomes readable."""
        self._selector.register(source, selectors.EVENT_READ)

    def step(self, seconds: float) -> None:
        """Wait until something happens, for `seconds` at most, and tell of it."""
        for key, _ in self._selector.select(max(0.0, seconds)):
            if isinstance(key.fileobj, Child):
                self._hear(key.fileobj)
            elif key.fileobj == self._signals.descriptor:
                self._take_signals()
        if self._a_child_ended:
            self._a_child_ended = False
            for child in list(self.up.values()):
                if child.ended:
                    self._hear(child)
                    self._selector.unregister(child)
                    del self.up[child.name]
                    self._children.remove(child)
                    child.close()
                    self._ears.ended(child)

    def close(self) -> None:
        """Kill and reap whatever is left, and give the signals back."""
        for child in self._children:
            child.close()
        self._selector.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self._signals.close()

    def _hear(self, child: Child) -> None:
        for line in child.lines():
            self._ears.said(child, line)

    def _take_signals(self) -> None:
        for number in os.read(self._signals.descriptor, 4096):
            if number == signal.SIGCHLD:
                self._a_child_ended = True
            else:
                self._ears.called(number)


def _note(number: int, frame: FrameType | None) -> None:
    """Have the signal's number written to the wake-up descriptor, which needs a handler in Python."""
