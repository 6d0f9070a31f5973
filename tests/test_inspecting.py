"""What an Inspection says to people and programs: rows, sentences, JSON; and what an onlooker asks, and when."""

import json
import re
from typing import Final

import pytest
from msgspec.structs import replace

from client.inspecting import (
    LOCK_COLUMNS,
    MEMBER_COLUMNS,
    duration,
    fault_lines,
    lock_rows,
    member_rows,
    rates,
    status_lines,
    top_lines,
    why_lines,
)
from client.inspecting_json import as_json, locks_json, members_json, why_json
from client.tables import fit, table_lines
from client.top import Onlooker
from common.messages import (
    Count,
    Fault,
    HolderState,
    Inspect,
    Inspection,
    LockState,
    MemberState,
    Message,
    Mode,
    Reason,
    ReplicaState,
    Spread,
    Stale,
    WaiterState,
)
from common.printing import printable
from common.records import Version
from common.tokens import make_token

S: Final = 1_000_000_000
SEQUENCE: Final = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE: Final = "\x1b[2J\x9b31m\u202e[red]x[/red][link=http://x]<script>alert(1)</script>"
SHOWN: Final = "\\u001b[2J\\u009b31m\\u202e[red]x[/red][link=http://x]<script>alert(1)</script>"

ANNA = MemberState("anna", "anna", "a" * 16, 1, 3, True, 200, 2800, 1, 0, 0, (), 0)
BEN = MemberState("ben", "ben", "b" * 16, 0, 1, False, None, 0, 1, 0, 0, ("notes.txt", HOSTILE), 3)
CORA = MemberState("cora", "cora", "c" * 16, 3, 1, False, 1500, 20, 0, 1, None, (), 0)
JOB = MemberState("job", "job", "", 4, 0, True, 10, 2990, 0, 0, 0, (), 0)
AT_42 = Version(42, make_token(1, 9), bytes(range(16)))


def a_lock(name: str = "notes.txt", **changes: object) -> LockState:
    holder = HolderState("anna", make_token(1, 42), "exclusive", 1_200_000, True, 200, 2800, False)
    replicas = (
        ReplicaState("anna", "in sync", 0, 900),
        ReplicaState("ben", "absent", 0, None),
        ReplicaState("cora", "learner", 3, 5),
    )
    lock = LockState(name, "file", 0, 0, True, AT_42, (holder,), 0, (waiter("ben", "holder"),), 0, replicas, 0)
    return replace(lock, **changes)


def waiter(host: str, why: Reason, mode: Mode = "exclusive") -> WaiterState:
    return WaiterState(host, mode, 800_000, why)


def an_inspection(**changes: object) -> Inspection:
    inspection = Inspection(
        epoch=2,
        request=7,
        time_us=1_795_000_010_000_000,
        since_us=1_795_000_000_000_000,
        group="0123456789abcdef",
        ttl_ms=3000,
        grace_ms=0,
        expected=(),
        replicas=2,
        others=2,
        files=1,
        unclean=0,
        lost=0,
        members=(ANNA, CORA, JOB, BEN),
        members_left_out=0,
        locks=(a_lock(),),
        locks_left_out=0,
        counts=(Count("grants", "exclusive", 30), Count("grants", "shared", 10), Count("settles", "", 2)),
        spreads=(Spread("waits", (0, 0, 40), 100), Spread("ops", (0, 0, 0, 0, 20), 200)),
        faults=(Fault(1_795_000_007_000_000, f"anna lost {HOSTILE}"),),
    )
    return replace(inspection, **changes)


# Rows


def test_a_member_is_up_down_or_absent_and_what_is_not_known_is_a_question_mark() -> None:
    assert [row[:9] for row in member_rows(an_inspection())] == [
        ("anna", "replica", "up", "1", "0", "0", "200 ms", "2", "3"),
        ("cora", "replica", "down", "0", "1", "?", "1.5 s", "2", "1"),
        ("job", "no replica", "up", "–", "–", "–", "10 ms", "2", "–"),
        ("ben", "replica", "absent", "1", "0", "0", "?", "?", "1"),
    ]
    assert member_rows(an_inspection())[3][9] == f"notes.txt, {SHOWN}, and 3 more"


