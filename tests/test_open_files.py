"""lockd serves more clients than the usual limit of open files lets it, and says where the system allows only few."""

import os
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from client.zmtp import Connection
from common.messages import FromLockd, Hello, Welcome
from common.wire import decode, encode
from tests.group import WITHIN_S, Child

SOFT, HARD, CLIENTS = 64, 200, 100
LIMITED = (
    "import resource, runpy, sys; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({SOFT}, {HARD})); "
    "runpy.run_module('lockd', run_name='__main__', alter_sys=True)"
)


def test_lockd_opens_as_many_files_as_it_may(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", LIMITED, "--bind", "tcp://127.0.0.1:*", "--data", "lockd"]
    lockd = Child(command, tmp_path, dict(os.environ), tmp_path / "lockd-says", None)
    with ExitStack() as stack:
        stack.callback(lockd.stop)
        endpoint = lockd.ready().split()[1]
        for number in range(CLIENTS):
            incarnation = f"{number:016x}"
            client = stack.enter_context(closing(Connection(endpoint, incarnation.encode(), WITHIN_S)))
            client.send(encode(Hello(1, f"c{number}", incarnation, None, "", 0, "", 0, 0, ())))
            (frame,) = client.receive(int(WITHIN_S * 1e9))
            answer: FromLockd = decode(frame, FromLockd)  # type: ignore[arg-type]
            assert isinstance(answer, Welcome)
        assert f"may have {HARD} files open" in (tmp_path / "lockd" / "lockd.log").read_text()
