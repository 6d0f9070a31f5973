"""The command `client`. What needs ZeroMQ or msgspec is loaded by the commands that use it."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from common.errors import EXIT_CRASHED, EXIT_REFUSED, CommandError, refused, run_command, wrong_use

if TYPE_CHECKING:
    from client.control import Report
    from client.inspecting import Row
    from client.settings import Settings
    from common.messages import Inspection

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="A client of Lockstep: a replica of the group's files, or one op on them.",
)

Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR", envvar="LOCKSTEP_DATA", help="The data directory; needed.", show_default=False
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        envvar="LOCKSTEP_NAME",
        help="The client's name [default: as DIR remembers, else DIR's last part].",
    ),
]
LockdAt = Annotated[
    str | None,
    typer.Option(
        "--lockd",
        metavar="ENDPOINT",
        envvar="LOCKSTEP_LOCKD",
        help="Where lockd is [default: as DIR remembers, else tcp://127.0.0.1:7461].",
    ),
]
UnusedName = Annotated[str | None, typer.Option("--name", metavar="NAME", envvar="LOCKSTEP_NAME", hidden=True)]
LockName = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="A file, or a lock without one.")]
OperatorName = Annotated[
    str | None, typer.Option("--name", metavar="NAME", envvar="LOCKSTEP_NAME", help="Who asks, for lockd's log.")
]
UnusedLockd = Annotated[str | None, typer.Option("--lockd", metavar="ENDPOINT", envvar="LOCKSTEP_LOCKD", hidden=True)]
Durability = Annotated[
    str,
    typer.Option(
        "--durability",
        metavar="disk|memory",
        help="disk: acknowledged is on disk; memory: in the system's cache.",
    ),
]
MetricsAt = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="HOST:PORT",
        help="Serve metrics for Prometheus there [default: nowhere].",
        show_default=False,
    ),
]
Retry = Annotated[
    list[str],
    typer.Option(
        "--retry", metavar="ID", help="An earlier try that ended unknown: do nothing if it happened. Repeats."
    ),
]
Wait = Annotated[
    str, typer.Option("--wait", metavar="TIME", help="How long an op waits for its lock, as in 500ms, 3s or 2m.")
]
File = Annotated[str, typer.Argument(metavar="FILE", show_default=False)]
Text = Annotated[
    str,
    typer.Argument(
        metavar="TEXT",
        show_default=False,
        help="One line. One that begins with - goes behind --, and the options before that.",
    ),
]
AtSeq = Annotated[str, typer.Argument(metavar="FILE@SEQ", show_default=False)]
Whence = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="LOCKSTEP_DATA",
        help="Ask the lockd that DIR remembers.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def serve(
    metrics: MetricsAt = None,
    data: Data = None,
    name: Name = None,
    lockd: LockdAt = None,
    durability: Durability = "disk",
) -> None:
    """Keep a replica up until SIGINT or SIGTERM; prints a line beginning with `ready`."""
    settings = _settings(data, name, lockd, durability, metrics)
    from client.running import serve as serve_until_signal

    serve_until_signal(settings)


@app.command()
def run(
    ops: Annotated[int, typer.Option("--ops", metavar="N", help="How many ops this client does.")] = 10,
    delay: Annotated[str, typer.Option("--delay", metavar="A..B", help="Random pause before each op, seconds.")] = (
        "0.0..0.2"
    ),
    file: Annotated[
        list[str],
        typer.Option("--file", metavar="NAME", help="A file to work on; repeats, each op picks one."),
    ] = ["notes.txt"],  # noqa: B006  (typer reads it, nobody writes it)
    lines: Annotated[
        str | None,
        typer.Option("--lines", metavar="PATH", help="Take the texts from this file [default: made up]."),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option("--seed", metavar="S", help="Repeat a run's choices [default: others each time]."),
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="When done, serve until SIGINT or SIGTERM.")] = False,
    group: Annotated[
        int, typer.Option("--group", metavar="N", help="Begin when N replicas are up, this one included.")
    ] = 1,
    wait: Wait = "10s",
    stall: Annotated[
        str,
        typer.Option(
            "--stall", metavar="TIME", help="Stand still so long between an op's journal and its push, as in 3s."
        ),
    ] = "0",
    report: Annotated[bool, typer.Option("--report", hidden=True)] = False,
    metrics: MetricsAt = None,
    data: Data = None,
    name: Name = None,
    lockd: LockdAt = None,
    durability: Durability = "disk",
) -> None:
    """Do random ops: a pause, then a read, a write or an update of a file, N times."""
    from client.workload import Workload, parse_delay, read_lines

    if ops < 1:
        raise wrong_use(f"--ops {ops}: at least 1 op is needed")
    if group < 1:
        raise wrong_use(f"--group {group}: at least 1 replica is needed")
    delay_s = parse_delay(delay)
    for one in file:
        _check_file(one)
        for other in file:
            if other.startswith(f"{one}/"):
                raise wrong_use(f"--file {other}: {one} is a file of this run, so it cannot be a folder, too")
    texts = read_lines(Path(lines)) if lines is not None else []
    wait_ns, stall_ns = _duration("--wait", wait), _duration("--stall", stall)
    settings = _settings(data, name, lockd, durability, metrics)
    from client.running import run as run_ops

    run_ops(
        settings,
        lambda host: Workload(host, seed, delay_s, file, texts),
        ops,
        wait_ns,
        group=group,
        stay=stay,
        report=report,
        stall_ns=stall_ns,
    )


@app.command()
def read(
    file: File,
    wait: Wait = "10s",
    data: Data = None,
    name: Name = None,
    lockd: LockdAt = None,
    durability: Durability = "disk",
) -> None:
    """Print the newest acknowledged content of FILE, byte for byte."""
    report = _one_shot("read", file, "", 0, wait, _settings(data, name, lockd, durability))
    _write_out([report.content])


@app.command()
def write(
    file: File,
    text: Text,
    wait: Wait = "10s",
    retry: Retry = [],  # noqa: B006  (typer reads it, nobody writes it)
    data: Data = None,
    name: Name = None,
    lockd: LockdAt = None,
    durability: Durability = "disk",
) -> None:
    """Append TEXT and a newline to FILE."""
    _tell_change(file, _one_shot("write", file, text, 0, wait, _settings(data, name, lockd, durability), retry))


@app.command()
def update(
    file: File,
    text: Text,
    wait: Wait = "10s",
    retry: Retry = [],  # noqa: B006  (typer reads it, nobody writes it)
    data: Data = None,
    name: Name = None,
    lockd: LockdAt = None,
    durability: Durability = "disk",
) -> None:
    """Put ` --- TEXT` at the end of FILE's last line; an empty file stays empty."""
    _tell_change(file, _one_shot("update", file, text, 0, wait, _settings(data, name, lockd, durability), retry))