def test_a_lock_has_a_row_for_each_holder_and_waiter() -> None:
    plain = LockState("job", "plain", 0, 0, True, None, (), 0, (), 0, (), 0)
    unclean = a_lock("x", clean=False, version=None, holders=(), queue=(), queue_left_out=4)
    assert lock_rows(an_inspection(locks=(a_lock(), plain, unclean))) == [
        ("notes.txt", "clean @42", "1/2 +1", "anna", "exclusive", "1.42", "1.2 s", "holds"),
        ("", "", "", "ben", "exclusive", "", "800 ms", "is next"),
        ("job", "no file", "–", "", "", "", "", "free"),
        ("x", "unclean ?", "1/2 +1", "and 4 more", "", "", "", "wait"),
    ]


@pytest.mark.parametrize(
    ("us", "text"),
    [
        *[(None, "–"), (0, "0 µs"), (999, "999 µs"), (1500, "1.5 ms"), (12_345, "12 ms"), (999_000, "999 ms")],
        *[(1_200_000, "1.2 s"), (60_000_000, "1 m 0 s"), (192_000_000, "3 m 12 s"), (7_500_000_000, "2 h 5 m")],
        (360_000_000_000, "4 d 4 h"),
    ],
)
def test_durations_have_two_digits_or_so(us: float | None, text: str) -> None:
    assert duration(us) == text


# Sentences


def test_why_says_who_holds_it_and_how_healthy_that_one_is() -> None:
    assert why_lines(an_inspection(), "notes.txt") == [
        "notes.txt is clean at version 42 (000102030405)",
        "in sync: anna",
        "in the in-sync set, but absent: ben",
        "cora is catching up: 3 versions behind as it last said",
        (
            "anna holds it exclusively under token 1.42 for 1.2 s; its connection is up, it was heard of 200 ms ago, "
            "its lease has 2.8 s left"
        ),
        "1. ben (exclusive) waits 800 ms for anna's exclusive hold; it is next",
    ]


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("turn", "ben (shared) waits 800 ms for its turn: 1 other asked before it"),
        ("disconnected", "ben (shared) waits 800 ms: its own connection is down, and it keeps its place"),
        ("learning", "ben (shared) waits 800 ms: it is not in the in-sync set, and is catching up"),
        ("learner", "ben (shared) waits 800 ms: it is next, when a learner that asked before it has caught up"),
        ("absent", "ben (shared) waits 800 ms: only absent clients hold the newest version: ben; start one"),
        ("grace", "ben (shared) waits 800 ms: the grace after lockd's start, 400 ms left for dora"),
    ],
)
def test_why_says_what_a_waiter_waits_for(reason: Reason, sentence: str) -> None:
    lock = a_lock(queue=(waiter("anna", "holder"), waiter("ben", reason, "shared")))
    inspection = an_inspection(locks=(lock,), grace_ms=400, expected=("dora",))
    assert why_lines(inspection, "notes.txt")[-1] == f"2. {sentence}"


def test_why_names_who_may_owe_an_ack() -> None:
    """The holder is in good health, and waits for a replica that is not."""
    replicas = (
        ReplicaState("anna", "in sync", 0, 200),
        ReplicaState("cora", "in sync", 0, 2_900),
        ReplicaState("dora", "in sync", 0, 1_000),
        ReplicaState("emil", "learner", 3, 2_900),
        ReplicaState("ben", "absent", 0, None),
    )
    lines = why_lines(an_inspection(locks=(a_lock(replicas=replicas),)), "notes.txt")
    assert [line for line in lines if "ack" in line] == [
        "cora is in sync, and was heard of 2.9 s ago: a change of anna waits for its ack"
    ]
    free = a_lock(replicas=replicas, holders=(), queue=())
    assert not [line for line in why_lines(an_inspection(locks=(free,)), "notes.txt") if "ack" in line]


