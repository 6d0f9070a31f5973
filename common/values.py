"""Dataclasses that nobody changes after they are made, at the price of ordinary ones.

A frozen dataclass sets each field by a call, which is most of what a message costs to make. So the type checker,
which runs with the tests, sees `frozen=True`, and at run time the class is an ordinary one with a hash.
"""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen, slots):
        """Make a dataclass; `frozen` is for the type checker."""
        assert frozen
        return dataclasses.dataclass(slots=slots, unsafe_hash=True)


__all__ = ("dataclass",)
