"""Whether the replicas of a run hold the same newest versions, by their journals."""

from collections.abc import Sequence
from pathlib import Path

from client.history import Archive, HistoryError


def disagreement(directories: Sequence[Path]) -> str:
    """Return "" where all replicas hold the same newest versions, else one that does not, in words.

    It reads the journals beside their running clients. A file at version 0 is as good as none.
    """
    newest: dict[str, tuple[int, bytes, str]] = {}
    held: dict[str, dict[str, tuple[int, bytes]]] = {}
    for directory in directories:
        try:
            with Archive.open(directory) as archive:
                heads = {file: (version.seq, version.hash) for file, version in archive.files().items()}
        except HistoryError as error:
            return f"{directory.name} cannot be read: {error}"
        held[directory.name] = heads
        for file, (seq, digest) in heads.items():
            if seq > newest.get(file, (0, b"", ""))[0]:
                newest[file] = (seq, digest, directory.name)
    for name, heads in held.items():
        for file, (seq, digest, first) in newest.items():
            own_seq, own_digest = heads.get(file, (0, b""))
            if own_seq != seq:
                return f"{name} holds {file}@{own_seq}, and {first} {file}@{seq}"
            if own_digest != digest:
                return f"{name} and {first} hold different bytes of {file}@{seq}"
    return ""
