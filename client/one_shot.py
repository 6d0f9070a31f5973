"""A one-shot op: done by the client that is up on the directory, or by ourselves, and what is known of it at its end.

Loads ZeroMQ and msgspec only where no client is up.
"""

import signal
import socket
import time
from contextlib import closing
from typing import Final

from client.control import Call, Order, Report, not_done
from client.directory import PATIENCE_S, connect, take
from client.settings import Settings
from common.errors import EXIT_REFUSED, EXIT_UNKNOWN, CommandError, refused
from common.stopping import Stop

_PAUSE_S: Final = 0.01
"""How often it is looked whether the directory is free, or the client that has it answers."""


def carry_out(settings: Settings, order: Order) -> Report:
    """Have an op done and return its report, which is ok. Raises CommandError where it failed or is unknown."""
    with closing(Stop()) as stop:
        try:
            report = _report(settings, order, stop)
        except CommandError as error:
            if not order.retry or error.code != EXIT_REFUSED:
                raise
            report = not_done(order.retry, str(error))
        by_signal = stop.caught
    what, reason = f"{order.verb} {order.file}", report.reason
    if by_signal is not None and not reason:
        reason = f"ended by {signal.Signals(by_signal).name}"
    if report.outcome == "ok":
        return report
    if report.outcome == "failed":
        if by_signal is not None:
            reason = f"ended by {signal.Signals(by_signal).name}"
        code, line = EXIT_REFUSED, f"{what} failed, nothing happened: {reason}"
    elif report.id:
        again = f"again with --retry {report.id} it is done once"
        code, line = EXIT_UNKNOWN, f"{what} ({report.id}) ended unknown, it may have happened: {reason}; {again}"
    else:
        look = f"look into client snapshots {order.file} --data {settings.data}"
        code, line = EXIT_UNKNOWN, f"{what} ended unknown, it may have happened: {reason}; {look}"
    raise CommandError(code if by_signal is None else 128 + by_signal, line)


def _report(settings: Settings, order: Order, stop: Stop) -> Report:
    deadline = time.monotonic() + PATIENCE_S
    while stop.caught is None:
        connection = connect(settings.data)
        if connection is not None:
            with connection:
                return _ask(settings, order, connection, stop)
        named = settings.name is not None
        lock = take(settings.data, "one-shot", lambda: stop.caught is not None, named=named)
        if lock is not None:
            from client.running import one_shot

            return one_shot(settings, order, lock, stop)
        if time.monotonic() > deadline:
            raise refused(f"the client that is up on {settings.data} does not answer; look into its client.log")
        time.sleep(_PAUSE_S)
    return not_done(order.retry, "")


def _ask(settings: Settings, order: Order, connection: socket.socket, stop: Stop) -> Report:
    """Have the client that is up do it; where it gives no report, return what is known."""
    who = f"the client that is up on {settings.data}"
    call = Call(connection, order)
    report = call.wait(stop.descriptor, order.wait_ms / 1e3 + PATIENCE_S)
    gone = call.gone
    if report is None and call.given and not gone:
        report = call.take_back()
    if report is not None:
        return report
    by = f"ended by {signal.Signals(stop.caught).name}, while " if stop.caught is not None else ""
    how = "goes on with it" if call.id else "does not answer"
    if gone:
        how = "ended before it answered"
    sure, reason = not call.id and (call.gone or not call.given), f"{by}{who} {how}"
    if sure or order.verb == "read":
        return not_done(order.retry, reason)
    return Report("unknown", call.id or not_done(order.retry, "").id, 0, "", reason, b"")
