"""Event lines that a crash has separated from the journal: each stands before the change that it tells of."""

from collections.abc import Iterable, Iterator

from client.effects import History
from common.eventlog import Event


def loose(newest: Iterable[Event], history: History) -> Iterator[Event]:
    """Yield the lines, newest first, whose change is not in the journal.

    Only the last batch of lines can be: undos of what a change of the journal was to replace, and then what it was
    to add, all of one file. An undo is loose if its version is still held, the others if theirs is not.

    Behind them may stand what an earlier start has said of the newest of them, until a crash broke it off: a line for
    each, the newest one's first. These are walked past, and as many lines before them.
    """
    file, corrected = None, 0
    for event in newest:
        try:
            name, seq, digest = event.values["file"], int(event.values["seq"]), event.values["hash"]
        except (KeyError, ValueError):
            return  # no line of ours
        if event.verb == "read" or file not in (None, name):
            return
        file = name
        if event.values.get("from") == event.host:
            corrected += 1
            continue
        if corrected:
            corrected -= 1
            continue
        version = history.version_at(name, seq)
        held = version is not None and version.hash.hex().startswith(digest)
        if held == (event.verb != "undo"):
            return
        yield event
