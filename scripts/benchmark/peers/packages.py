"""The Python clients of the peers, in a folder of their own in .venv: what we depend on stays as it is.

`PACKAGES` goes into PYTHONPATH of the processes that need it. A new .venv has none; then they are installed again.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from common.printing import printable

PACKAGES: Final = Path(sys.prefix) / "peers"
_LOCK: Final = Path(__file__).with_name("requirements.lock")
_STAMP: Final = PACKAGES / "installed.lock"


class NotInstalled(Exception):
    """The clients could not be installed; the text says why."""


def are_installed() -> bool:
    """Tell whether all that the lock file pins is there."""
    return _STAMP.is_file() and _STAMP.read_bytes() == _LOCK.read_bytes()


def install() -> None:
    """Install what the lock file pins. Raises NotInstalled."""
    shutil.rmtree(PACKAGES, ignore_errors=True)
    pip = [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    done = subprocess.run(
        [*pip, "--require-hashes", "--target", str(PACKAGES), "--requirement", str(_LOCK)],
        env=os.environ | {"PIP_USER": "0"},  # a user's pip.conf may ask for what --target does not go with
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it said nothing"]
        raise NotInstalled(f"no Python clients; pip could not install them: {printable(errors[0])}")
    shutil.copyfile(_LOCK, _STAMP)
