"""How a command ends: exit codes, and the one line that says what, why and what to do."""

import os
import re
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

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


def open_standard_streams() -> None:
    """Take the place of those that our caller has closed, before a file or a socket of ours does."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def run_command(program: str, app: Callable[..., object]) -> NoReturn:
    """Run a typer app as this process's command; whatever ends it early ends in one line on stderr."""
    import typer

    usage_error: Any = typer.BadParameter.__base__
    open_standard_streams()
    try:
        code = app(prog_name=program, standalone_mode=False)
    except CommandError as error:
        end_with(program, error)
    except usage_error as error:
        if len(sys.argv) == 1:
            print(error, file=sys.stderr)  # no arguments at all: it is the help
            raise SystemExit(EXIT_WRONG_USE) from None
        problem = error.format_message().rstrip(".")
        command = error.ctx.command_path if error.ctx else program
        end_with(program, wrong_use(f"{problem[:1].lower()}{problem[1:]}; see {command} --help"))
    except KeyboardInterrupt:
        code = 130
    if code == 130:  # typer's, too: a command that changes anything catches the signal itself
        end_with(program, CommandError(130, "ended by SIGINT; nothing was changed"))
    raise SystemExit(code if isinstance(code, int) else EXIT_OK)


def end_with(program: str, error: CommandError) -> NoReturn:
    """Print the error's one line to stderr and exit with its code."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", str(error))
    print(f"{program}: {line}", file=sys.stderr)
    raise SystemExit(error.code)