@app.command()
def restore(
    file_at_seq: AtSeq,
    wait: Wait = "10s",
    retry: Retry = [],  # noqa: B006  (typer reads it, nobody writes it)
    data: Data = None,
    name: Name = None,
    lockd: LockdAt = None,
    durability: Durability = "disk",
) -> None:
    """Bring FILE back to its version SEQ, as a new version, under the lock."""
    file, seq = _file_at_seq(file_at_seq)
    _tell_change(file, _one_shot("restore", file, "", seq, wait, _settings(data, name, lockd, durability), retry))


@app.command()
def snapshots(
    file: File, json_: Json = False, data: Data = None, name: UnusedName = None, lockd: UnusedLockd = None
) -> None:
    """List the versions of FILE in DIR, oldest first."""
    from client.past import snapshots as lines

    _check_file(file)
    _write_out(line.encode() + b"\n" for line in lines(_directory(data), file, as_json=json_))


@app.command()
def show(file_at_seq: AtSeq, data: Data = None, name: UnusedName = None, lockd: UnusedLockd = None) -> None:
    """Print FILE as it was at version SEQ, byte for byte."""
    from client.past import show as content

    file, seq = _file_at_seq(file_at_seq)
    _write_out(content(_directory(data), file, seq))


@app.command()
def diff(first: AtSeq, second: AtSeq, data: Data = None, name: UnusedName = None, lockd: UnusedLockd = None) -> None:
    """Print what changed from the first FILE@SEQ to the second, as a unified diff."""
    from client.past import diff as lines

    _write_out(lines(_directory(data), _file_at_seq(first), _file_at_seq(second)))