def test_why_of_what_is_free_lost_or_unknown() -> None:
    free = a_lock(holders=(), queue=())
    assert why_lines(an_inspection(locks=(free,)), "notes.txt")[-1] == "nobody holds it, and nobody waits for it"
    lost = a_lock(holders=(), queue=(), clean=False, replicas=(ReplicaState("ben", "absent", 0, None),))
    assert why_lines(an_inspection(locks=(lost,)), "notes.txt") == [
        "notes.txt is unclean, its next holder settles it first; acknowledged is version 42 (000102030405)",
        "only absent clients hold the newest version: ben; start one",
        "nobody holds it, and nobody waits for it",
    ]
    (unknown,) = why_lines(an_inspection(locks=()), "x\x1b")
    assert unknown.startswith("nothing is known of x\\u001b: it is no file of this group")


def test_two_shared_holders_are_both_named() -> None:
    one = HolderState("anna", 1, "shared", 5, False, 1, 1, False)
    lock = a_lock(holders=(one, replace(one, host="cora")), holders_left_out=2)
    lines = why_lines(an_inspection(locks=(lock,)), "notes.txt")
    assert "its connection is down" in lines[4]
    assert lines[-2:] == [
        "and 2 more hold it",
        "1. ben (exclusive) waits 800 ms for anna's shared hold and cora's shared hold; it is next",
    ]


def test_the_status_tells_losses_and_faults() -> None:
    text = "\n".join(status_lines(an_inspection(unclean=1, lost=1)))
    assert "files     1, 1 unclean, of 1 the newest version is absent" in text
    assert "grants    40, 4.0/s, 0 unclean; wait p99 4 µs" in text
    assert f"fault     3.0 s ago: anna lost {SHOWN}" in text


# Rates


def test_rates_are_between_two_readings_of_one_lockd() -> None:
    now = an_inspection()
    before = replace(
        now,
        time_us=now.time_us - 2_000_000,
        counts=(Count("grants", "exclusive", 28), Count("grants", "shared", 10)),
        spreads=(Spread("waits", (0, 0, 38), 90), Spread("ops", (0, 0, 0, 0, 16), 180)),
    )
    between = rates(now, before)
    assert (between.grants_per_s, between.ops_per_s, between.over_s, between.since_start) == (1, 2, 2, False)
    assert between.op_p99_us == pytest.approx(16, rel=0.01)
    assert top_lines(now, between)[1].startswith("now: 1.0/s grants, 2.0/s ops; p99 of waits 4 µs, of ops 16 µs")
    for other in (None, replace(before, epoch=1), replace(before, since_us=1)):
        since_start = rates(now, other)
        assert (since_start.grants_per_s, since_start.over_s, since_start.since_start) == (4, 10, True)


def test_without_anything_between_there_is_no_quantile() -> None:
    now = an_inspection()
    assert rates(now, replace(now, time_us=now.time_us - 1_000_000)).wait_p99_us is None


# JSON


def test_json_has_everything_by_name() -> None:
    values = json.loads(json.dumps(as_json(an_inspection())))
    assert values["counts"] == {"grants": {"exclusive": 30, "shared": 10}, "settles": 2}
    assert values["durations"]["waits"]["count"] == 40
    assert values["rates"]["grants_per_s"] == 4
    assert values["locks"][0]["holders"][0]["token"] == "1.42"
    assert values["locks"][0]["version"] == {"seq": 42, "token": "1.9", "hash": "000102030405"}
    (lock,) = json.loads(json.dumps(locks_json(an_inspection())))["locks"]
    assert lock == values["locks"][0]
    assert why_json(an_inspection(), "notes.txt")["lock"] == lock
    assert why_json(an_inspection(), "x")["lock"] is None


def test_a_member_s_json_has_its_files() -> None:
    members = json.loads(json.dumps(members_json(an_inspection())))["members"]
    assert {member["host"]: member["files"] for member in members} == {
        "anna": {"notes.txt": {"standing": "in sync", "behind": 0}},
        "ben": {"notes.txt": {"standing": "absent", "behind": 0}},
        "cora": {"notes.txt": {"standing": "learner", "behind": 3}},
        "job": {},
    }


# Hostile names


def test_what_is_not_printable_is_escaped() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("Grüße, 日本 <b>") == "Grüße, 日本 <b>"


