"""The terminal of `client lock`: whether COMMAND or we are in its foreground, as shells do it for their jobs."""

import os
import signal


class Terminal:
    """This process's controlling terminal, if it has one."""

    def __init__(self) -> None:
        """Look for it."""
        try:
            self._terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._terminal = -1

    def in_front(self) -> int:
        """Return the process group in the foreground; 0 without a terminal."""
        try:
            return os.tcgetpgrp(self._terminal)
        except OSError:
            return 0

    def is_ours_alone(self) -> bool:
        """Tell whether stdin is this terminal and nobody but us is in the foreground, as a pager behind us would be."""
        group = os.getpgrp()
        try:
            if os.tcgetpgrp(0) != group:
                return False
        except OSError:
            return False
        return not any(
            name.isdigit() and int(name) != os.getpid() and _group_of(int(name)) == group
            for name in os.listdir("/proc")
        )

    def bring_to_front(self, group: int) -> None:
        """Put a process group into the foreground, if there is still a terminal."""
        # Who is not in the foreground itself is stopped for this unless it blocks the signal.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            os.tcsetpgrp(self._terminal, group)
        except OSError:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def close(self) -> None:
        """Close it."""
        if self._terminal >= 0:
            os.close(self._terminal)


def _group_of(process: int) -> int:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return 0
