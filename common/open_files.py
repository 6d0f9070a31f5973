"""How many files, connections among them, this process may have open at once."""

import resource


def raise_open_files() -> int:
    """Raise that number to the most that the system allows this process; return what it is now.

    The default, 1024 in most places, is kept low for programs that use select(), which none of ours does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard
