"""The commands that read a data directory alone: snapshots, show and diff, with or without a running client."""

import json
from collections.abc import Iterator
from pathlib import Path

from client.diff import diff as unified_diff
from client.history import Archive, HistoryError, NoArchive, Snapshot, VersionName
from common.errors import CommandError, refused, wrong_use
from common.eventlog import format_time
from common.tokens import format_token


def snapshots(directory: Path, file: str, *, as_json: bool) -> Iterator[str]:
    """Yield one line for each version of a file, oldest first; as JSON, one array. Raises CommandError."""
    try:
        with Archive.open(directory) as archive:
            if not as_json:
                for snapshot in archive.versions(file):
                    yield _line(file, snapshot)
                return
            before = "["
            for snapshot in archive.versions(file):
                yield before + json.dumps(_values(file, snapshot))
                before = ","
            yield "[]" if before == "[" else "]"
    except HistoryError as error:
        raise _told(error) from None


def show(directory: Path, file: str, seq: int) -> Iterator[bytes]:
    """Yield the content of a version, byte for byte. Raises CommandError."""
    try:
        with Archive.open(directory) as archive:
            yield archive.content(file, seq)
    except HistoryError as error:
        raise _told(error) from None


def diff(directory: Path, first: tuple[str, int], second: tuple[str, int]) -> Iterator[bytes]:
    """Yield the unified diff from one version to another. Raises CommandError."""
    try:
        with Archive.open(directory) as archive:
            yield from unified_diff(archive, VersionName(*first), VersionName(*second))
    except HistoryError as error:
        raise _told(error) from None


def _told(error: HistoryError) -> CommandError:
    """A directory without a journal is the machine's refusal; a wrong file or version is wrong use."""
    return refused(str(error)) if isinstance(error, NoArchive) else wrong_use(str(error))


def _values(file: str, snapshot: Snapshot) -> dict[str, object]:
    return {
        "file": file,
        "seq": snapshot.version.seq,
        "time": format_time(snapshot.time_us),
        "verb": snapshot.verb,
        "id": snapshot.id,
        "token": format_token(snapshot.version.token),
        "hash": snapshot.version.hash.hex(),
        "bytes": snapshot.length,
        "delta": snapshot.delta,
        "of": snapshot.of if snapshot.verb == "restore" else None,
    }


def _line(file: str, snapshot: Snapshot) -> str:
    version = snapshot.version
    op = f"{snapshot.id} {snapshot.verb}" + (f" of {file}@{snapshot.of}" if snapshot.verb == "restore" else "")
    return (
        f"{file}@{version.seq}  {format_time(snapshot.time_us)}  {version.hash.hex()[:12]}  "
        f"{format_token(version.token)}  {snapshot.length} bytes ({snapshot.delta:+d})  {op}"
    )
