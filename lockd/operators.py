"""lockd's core: what operators ask of locks that others hold. No I/O."""

from common.eventlog import shorten
from common.messages import Break, Broken, CallBack, CalledBack, Refused
from common.tokens import format_token
from lockd.queues import Queues
from lockd.shared import Session, Shared


def break_hold(shared: Shared, queues: Queues, session: Session, message: Break, now_ns: int) -> None:
    """Take a lock away from who holds it under one token, and say from whom."""
    if (answer := session.answers.get(message.request)) is not None:
        shared.send(session.route, answer)
        return
    lock = shared.locks.get(message.lock)
    hold = lock.holds.get(message.token) if lock else None
    if lock is None or hold is None:
        token = format_token(message.token)
        held = ", ".join(format_token(each) for each in lock.holds) if lock else ""
        reason = (
            f"{shorten(message.lock)} is not held under token {token}, but {f'under {held}' if held else 'by nobody'}"
        )
        _refuse(shared, session, message.request, reason)
        return
    holder = shared.sessions[hold.session]
    text = f"{session.name} broke {lock.name}, held by {holder.host} under token {format_token(hold.token)}"
    shared.fault(now_ns, text)
    until_ns = queues.broken(lock, hold, f"{session.name} broke it", now_ns)
    delay_ms = 0 if lock.file else (until_ns - now_ns) // 1_000_000
    held_us = (now_ns - hold.since_ns) // 1000
    answer = Broken(shared.epoch, message.request, holder.host, hold.mode, held_us, delay_ms)
    shared.answer(session, message.request, answer)


def call_back(shared: Shared, queues: Queues, session: Session, message: CallBack) -> None:
    """Ask those who may keep a lock unused to give it back, and say who they are."""
    if (answer := session.answers.get(message.request)) is not None:
        shared.send(session.route, answer)
        return
    lock = shared.locks.get(message.lock)
    if lock is None or not lock.holds:
        _refuse(shared, session, message.request, f"{shorten(message.lock)} is held by nobody")
        return
    hosts: dict[bool, list[str]] = {True: [], False: []}
    for hold in lock.holds.values():
        hosts[hold.sticky].append(shared.sessions[hold.session].host)
    queues.recall(lock)
    answer = CalledBack(shared.epoch, message.request, tuple(sorted(hosts[True])), tuple(sorted(hosts[False])))
    shared.answer(session, message.request, answer)


def _refuse(shared: Shared, session: Session, request: int, reason: str) -> None:
    shared.figures.refusals["break"] += 1
    shared.answer(session, request, Refused(shared.epoch, request, reason, "request"))
