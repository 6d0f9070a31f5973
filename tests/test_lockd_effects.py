"""lockd's effects: durable changes that can be are synced together, and none comes behind what tells of it."""

from hypothesis import given
from hypothesis import strategies as st

from common.grantlog import GrantLine
from common.messages import Pong
from common.tokens import make_token
from lockd.effects import Effect, KeepLeft, LogGrant, Note, Persist, Send, SessionEnded, synced_together

LINE = LogGrant(GrantLine(1, "grant", "a", "exclusive", make_token(1, 1), "a", ()))
OTHERS = st.sampled_from([Note("a"), Send(b"a", Pong(1, 1, 1)), LINE])


def persist(*sessions: int) -> Persist:
    return Persist(tuple([SessionEnded(session) for session in sessions]))


def test_hellos_that_came_together_are_one_durable_change() -> None:
    told: list[Effect] = [Note("1 is open"), Send(b"1", Pong(1, 1, 1))]
    assert synced_together([persist(1), *told, persist(2), *told, persist(3, 4)]) == [persist(1, 2, 3, 4), *told, *told]


def test_what_is_written_behind_keeps_its_place_among_durable_changes() -> None:
    effects: list[Effect] = [persist(1), LINE, persist(2), Note("a"), persist(3), LINE]
    assert synced_together(effects) == [persist(1), LINE, persist(2, 3), Note("a"), LINE]


@given(st.lists(OTHERS | st.just(None)))
def test_each_change_is_made_once_and_no_later_than_before(drawn: list[Effect | None]) -> None:
    effects: list[Effect] = [persist(place) if effect is None else effect for place, effect in enumerate(drawn)]
    together = synced_together(effects)
    assert [effect for effect in together if not isinstance(effect, Persist)] == [
        effect for effect in effects if not isinstance(effect, Persist)
    ]
    assert changes(together) == changes(effects)
    for line in (LogGrant, KeepLeft):
        # Between the same two lines of what is written behind.
        assert durable_between(together, line) == durable_between(effects, line)
    for stood, stands in zip(told_after(effects), told_after(together), strict=True):
        assert stood <= stands


def changes(effects: list[Effect]) -> list[object]:
    return [change for effect in effects if isinstance(effect, Persist) for change in effect.changes]


def durable_between(effects: list[Effect], kind: type) -> list[int]:
    counts = [0]
    for effect in effects:
        if isinstance(effect, kind):
            counts.append(0)
        elif isinstance(effect, Persist):
            counts[-1] += len(effect.changes)
    return counts


def told_after(effects: list[Effect]) -> list[int]:
    """Return of each effect that is no Persist how many changes stand before it."""
    counts, durable = [], 0
    for effect in effects:
        if isinstance(effect, Persist):
            durable += len(effect.changes)
        else:
            counts.append(durable)
    return counts
