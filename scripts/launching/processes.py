"""The processes of a run: started on their own, heard line by line, and ended for certain."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from common.eventlog import shorten
from scripts.launching.reports import printable

_READ_BYTES: Final = 64 * 1024
_ERRORS_READ_BYTES: Final = 8 * 1024
_PR_SET_PDEATHSIG: Final = 1


class Child:
    """A process of the project. `ended` tells once it is over; then all that it said has been heard by `lines`."""

    def __init__(self, name: str, arguments: list[str], errors: Path, *, inside: Sequence[str] = ()) -> None:
        """Start `python -P -m ARGUMENTS...`, by the command `inside`; its stderr goes to the file `errors`.

        It gets a session of its own, so a Ctrl-C in the terminal reaches the launcher alone, which then ends
        all in order; and on Linux a SIGTERM of its own should the launcher be killed.
        """
        self.name, self._errors, self._heard = name, errors, b""
        self.is_told_to_end = False
        with open(errors, "wb") as file:
            self._process = subprocess.Popen(
                [*inside, sys.executable, "-P", "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                preexec_fn=tie(os.getpid()),  # noqa: PLW1509  (the launcher has one thread)
            )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout.fileno()
        os.set_blocking(self._stdout, False)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the process says something, or ends."""
        return self._stdout

    @property
    def ended(self) -> bool:
        """Tell whether the process is over."""
        return self._process.poll() is not None

    def lines(self) -> list[bytes]:
        """Return the lines that have come; a torn last one never comes."""
        while True:
            try:
                heard = os.read(self._stdout, _READ_BYTES)
            except BlockingIOError:
                break
            self._heard += heard
            if len(heard) < _READ_BYTES:
                break
        *lines, self._heard = self._heard.split(b"\n")
        return lines

    @property
    def exit_code(self) -> int:
        """Return how it ended: an exit code, or minus the signal that killed it."""
        assert self._process.returncode is not None
        return self._process.returncode

    def tell_end(self) -> str:
        """Return how it ended, in words, with the last line of its stderr."""
        code = self.exit_code
        how = f"exit code {code}"
        if code < 0:
            try:
                how = f"killed by {signal.Signals(-code).name}"
            except ValueError:
                how = f"killed by signal {-code}"
        said = self._last_words()
        return f"{how}: {said}" if said else how

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal that asks it to end."""
        self.is_told_to_end = True
        self.send(number)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def errors_hold(self, text: bytes) -> bool:
        """Tell whether its stderr holds this text."""
        try:
            return text in self._errors.read_bytes()
        except OSError:
            return False

    def close(self) -> None:
        """Reap it, killed if it still runs; drop its pipe, and its stderr's file if that is empty."""
        if not self.ended:
            self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            if not self._errors.stat().st_size:
                self._errors.unlink()
        except OSError:
            return  # somebody has removed the run's directory; it is theirs

    def _last_words(self) -> str:
        try:
            with open(self._errors, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _ERRORS_READ_BYTES))
                lines = file.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return ""
        return next((shorten(printable(line)) for line in reversed(lines) if line.strip()), "")


def tie(parent: int) -> Callable[[], None] | None:
    """Return what a child does before it begins, so that it gets SIGTERM when `parent` is gone."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)  # it was gone before

    return tie
