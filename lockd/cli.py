"""The command `lockd`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from common.errors import EXIT_CRASHED, CommandError, run_command, wrong_use
from common.moments import parse_duration
from common.names import endpoint_problem, parse_address

DEFAULT_BIND = "tcp://127.0.0.1:7461"
_NEVER = 1_000_000_000

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def lockd(
    bind: Annotated[
        list[str],
        typer.Option(metavar="ENDPOINT", help="Where to listen; repeats. tcp://HOST:* takes a free port."),
    ] = [DEFAULT_BIND],  # noqa: B006  (typer reads it, nobody writes it)
    data: Annotated[str, typer.Option(metavar="DIR", help="Its directory: state, grants.log, lockd.log.")] = (
        "lockd-data"
    ),
    ttl: Annotated[
        str, typer.Option(metavar="TIME", help="How long a session outlives its last message, as in 500ms, 3s or 1m.")
    ] = "3s",
    lock_delay: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long a lock without a file is granted to nobody after its holder's session was lost.",
        ),
    ] = "2s",
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve metrics for Prometheus there [default: nowhere]."),
    ] = None,
    rebuild: Annotated[
        int | None,
        typer.Option(metavar="N", help="Its state was lost: take it from all N replicas there are."),
    ] = None,
) -> None:
    """The lock daemon of one group. Prints a line beginning with `ready`, serves until SIGINT or SIGTERM."""
    for endpoint in bind:
        if problem := endpoint_problem(endpoint, listening=True):
            raise wrong_use(f"--bind {endpoint}: {problem}")
    if not data:
        raise wrong_use("--data: the directory's name is empty")
    try:
        ttl_ns = parse_duration(ttl)
    except ValueError as error:
        raise wrong_use(f"--ttl: {error}") from None
    if not 100_000_000 <= ttl_ns <= 3_600_000_000_000:
        raise wrong_use(f"--ttl {ttl}: it is at least 100ms and at most 1h")
    try:
        lock_delay_ns = parse_duration(lock_delay)
    except ValueError as error:
        raise wrong_use(f"--lock-delay: {error}") from None
    if lock_delay_ns > 3_600_000_000_000:
        raise wrong_use(f"--lock-delay {lock_delay}: it is at most 1h")
    if rebuild is not None and rebuild < 1:
        raise wrong_use(f"--rebuild {rebuild}: it is the number of replicas there are")
    try:
        address = None if metrics is None else parse_address(metrics)
    except ValueError as error:
        raise wrong_use(f"--metrics {metrics}: {error}") from None
    from common.stopping import Stop
    from lockd.server import Server
    from lockd.state import StateError

    stop = Stop()
    served, where = None, ""
    if address is not None:
        from common.metrics import Metrics

        served = Metrics(*address)  # first: where it cannot be had nothing has happened yet
        where = f", metrics on {served.url}"
    server = Server(stop, bind, Path(data), ttl_ns, lock_delay_ns, rebuild or 0)
    if served is not None:
        from lockd.metrics import LockdMetrics

        served.serve(LockdMetrics(server.core, server.clock))
    try:
        server.serve(
            ready=lambda line: print(line + where, flush=True),
            waits=lambda line: print(f"lockd: {line}", file=sys.stderr),
        )
    except StateError as error:
        raise CommandError(EXIT_CRASHED, str(error)) from None
    finally:
        server.close()


def main() -> None:
    """Run the command."""
    run_command("lockd", app)
