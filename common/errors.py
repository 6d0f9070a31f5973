"""How a command ends: exit codes, and the one line that says what, why and what to do."""

import re
import sys
from typing import Final, NoReturn

EXIT_OK: Final = 0
EXIT_CRASHED: Final = 1
EXIT_WRONG_USE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_UNKNOWN: Final = 4


class CommandError(Exception):
    """A command cannot go on. `code` is its exit code; the text is the line for people."""

    def __init__(self, code: int, text: str) -> None:
        """Make the error that ends a command with `code`."""
        super().__init__(text)
        self.code = code


def wrong_use(text: str) -> CommandError:
    """Return the error for what is wrong in the command itself: options, names of files."""
    return CommandError(EXIT_WRONG_USE, text)


def refused(text: str) -> CommandError:
    """Return the error for what group or machine refuse; nothing happened."""
    return CommandError(EXIT_REFUSED, text)


def end_with(program: str, error: CommandError) -> NoReturn:
    """Print the error's one line to stderr and exit with its code."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", str(error))
    print(f"{program}: {line}", file=sys.stderr)
    raise SystemExit(error.code)
