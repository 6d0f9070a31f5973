"""What a run left on disk, read into Evidence: from files alone, and without writing where they lie.

What cannot be read becomes a Flaw of the property that it spoils, and the rest is read all the same.
"""

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Final, ParamSpec, TypeVar

from client.history import Archive, HistoryError
from common.eventlog import HEADER, parse_event
from common.grantlog import parse_grant
from common.names import is_host
from common.records import Record
from common.wire import decode_record
from lockd.behind import grants_with_pending
from scripts.verdict.evidence import (
    Asked,
    Client,
    EventLine,
    Evidence,
    Flaw,
    Grants,
    Journal,
    LockLine,
    PropertyName,
    Snapshots,
    Told,
)

RUN_FORMAT: Final = 1
JOURNAL_FORMAT: Final = 2
_PREFIX: Final = Struct("<II")
_MARK: Final = 2
_KEEP: Final = Struct("<Q")
_OP: Final = Struct("<2xQ40x16s8xI4x")
_BEGINS_CHANGE: Final = re.compile(rb"(?=[\x01\x02][\x02\x03])")

Parsed = TypeVar("Parsed")
Arguments = ParamSpec("Arguments")


class NoRun(Exception):
    """The directories given do not hold a run, in one line."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of a run lie; `clients` by the names that stand for them in findings."""

    clients: dict[str, Path]
    lockd: Path | None
    asked: Path | None
    told: Path | None


@contextmanager
def open_run(directories: Sequence[Path]) -> Iterator[Evidence]:
    """Read the run in `directories`, each a data directory or a parent of such. Raises NoRun.

    Snapshots are read when they are asked for, so the evidence is good inside the context alone.
    """
    places = find(directories)
    flaws: list[Flaw] = []
    with ExitStack() as stack:
        asked = _read_asked(places.asked, flaws) if places.asked else None
        grants = _read_grants(places.lockd, flaws) if places.lockd else None
        clients = [_read_client(name, path, stack, flaws) for name, path in places.clients.items()]
        told = _read_told(places.told, flaws) if places.told else None
        yield Evidence(clients, grants, asked, flaws, told)


def find(directories: Sequence[Path]) -> Places:
    """Find clients, lockd and run.json in data directories and parents of such. Raises NoRun."""
    clients: list[Path] = []
    daemons: list[Path] = []
    asked: list[Path] = []
    for directory in directories:
        try:
            # client-10 comes after client-9
            inside = [directory] if _is_data(directory) else sorted(directory.iterdir(), key=_by_number)
            clients += [path for path in inside if _is_client(path)]
            daemons += [path for path in inside if (path / "grants.log").is_file()]
            asked += [path for path in [directory / "run.json"] if path.is_file()]
        except OSError as error:
            raise NoRun(f"{directory}: {(error.strerror or str(error)).lower()}") from error
    clients, daemons = _once(clients), _once(daemons)
    given = ", ".join(map(str, directories))
    if not clients:
        raise NoRun(f"{given}: no client's data directory here (one holds an events.log)")
    if len(daemons) > 1 or len(_once(asked)) > 1:
        raise NoRun(f"{given}: this is more than one run; give one at a time")
    names = [path.resolve().name for path in clients]
    if len(set(names)) < len(names):
        names = [str(path) for path in clients]
    run = asked[0].parent if asked else None
    return Places(
        dict(zip(names, clients, strict=True)),
        daemons[0] if daemons else None,
        run / "run.json" if run else None,
        run / "outcomes.jsonl" if run and (run / "outcomes.jsonl").is_file() else None,
    )