@app.command()
def log(
    directories: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR]...",
            show_default=False,
            help="Data directories, or those of runs, whose clients have one each [default: --data].",
        ),
    ] = None,
    client: Annotated[
        list[str], typer.Option("--client", metavar="NAME", help="Only what NAME did, also as NAME#2; repeats.")
    ] = [],  # noqa: B006  (typer reads it, nobody writes it)
    file: Annotated[list[str], typer.Option("--file", metavar="NAME", help="Only ops on this file; repeats.")] = [],  # noqa: B006  (typer reads it, nobody writes it)
    op: Annotated[
        str, typer.Option("--op", metavar="ID|VERB", help="Only lines of this op, like anna:7, or of this verb.")
    ] = "",
    since: Annotated[
        str,
        typer.Option("--since", metavar="TIME", help="Only from then on: 2026-11-22T15:03, or so long ago: 5m."),
    ] = "",
    concurrent_with: Annotated[
        str, typer.Option("--concurrent-with", metavar="ID", help="Only what is neither before nor after this op.")
    ] = "",
    causes: Annotated[
        str, typer.Option("--causes", metavar="ID", help="Only what happened before this op; not the op itself.")
    ] = "",
    why: Annotated[
        str, typer.Option("--why", metavar="ID", help="The shortest chain of events that led to this op.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on as lines are written, until SIGINT.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object per line.")] = False,
    data: Data = None,
    name: UnusedName = None,
    lockd: UnusedLockd = None,
) -> None:
    """Print event logs merged: what happened before stands before, else by time. All filters have to hold."""
    places = [Path(one) for one in directories] if directories else [_directory(data, "name one, ")]
    from client.log import Asked
    from client.log import log as print_log
    from client.log_filters import Wanted

    asked = Asked(places, Wanted(client, file, op, since), causes, concurrent_with, follow, json_)
    if not why:
        print_log(asked)
        return
    if follow or client or file or op or since or causes or concurrent_with:
        raise wrong_use("--why shows a chain as it is: only --json goes with it")
    from client.why import why as chain

    _write_out(chain(why, asked))


@app.command("give-up")
def give_up(
    file: File,
    of: Annotated[
        list[str], typer.Option("--of", metavar="NAME", help="Who has the newest version and is lost; repeats.")
    ],
    name: OperatorName = None,
    lockd: Annotated[
        str, typer.Option("--lockd", metavar="ENDPOINT", envvar="LOCKSTEP_LOCKD", help="Where lockd is.")
    ] = "tcp://127.0.0.1:7461",
) -> None:
    """Accept that what only absent clients have of FILE is lost: go on from the replica here that has the most."""
    from common.names import endpoint_problem, is_host

    _check_file(file)
    for host in of:
        if not is_host(host):
            raise wrong_use(f"--of {host!r}: it is no client's name")
    if problem := endpoint_problem(lockd, listening=False):
        raise wrong_use(f"--lockd {lockd}: {problem}")
    from client.operator import give_up as ask

    replicas = ask(lockd, name, file, of)
    _write_out([f"ok {file} goes on from {replicas} replica{'s' if replicas > 1 else ''}\n".encode()])


