"""What the commands that read runs have in common on their command lines."""

import argparse
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Tell it on stderr."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_run_directories(parser: argparse.ArgumentParser) -> None:
    """Let the command take one or more RUN_DIRs, as `directories`."""
    parser.add_argument(
        "directories",
        nargs="+",
        metavar="RUN_DIR",
        type=Path,
        help="what scripts/launch made, or the data directories of clients and lockd, in any order",
    )
