"""The instances of the model that are checked, and its rules, each with the instance in which it is missed."""

from dataclasses import dataclass, replace
from typing import Final

GUARANTEES: Final = ("NothingLost", "NoDirtyRead", "NoStaleRead", "NoFork")
"""What clients are promised."""
INVARIANTS: Final = (*GUARANTEES, "CleanMeans", "Exclusion", "NoOldToken", "TokensRise", "FollowsMeans")


@dataclass(frozen=True)
class Instance:
    """The size of a model: `members` of the `replicas` are in sync at first, `tokens` grants, logs of `changes` ops.

    Where `before` is given, the members have so many ops at first, and tokens and changes come on top of it. So many
    `fetches` are under way at once.
    """

    replicas: int
    tokens: int
    changes: int
    members: int = 2
    reading: bool = False
    before: int = 0
    fetches: int = 0
    parts: bool = False
    restarts: bool = False

    def __str__(self) -> str:
        fetches = f"{self.fetches} fetch" + "es" * (self.fetches > 1) + " in parts" * self.parts
        more = [("reads", self.reading), (fetches, self.fetches > 0), ("restarts of lockd", self.restarts)]
        parts = [
            f"{self.replicas} replicas, {self.members} in sync",
            *([f"{self.before} changes before"] if self.before else []),
            f"{self.tokens} grant" + "s" * (self.tokens > 1),
            f"{self.changes} change" + "s" * (self.changes > 1),
            *[word for word, there in more if there],
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Rule:
    """A rule, what it says, and where a guarantee is seen to break without it."""

    name: str
    says: str
    missed_in: Instance
    guarantees: tuple[str, ...] = GUARANTEES


QUICK: Final = (Instance(2, 2, 2, reading=True, restarts=True),)
FULL: Final = (
    *QUICK,
    Instance(2, 3, 2, reading=True, restarts=True),
    Instance(2, 3, 2, reading=True, fetches=1, parts=True, restarts=True),
    Instance(2, 4, 3, reading=True, restarts=True),
    Instance(3, 2, 1, reading=True, restarts=True),
    Instance(3, 2, 1, fetches=1),
    Instance(3, 1, 1, before=2, fetches=1, parts=True),
    Instance(3, 3, 2),
)

_PAIR: Final = Instance(2, 3, 2)
_SHORT: Final = Instance(2, 2, 1)
_READERS: Final = replace(_PAIR, reading=True)
_RESTARTED: Final = replace(_PAIR, restarts=True)
_FETCHED: Final = replace(_PAIR, fetches=1)
_FETCHED_BEHIND: Final = Instance(2, 3, 1, before=1, fetches=1)
_LATE_IN_PARTS: Final = Instance(2, 2, 1, before=1, fetches=1, parts=True)
_IN_PARTS: Final = Instance(3, 1, 1, before=2, fetches=1, parts=True)

RULES: Final = (
    Rule("member", "a file's lock goes only to a member of the in-sync set", _PAIR),
    Rule("alone", "an exclusive hold is alone", _READERS),
    Rule("cleanrelease", "a release leaves the file clean only if the whole set has acked", _READERS),
    Rule("endunclean", "the end of an exclusive holder's session leaves the file unclean", _PAIR),
    Rule("restartunclean", "a restart of lockd leaves the file unclean", _RESTARTED),
    Rule("settle", "the holder of an unclean file settles before all else", _READERS),
    Rule("recheck", "a holder looks at its promise again before it does its op", _PAIR, ("Exclusion",)),
    Rule("ackall", "an op is acknowledged when the whole set has acked", _PAIR),
    Rule("drop", "only lockd takes a member out, durably", _PAIR),
    Rule("confirm", "a read is given out when lockd has confirmed its token", _READERS),
    Rule("final", "a release that was sent is final", _PAIR),
    Rule("fence", "a replica refuses a token below the one promised", _PAIR),
    Rule("promise", "a promise is durable in a record of its own", _PAIR, ("NoOldToken",)),
    Rule("follows", "a promise alone follows nothing", _PAIR, ("CleanMeans",)),
    Rule("replace", "the first push under a newer token replaces all behind the common prefix", _PAIR),
    Rule("adds", "under the followed token a push only adds", _PAIR),
    Rule("fetchtoken", "a fetched answer is taken in like a push", _FETCHED),
    Rule(
        "fetchfollows",
        "it carries the token that its source follows, not the one promised",
        _FETCHED_BEHIND,
        ("CleanMeans",),
    ),
    Rule("fetchfence", "one whose token is below the one promised is dropped", _FETCHED_BEHIND),
    Rule(
        "partwaits", "a part that is not newer, and does not only go on at the head, waits for the rest", _LATE_IN_PARTS
    ),
    Rule(
        "partrises",
        "and one whose last op's token is below the one followed",
        replace(_FETCHED, parts=True),
        ("TokensRise",),
    ),
    Rule(
        "parttoken",
        "one that does not is taken in under its last op's token, not the answer's",
        _IN_PARTS,
        ("FollowsMeans",),
    ),
    Rule("admithead", "a learner is admitted only at the clean version", _PAIR),
    Rule("admittoken", "and only if it follows at least the token that left it clean", _SHORT, ("CleanMeans",)),
    Rule("admitfree", "and only while the lock is free", _PAIR),
    Rule("newid", "a wiped data directory is a new replica", _PAIR),
    Rule("durableset", "the in-sync set is durable", _RESTARTED),
    Rule("epoch", "tokens rise over a restart of lockd", replace(_SHORT, restarts=True)),
    Rule("forgetnew", "lockd forgets a file only if no token has left it clean", _PAIR, ("CleanMeans",)),
)


def config(instance: Instance, without: Rule | None = None) -> str:
    """Return TLC's configuration of an instance, with all rules, or `without` one, and then its guarantees alone."""
    names = [f"r{number}" for number in range(1, instance.replicas + 1)]
    constants = {
        **{name: name for name in names},
        "Replicas": f"{{{', '.join(names)}}}",
        "Members": instance.members,
        "Before": instance.before,
        "Tokens": instance.before + instance.tokens,
        "Changes": instance.before + instance.changes,
        "Reading": str(instance.reading).upper(),
        "Fetches": instance.fetches,
        "Parts": str(instance.parts).upper(),
        "Restarts": str(instance.restarts).upper(),
        "Rules": "{" + ", ".join(f'"{rule.name}"' for rule in RULES if rule is not without) + "}",
    }
    lines = [
        "CONSTANTS",
        *[f" {name} = {value}" for name, value in constants.items()],
        "SPECIFICATION Spec",
        "SYMMETRY Symmetry",
        "VIEW View",
        "INVARIANTS " + " ".join(without.guarantees if without else INVARIANTS),
    ]
    return "\n".join(lines) + "\n"