@app.command()
def members(json_: Json = False, name: UnusedName = None, lockd: LockdAt = None, data: Whence = None) -> None:
    """List the group's clients: up or absent, in sync or learning, how far behind, for which files they are needed."""
    from client.inspecting import MEMBER_COLUMNS, member_rows
    from client.inspecting_json import members_json

    seen = _inspect(lockd, data)
    _tell(members_json(seen) if json_ else None, MEMBER_COLUMNS, member_rows(seen), seen.members_left_out)


@app.command()
def locks(json_: Json = False, name: UnusedName = None, lockd: LockdAt = None, data: Whence = None) -> None:
    """List the locks: who holds them, under which token, for how long, and who waits."""
    from client.inspecting import LOCK_COLUMNS, lock_rows
    from client.inspecting_json import locks_json

    seen = _inspect(lockd, data)
    _tell(locks_json(seen) if json_ else None, LOCK_COLUMNS, lock_rows(seen), seen.locks_left_out)


@app.command("lock")
def lock_(
    lock: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The lock; no file goes with it.")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", show_default=False, help="What to run, behind --.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="Hold it together with others that want it so.")] = False,
    wait: Annotated[
        str | None, typer.Option("--wait", metavar="TIME", help="How long to wait for the lock [default: 10s].")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait: as --wait 0; for lockd, 1s.")] = False,
    conflict_code: Annotated[
        int,
        typer.Option("--conflict-exit-code", "-E", metavar="CODE", min=0, max=255, help="Exit code if not granted."),
    ] = EXIT_REFUSED,
    kill_grace: Annotated[
        str,
        typer.Option("--kill-grace", metavar="TIME", help="How long after SIGTERM what is left of COMMAND is killed."),
    ] = "1s",
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", envvar="LOCKSTEP_NAME", help="The client's name [default: a new one]."),
    ] = None,
    lockd: LockdAt = None,
    data: Whence = None,
) -> None:
    """Run COMMAND while holding the lock NAME; exit as COMMAND does, or with 4 if the lock was lost meanwhile."""
    from common.names import client_name_problem, lock_name_problem

    if problem := lock_name_problem(lock):
        raise wrong_use(f"NAME {lock!r}: {problem}")
    if not command:
        raise wrong_use("no COMMAND: client lock NAME -- COMMAND...")
    # Only behind -- all is COMMAND's; without it, an option of COMMAND's would be taken for one of ours.
    if "--" not in sys.argv or sys.argv[sys.argv.index("--") + 1 :] != command:
        raise wrong_use("put -- between NAME or its options, and COMMAND: client lock NAME -- COMMAND...")
    if name is not None and (problem := client_name_problem(name)):
        raise wrong_use(f"--name {name!r}: {problem}")
    if no_wait and wait is not None:
        raise wrong_use("--no-wait and --wait contradict each other: give one of them")
    wait_ns = 0 if no_wait else _duration("--wait", "10s" if wait is None else wait)
    kill_grace_ns = _duration("--kill-grace", kill_grace)
    endpoint = _lockd_of(lockd, data)
    from client.lock_command import Wanted, lock_command

    lock_command(Wanted(lock, command, shared, wait_ns, conflict_code, kill_grace_ns, endpoint, name))


@app.command()
def status(json_: Json = False, name: UnusedName = None, lockd: LockdAt = None, data: Whence = None) -> None:
    """Sum the group up: lockd's epoch, sessions, files, rates since its start, recent faults."""
    from client.inspecting import status_lines
    from client.inspecting_json import as_json

    seen = _inspect(lockd, data)
    _tell_lines(as_json(seen) if json_ else None, status_lines(seen))


@app.command()
def why(
    lock: LockName,
    json_: Json = False,
    name: UnusedName = None,
    lockd: LockdAt = None,
    data: Whence = None,
) -> None:
    """Say who holds the lock NAME, how healthy it is, and what each waiter waits for."""
    _check_lock(lock)
    from client.inspecting import why_lines
    from client.inspecting_json import why_json

    seen = _inspect(lockd, data, lock)
    _tell_lines(why_json(seen, lock) if json_ else None, why_lines(seen, lock))


