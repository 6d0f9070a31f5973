"""The merge of event logs, beside the definition of its order worked out the slow way."""

from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from client.merge import Head, Merge, Source
from tests.histories import BEGIN_US, History, before, event, histories, in_causal_order


def source(heads: Iterable[Head]) -> Source:
    lines = iter(heads)
    return lambda: next(lines, None)


def merged(logs: Iterable[Iterable[Head]]) -> list[Head]:
    merge = Merge()
    for log in logs:
        merge.add(source(log))
    heads = list(merge.events())
    assert not merge.cyclic
    return heads


def by_definition(logs: list[list[Head]]) -> list[Head]:
    """Of all that nothing left comes before, the least time, then host; equal lines once."""
    left = [list(log) for log in logs]
    order = []
    while any(left):
        fronts = [log[0] for log in left if log]
        free = [head for head in fronts if not any(before(other, head) for log in left for other in log)]
        head = min(free, key=lambda head: (head.time, head.host))
        order.append(head)
        left = [log[1:] if log and log[0] == head else log for log in left]
    return order


@given(histories(), st.data())
def test_the_order_is_as_defined_whatever_logs_are_given(history: History, data: st.DataObject) -> None:
    given_logs = data.draw(st.lists(st.sampled_from(range(4)), unique=True))
    logs = [history.of(log) for log in given_logs]
    heads = merged(logs)
    assert Counter(head.line for head in heads) == Counter(head.line for log in logs for head in log)
    assert in_causal_order(heads)
    assert heads == by_definition(logs)


@given(histories(), st.data())
def test_lines_may_be_lost_anywhere(history: History, data: st.DataObject) -> None:
    kept = [head for head in history.heads if not data.draw(st.booleans())]
    logs = [[head for head in history.of(log) if head in kept] for log in range(4)]
    heads = merged(logs)
    assert len(heads) == len(kept)
    assert in_causal_order(heads)


@given(histories(), st.data())
def test_lines_of_a_copied_directory_go_once(history: History, data: st.DataObject) -> None:
    origin = history.of(0)
    copied = origin[: data.draw(st.integers(0, len(origin)))]
    clock = {**(copied[-1].clock if copied else {}), "copy": 1}
    logs = [origin, [*copied, event("copy", clock, BEGIN_US)], *[history.of(log) for log in range(1, 4)]]
    heads = merged(logs)
    assert len(heads) == len(history.heads) + 1
    assert in_causal_order(heads)
    assert heads == by_definition(logs)


class Disk:
    """Logs that are written while they are read: before each look some more of the history happens."""

    def __init__(self, history: History, steps: Iterable[int]) -> None:
        self._history = history
        self._steps = iter(steps)
        self._happened = 0
        self._read = Counter[int]()

    def source(self, log: int) -> Source:
        return lambda: self._next(log)

    def _next(self, log: int) -> Head | None:
        self._happened += next(self._steps, len(self._history.heads))
        happened = zip(self._history.heads[: self._happened], self._history.logs, strict=False)
        lines = [head for head, its in happened if its == log]
        if self._read[log] == len(lines):
            return None
        self._read[log] += 1
        return lines[self._read[log] - 1]


@given(histories(), st.lists(st.integers(0, 3)))
def test_a_live_merge_never_runs_ahead_of_what_is_being_written(history: History, steps: list[int]) -> None:
    disk = Disk(history, steps)
    merge = Merge(live=True)
    for log in range(4):
        merge.add(disk.source(log))
    heads: list[Head] = []
    for _ in range(len(steps) + 2):
        heads += merge.events()
        assert not merge.missing, "what is known of is in its log"
    assert in_causal_order(heads)
    assert sorted(head.line for head in heads) == sorted(head.line for head in history.heads)


def test_a_live_merge_waits_for_what_is_missing_until_it_is_given_up() -> None:
    first, second = event("a", {"a": 1}, 1), event("a", {"a": 2}, 2)
    later = event("b", {"a": 2, "b": 1}, 3)
    a, b = [first], [later]
    merge = Merge(live=True)
    merge.add(lambda: a.pop(0) if a else None)
    merge.add(lambda: b.pop(0) if b else None)
    assert list(merge.events()) == [first]
    assert merge.missing == {"a": 2}
    assert merge.may_come
    a.append(second)
    assert list(merge.events()) == [second, later]
    assert not merge.missing

    b.append(event("b", {"a": 4, "b": 2}, 4))
    assert list(merge.events()) == []
    merge.give_up()
    assert len(list(merge.events())) == 1


def test_a_host_without_a_log_is_waited_for_once() -> None:
    b = [event("b", {"b": 1, "x": 1}, 1), event("b", {"b": 2, "x": 5}, 2)]
    merge = Merge(live=True)
    merge.add(source(b))
    assert list(merge.events()) == []
    assert merge.missing == {"x": 1}
    assert not merge.may_come
    merge.give_up()
    assert list(merge.events()) == b


def test_a_copy_that_comes_later_begins_behind_what_has_gone_out() -> None:
    a = [event("a", {"a": 1}, 1), event("a", {"a": 2}, 2)]
    merge = Merge(live=True)
    merge.add(source(a))
    assert list(merge.events()) == a
    new = event("copy", {"a": 2, "copy": 1}, 3)
    merge.add(source([*a, new]))
    assert list(merge.events()) == [new]


def test_where_clocks_are_each_before_the_other_the_least_time_goes_first() -> None:
    first, second = event("b", {"a": 1, "b": 1}, 1), event("a", {"a": 1, "b": 1}, 2)
    merge = Merge()
    merge.add(source([second]))
    merge.add(source([first]))
    assert list(merge.events()) == [first, second]
    assert merge.cyclic


def test_two_lines_that_tell_differently_of_one_event_both_go() -> None:
    one, other = event("a", {"a": 1}, 1), event("a", {"a": 1}, 1, text="other")
    assert merged([[one], [other]]) == [one, other]
