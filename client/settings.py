"""What every command that joins the group is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

DEFAULT_LOCKD: Final = "tcp://127.0.0.1:7461"


@dataclass(frozen=True, slots=True)
class Settings:
    """Who a command is, where its data lies and which lockd it joins; None is as the directory remembers.

    Metrics are served on the host and port `metrics`, if it has them.
    """

    data: Path
    name: str | None
    lockd: str | None
    durability: Literal["disk", "memory"]
    metrics: tuple[str, int] | None = None