@app.command("break")
def break_(
    lock: LockName,
    token: Annotated[
        str, typer.Option("--token", metavar="T", help="The token of the hold, as `client locks` shows it.")
    ],
    json_: Json = False,
    name: OperatorName = None,
    lockd: LockdAt = None,
    data: Whence = None,
) -> None:
    """Take the lock NAME away from who holds it under token T; its holder is told. No other hold is touched."""
    from common.tokens import format_token, parse_token

    _check_lock(lock)
    try:
        number = parse_token(token)
    except ValueError as error:
        raise wrong_use(f"--token: {error}; see client locks") from None
    endpoint = _lockd_of(lockd, data)
    from client.inspecting import duration
    from client.operator import break_lock
    from common.printing import printable

    broken = break_lock(endpoint, name, lock, number)
    values: dict[str, object] = {"lock": lock, "token": format_token(number), "client": broken.host}
    values |= {"mode": broken.mode, "held_us": broken.held_us, "delay_ms": broken.delay_ms}
    had = f"{printable(broken.host)} had it, {broken.mode}, under token {token} for {duration(broken.held_us)}"
    line = f"ok {printable(lock)} is broken: {had}"
    if broken.delay_ms:
        line += f"; unless that one says that it has stopped, nobody gets it for {duration(broken.delay_ms * 1000)}"
    _tell_lines(values if json_ else None, [line])


@app.command()
def recall(
    lock: LockName,
    json_: Json = False,
    name: OperatorName = None,
    lockd: LockdAt = None,
    data: Whence = None,
) -> None:
    """Ask those who keep the lock NAME unused to give it back; who uses it goes on until it is done."""
    _check_lock(lock)
    endpoint = _lockd_of(lockd, data)
    from client.operator import call_back
    from common.printing import printable

    called = call_back(endpoint, name, lock)
    lines = [f"ok {printable(host)} is asked to give {printable(lock)} back" for host in called.hosts]
    lines += [
        f"{printable(host)} holds {printable(lock)} for use, and keeps it until it is done" for host in called.others
    ]
    _tell_lines({"lock": lock, "asked": called.hosts, "using": called.others} if json_ else None, lines)


@app.command()
def top(
    interval: Annotated[str, typer.Option("--interval", metavar="TIME", help="How often to look.")] = "1s",
    json_: Annotated[bool, typer.Option("--json", help="Print a line of JSON each time.")] = False,
    name: UnusedName = None,
    lockd: LockdAt = None,
    data: Whence = None,
) -> None:
    """Show members, locks, rates and faults, refreshed, until q or Ctrl-C."""
    interval_ns = _duration("--interval", interval)
    if not 100_000_000 <= interval_ns <= 3_600_000_000_000:
        raise wrong_use(f"--interval {interval}: it is at least 100ms and at most 1h")
    endpoint = _lockd_of(lockd, data)
    from client.top import top as look

    look(endpoint, interval_ns, as_json_lines=json_)


def main() -> None:
    """Run the command."""
    run_command("client", app)


def _check_lock(lock: str) -> None:
    from common.names import lock_name_problem

    if problem := lock_name_problem(lock):
        raise wrong_use(f"NAME {lock!r}: {problem}")