def test_no_name_acts_on_a_terminal_or_on_rich() -> None:
    lock = a_lock(HOSTILE, queue=(waiter("ben", "turn"),))
    inspection = an_inspection(locks=(lock,))
    for styled in (False, True):
        text = "\n".join(
            [
                *table_lines(LOCK_COLUMNS, lock_rows(inspection), None, styled=styled),
                *table_lines(MEMBER_COLUMNS, member_rows(inspection), None, styled=styled),
            ]
        )
        assert text.count(SHOWN) == 2
        assert HOSTILE not in text
        assert "\x1b]8" not in text, "no link"
        assert "\x9b" not in text
        assert ("\x1b" in text) is styled
    lines = [*why_lines(inspection, HOSTILE), *status_lines(inspection), *fault_lines(inspection, 9)]
    assert all(line.isprintable() for line in lines)
    assert sum(SHOWN in line for line in lines) == 4
    assert json.dumps(as_json(inspection)).isprintable()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_tables_fit_and_keep_the_names(width: int) -> None:
    inspection = an_inspection(locks=(a_lock("日本" * 40), a_lock("x" * 100)))
    for columns, rows in ((MEMBER_COLUMNS, member_rows(inspection)), (LOCK_COLUMNS, lock_rows(inspection))):
        lines = table_lines(columns, rows, width)
        assert all(line == fit(line, width) for line in lines)
        assert len(lines) == len(rows) + 1
        if width >= 40:
            assert lines[0].startswith(columns[0])


def test_a_table_that_is_too_high_says_what_it_leaves_out() -> None:
    rows = [(f"c{number}", "replica") for number in range(9)]
    lines = table_lines(("MEMBER", "ROLE"), rows, 80, height=5)
    assert [line.split()[0] for line in lines] == ["MEMBER", "c0", "c1", "c2", "and"]
    assert lines[-1] == "and 6 more rows"


# The onlooker


class Looking:
    """An onlooker with a lockd that says what a test makes it say."""

    def __init__(self) -> None:
        self.now_ns = 100 * S
        self.onlooker = Onlooker(S, self.now_ns)
        self.sent: list[Message] = self.onlooker.connected(True, self.now_ns)

    def pass_time(self, duration_ns: int) -> None:
        end_ns = self.now_ns + duration_ns
        while self.onlooker.deadline_ns() <= end_ns:
            self.now_ns = max(self.now_ns + 1, self.onlooker.deadline_ns())
            self.sent += self.onlooker.tick(self.now_ns)
        self.now_ns = max(self.now_ns, end_ns)

    def answer(self, back: int = 1) -> bool:
        """Answer the newest request, or one before it."""
        inspect = self.sent[-back]
        assert isinstance(inspect, Inspect)
        if back == 1:
            self.sent = []
        return self.onlooker.take(an_inspection(request=inspect.request), self.now_ns)


def test_an_onlooker_asks_once_an_interval() -> None:
    looking = Looking()
    assert looking.answer()
    looking.pass_time(S - 1)
    assert not looking.sent
    looking.pass_time(1)
    assert looking.answer()
    now, before = looking.onlooker.seen
    assert now is not None
    assert before is not None
    assert looking.onlooker.silent_ns(looking.now_ns) == 0


def test_an_onlooker_asks_a_silent_lockd_again_and_knows_for_how_long_it_was() -> None:
    looking = Looking()
    looking.answer()
    looking.pass_time(4 * S)
    assert len(looking.sent) == 4
    assert looking.onlooker.silent_ns(looking.now_ns) == 3 * S
    assert not looking.answer(back=2), "it has asked anew since"
    assert not looking.onlooker.take(Stale(2), looking.now_ns)
    assert looking.onlooker.silent_ns(looking.now_ns) == 3 * S
    assert looking.answer()
    assert looking.onlooker.silent_ns(looking.now_ns) == 0


def test_an_onlooker_says_nothing_without_a_connection_and_asks_when_it_is_back() -> None:
    looking = Looking()
    looking.answer()
    looking.onlooker.connected(False, looking.now_ns)
    looking.pass_time(5 * S)
    assert not looking.sent
    assert looking.onlooker.silent_ns(looking.now_ns) == 5 * S
    looking.sent += looking.onlooker.connected(True, looking.now_ns)
    assert looking.answer()
