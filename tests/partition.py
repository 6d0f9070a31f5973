"""A way to lockd that can be cut and mended while nothing is told of it, as where packets are lost."""

import select
import threading
from typing import Self

from scripts.faults.proxy import Proxy


class Partition:
    """A proxy with a thread of its own. A context."""

    def __init__(self, lockd: str) -> None:
        """Open the way to lockd."""
        self._proxy, self._one = Proxy(), threading.Lock()
        self._proxy.lead_to(lockd)
        self.endpoint = self._proxy.open("client")
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name="partition")

    def __enter__(self) -> Self:
        """Begin to pass on."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, with all connections."""
        self._is_over = True
        self._thread.join()
        self._proxy.close()

    def cut(self) -> None:
        """Pass nothing on any more, either way; connections stay open."""
        with self._one:
            self._proxy.block("client", up=True, blocked=True)
            self._proxy.block("client", up=False, blocked=True)

    def _work(self) -> None:
        wait_s = 0.0
        while not self._is_over:
            select.select([self._proxy], [], [], min(wait_s, 0.02))
            with self._one:
                wait_s = self._proxy.work()