def _one_shot(
    verb: str, file: str, text: str, of: int, wait: str, settings: "Settings", retry: Iterable[str] = ()
) -> "Report":
    """Have an op done and return its report, which is ok."""
    from client.control import Order
    from client.one_shot import carry_out

    _check_file(file)
    if verb in ("write", "update"):
        from common.names import text_problem

        if problem := text_problem(text):
            raise wrong_use(problem)
    for id_ in retry:
        from common.names import is_op_id

        if not is_op_id(id_):
            raise wrong_use(f"--retry {id_}: an op's id reads like anna:7")
    return carry_out(settings, Order(verb, file, text, of, _duration("--wait", wait) // 1_000_000, tuple(retry)))


def _lockd_of(lockd: str | None, data: str | None) -> str:
    """Return where lockd is: the option, else as DIR remembers, else the default."""
    from common.names import endpoint_problem

    if lockd is not None and (problem := endpoint_problem(lockd, listening=False)):
        raise wrong_use(f"--lockd {lockd}: {problem}")
    if lockd is None and data:
        if not Path(data).is_dir():
            raise wrong_use(f"--data {data} is no directory, so it remembers no lockd; name another, or set --lockd")
        from client.journal import read_meta
        from client.storage_errors import StorageError

        try:
            lockd = str((read_meta(Path(data) / "journal") or {}).get("lockd", "")) or None
        except StorageError as error:
            raise refused(f"{error}; set --lockd") from None
    from client.settings import DEFAULT_LOCKD

    return lockd or DEFAULT_LOCKD


def _inspect(lockd: str | None, data: str | None, lock: str = "") -> "Inspection":
    endpoint = _lockd_of(lockd, data)
    from client.operator import inspect

    return inspect(endpoint, lock)


def _tell(values: dict[str, object] | None, columns: Sequence[str], rows: "Sequence[Row]", left_out: int) -> None:
    """Print values as JSON, or rows as a table that fits the terminal, where stdout is one."""
    if values is not None:
        _tell_lines(values, [])
        return
    from client.tables import table_lines

    lines = table_lines(columns, rows, os.get_terminal_size(1).columns if os.isatty(1) else None)
    _tell_lines(None, [*lines, *([f"and {left_out} more"] if left_out else [])])


def _tell_lines(values: dict[str, object] | None, lines: Sequence[str]) -> None:
    if values is not None:
        import json

        lines = [json.dumps(values)]
    _write_out(f"{line}\n".encode("utf-8", "replace") for line in lines)


def _tell_change(file: str, report: "Report") -> None:
    _write_out([f"ok {file}@{report.seq} {report.hash} id={report.id}\n".encode()])


def _settings(
    data: str | None, name: str | None, lockd: str | None, durability: str, metrics: str | None = None
) -> "Settings":
    from common.names import client_name_problem, endpoint_problem, parse_address

    directory = _directory(data)
    if name is not None and (problem := client_name_problem(name)):
        raise wrong_use(f"--name {name!r}: {problem}")
    if lockd is not None and (problem := endpoint_problem(lockd, listening=False)):
        raise wrong_use(f"--lockd {lockd}: {problem}")
    kind: Literal["disk", "memory"]
    if durability == "disk":
        kind = "disk"
    elif durability == "memory":
        kind = "memory"
    else:
        raise wrong_use(f"--durability {durability}: it is disk or memory")
    from client.settings import Settings

    try:
        address = None if metrics is None else parse_address(metrics)
    except ValueError as error:
        raise wrong_use(f"--metrics {metrics}: {error}") from None
    return Settings(directory, name, lockd, kind, address)


def _directory(data: str | None, or_else: str = "") -> Path:
    if not data:
        raise wrong_use(f"no data directory: {or_else}give --data DIR, or set LOCKSTEP_DATA")
    return Path(data)


def _check_file(file: str) -> None:
    from common.names import file_name_problem

    if problem := file_name_problem(file):
        raise wrong_use(f"FILE {file!r}: {problem}")


def _file_at_seq(text: str) -> tuple[str, int]:
    from common.names import parse_version

    try:
        return parse_version(text)
    except ValueError as error:
        raise wrong_use(str(error)) from None


def _duration(option: str, text: str) -> int:
    from common.moments import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise wrong_use(f"{option}: {error}") from None


def _write_out(chunks: Iterable[bytes]) -> None:
    try:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(EXIT_CRASHED, f"stdout cannot be written ({error.strerror})") from None