def _by_number(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


def _is_client(path: Path) -> bool:
    return (path / "events.log").is_file() or (path / "journal").is_dir()


def _is_data(path: Path) -> bool:
    return _is_client(path) or (path / "grants.log").is_file()


def _once(paths: list[Path]) -> list[Path]:
    return list({path.resolve(): path for path in paths}.values())


# run.json


def _read_asked(path: Path, flaws: list[Flaw]) -> Asked | None:
    try:
        run = json.loads(path.read_bytes())
        if run["version"] != RUN_FORMAT:
            raise ValueError(f"its version is {run['version']}, not {RUN_FORMAT}")
        return Asked(
            _typed(run["clients"], int),
            _typed(run["ops"], int),
            tuple([_typed(file, str) for file in run["files"]]),
            _typed(run["finished"], bool),
            _typed(run["stopped"], bool),
            tuple([_typed(name, str) for name in run["left"]]),
            tuple([_typed(kind, str) for kind in run.get("faults", [])]),
        )
    except KeyError as error:
        flaws.append(Flaw("complete", "run.json", f"it has no {error.args[0]}"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        flaws.append(Flaw("complete", "run.json", f"it cannot be read: {error}"))
    return None


def _typed(value: Any, kind: type[Parsed]) -> Parsed:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


# outcomes.jsonl


def _read_told(path: Path, flaws: list[Flaw]) -> list[Told]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        flaws.append(_unreadable("outcomes", path.name, error))
        return []
    found: list[Told] = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        try:
            found.append(_parse_told(number, json.loads(line)))
        except KeyError as error:
            flaws.append(Flaw("outcomes", f"{path.name}:{number}", f"the line has no {error.args[0]}"))
        except (ValueError, TypeError, RecursionError) as error:
            flaws.append(Flaw("outcomes", f"{path.name}:{number}", f"the line cannot be read: {error}"))
    return found


def _parse_told(number: int, line: Any) -> Told:
    client, id_, verb, file, outcome = [_typed(line[key], str) for key in ("client", "id", "verb", "file", "outcome")]
    began_us = _typed(line["began_us"], int)
    ended_us = None if line["ended_us"] is None else _typed(line["ended_us"], int)
    match outcome:
        case "ok":
            if ended_us is None:
                raise ValueError("it is ok, and has not ended")
            seq, hash_ = _typed(line["seq"], int), _typed(line["hash"], str)
            beside = _typed(line.get("beside", False), bool)
            return Told(number, client, id_, verb, file, outcome, began_us, ended_us, seq, hash_, beside)
        case "failed" | "unknown":
            return Told(number, client, id_, verb, file, outcome, began_us, ended_us)
        case _:
            raise ValueError(f"the outcome {outcome!r} is unknown")


# Logs


def _read_grants(directory: Path, flaws: list[Flaw]) -> Grants:
    name = f"{directory.resolve().name}/grants.log"
    lines = _read_lines(lambda: grants_with_pending(directory), name, b"", parse_grant, flaws)
    return Grants(name, [LockLine(number, line, raw) for number, line, raw in lines])


def _read_events(path: Path, name: str, flaws: list[Flaw]) -> list[EventLine]:
    log = path / "events.log"
    lines = _read_lines(log.read_bytes, f"{name}/events.log", HEADER.encode(), parse_event, flaws)
    return [EventLine(number, event, raw) for number, event, raw in lines]


def _read_lines(
    read: Callable[[], bytes], name: str, header: bytes, parse: Callable[[str], Parsed], flaws: list[Flaw]
) -> list[tuple[int, Parsed, str]]:
    """Return each line that reads: its number, what it says, and itself."""
    try:
        data = read()
    except OSError as error:
        flaws.append(_unreadable("logs", name, error))
        return []
    if not data.startswith(header):
        flaws.append(Flaw("logs", f"{name}:1", "the header's two lines are not as they should be"))
    lines = data.split(b"\n")
    torn = lines.pop()
    found: list[tuple[int, Parsed, str]] = []
    for number, line in enumerate(lines, 1):
        if number <= header.count(b"\n") and data.startswith(header):
            continue
        try:
            raw = line.decode()
            found.append((number, parse(raw), raw))
        except (ValueError, RecursionError) as error:
            flaws.append(Flaw("logs", f"{name}:{number}", f"the line cannot be read: {error}"))
    if torn:
        flaws.append(Flaw("logs", f"{name}:{len(lines) + 1}", "the last line is torn"))
    return found


def _unreadable(name: PropertyName, where: str, error: OSError) -> Flaw:
    return Flaw(name, where, f"it cannot be read: {(error.strerror or str(error)).lower()}")


# A client


def _read_client(name: str, path: Path, stack: ExitStack, flaws: list[Flaw]) -> Client:
    journals, host = _read_journals(path / "journal", f"{name}/journal", flaws)
    snapshots = _open_snapshots(path, f"{name}/snapshots", stack, flaws)
    lines = _read_events(path, name, flaws)
    files = _read_files(path / "files", f"{name}/files", flaws)
    notes = _read_notes(path / "client.log")
    refused, fenced = notes.count(b" refused a push of "), notes.count(b" refused our push to ")
    return Client(name, lines, journals, files, snapshots, host, refused, fenced)


def _read_notes(path: Path) -> bytes:
    """Return the notes for people, which no property rests on."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _read_files(root: Path, name: str, flaws: list[Flaw]) -> dict[str, bytes]:
    """Return every plain file below `root`, by its name from there. Links are not followed."""
    files: dict[str, bytes] = {}

    def visit(directory: Path, prefix: str) -> None:
        try:
            with os.scandir(directory) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    inner = prefix + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        visit(directory / entry.name, inner + "/")
                    elif entry.is_file(follow_symlinks=False):
                        files[inner] = (directory / entry.name).read_bytes()
                    else:
                        flaws.append(Flaw("replay", f"{name}/{inner}", "it is not a plain file"))
        except FileNotFoundError:
            pass  # no file was ever made
        except OSError as error:
            flaws.append(_unreadable("replay", f"{name}/{prefix}", error))

    visit(root, "")
    return files


# The journal, by its format and not by the product's code for it


def _read_journals(path: Path, where: str, flaws: list[Flaw]) -> tuple[dict[str, Journal], str]:
    """Return the ops on each file, and the host that the journal remembers."""
    journals: dict[str, Journal] = {}
    host = ""
    try:
        meta = json.loads((path / "meta").read_bytes())
        if meta["format"] != JOURNAL_FORMAT:
            raise ValueError(f"its format is {meta['format']}, not {JOURNAL_FORMAT}")
        host = _typed(meta["meta"].get("host", ""), str)
        for log in sorted(path.glob("*.ops"), key=_by_number):
            _read_log(log.read_bytes(), log.name, journals)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        missing = isinstance(error, FileNotFoundError)
        flaws.append(Flaw("hash chain", where, "it is missing" if missing else str(error)))
    return journals, host


def _read_log(data: bytes, log: str, journals: dict[str, Journal]) -> None:
    """Read one file's log, as far as its last whole change."""
    line, newline, _ = data.partition(b"\n")
    if not newline:
        return  # a crash came before its first change
    words = line.split(b" ", 3)
    if words[:2] == [b"lockstep", b"journal"] and words[2:3] != [b"%d" % JOURNAL_FORMAT]:
        raise ValueError(f"{log}: its format is {words[2:3]}, not {JOURNAL_FORMAT}")
    if words[:2] != [b"lockstep", b"journal"] or len(words) != 4:
        raise ValueError(f"{log}: its first line is {line[:80]!r}")
    told, _, sum_of_line = line.rpartition(b" ")
    if sum_of_line != b"%08x" % zlib.crc32(told):
        raise ValueError(f"{log}: its first line is damaged")
    file, at = _typed(json.loads(told.split(b" ", 3)[3]), str), len(line) + 1
    change: list[tuple[int, int, int]] = []
    found = False
    records: list[Record] = []
    hashes: list[bytes] = []
    while at + _PREFIX.size <= len(data):
        size, sum_ = _PREFIX.unpack_from(data, at)
        if at + size > len(data):
            break  # torn by a crash, where nothing whole stands behind
        body = data[at + _PREFIX.size : at + size]
        if zlib.crc32(body) != sum_ or len(body) < 2:
            raise ValueError(f"{log}: {file} is damaged at byte {at}")
        change.append((at + _PREFIX.size, at + size, body[0]))
        at += size
        if body[1] & 1:  # more of the change follows
            continue
        for start, end, kind in change:
            if kind == _MARK:
                (keep,) = _KEEP.unpack_from(data, start + 2)
                del records[keep:], hashes[keep:]
            else:
                _read_op(data[start:end], file, records, hashes)
        change, found = [], True
    if _begins_change(data[at + 1 :]):
        raise ValueError(f"{log}: {file} is damaged at byte {at}: the log goes on behind that")
    if found:
        journals[file] = Journal(records, hashes)


def _begins_change(data: bytes) -> bool:
    """Tell whether a change begins in `data` with a whole entry: behind what a crash has torn none does."""
    for found in _BEGINS_CHANGE.finditer(data, _PREFIX.size):
        size, sum_ = _PREFIX.unpack_from(data, found.start() - _PREFIX.size)
        body = data[found.start() : found.start() - _PREFIX.size + size]
        if body and len(body) == size - _PREFIX.size and zlib.crc32(body) == sum_:
            return True
    return False


def _read_op(body: bytes, file: str, records: list[Record], hashes: list[bytes]) -> None:
    if len(body) < _OP.size:
        raise ValueError(f"{file}: an op is cut")
    seq, hash_, bytes_ = _OP.unpack_from(body)
    try:
        if seq != len(records) + 1:
            raise ValueError(f"it comes after {len(records)}")
        record = decode_record(body[_OP.size : _OP.size + bytes_])
        for host in record.clock:
            if not is_host(host):
                raise ValueError("its clock is malformed")
        if record.seq != seq:
            raise ValueError(f"its record says {record.seq}")
    except ValueError as error:
        raise ValueError(f"{file}@{seq} cannot be read: {error}") from error
    records.append(record)
    hashes.append(hash_)


# Snapshots, by the product's own reader


def _open_snapshots(path: Path, where: str, stack: ExitStack, flaws: list[Flaw]) -> Snapshots | None:
    try:
        archive = stack.enter_context(_in_words(Archive.open, path))
        newest = {str(file): version.seq for file, version in _in_words(archive.files).items()}
    except ValueError as error:
        flaws.append(Flaw("snapshots", where, str(error)))
        return None
    return Snapshots(newest, lambda file, seq: _in_words(archive.content, file, seq))


def _in_words(read: Callable[Arguments, Parsed], *values: Arguments.args, **more: Arguments.kwargs) -> Parsed:
    """Call the product's reader, and have whatever it stumbles over as a ValueError."""
    try:
        return read(*values, **more)
    except HistoryError:
        raise
    except Exception as error:  # that it crashes on a damaged journal is a finding
        raise ValueError(f"the reader crashed: {type(error).__name__}: {error}") from error
