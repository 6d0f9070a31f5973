"""A verdict on one property, and how a check says that it does not hold."""

from dataclasses import dataclass

from scripts.verdict.evidence import PropertyName


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one property: short figures, or the first thing that is wrong."""

    name: PropertyName
    ok: bool
    detail: str


class Wrong(Exception):
    """A property does not hold: where, and what is wrong."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number and its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"
