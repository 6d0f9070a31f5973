"""One seed, from its plan to its verdict."""

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass

from msgspec import Struct
from msgspec.structs import fields as struct_fields

from common.messages import Member
from common.records import Version
from common.tokens import format_token
from tests.sim.group import Group
from tests.sim.judge import judge_group
from tests.sim.plan import draw_plan
from tests.sim.processes import Broken, Inconclusive, Trace
from tests.sim.schedule import START_NS


class SimulationFailed(AssertionError):
    """A seed whose group did what it must not; the text says what, how to see it again, and its last steps."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How much a seed had to do."""

    ops: int
    steps: int
    messages: int
    elapsed_ns: int


def run_seed(seed: int, *, calm: bool = False, keep: bool = True, events: int = 50) -> Figures:
    """Run a seed to its end, a calm one without faults. Raises SimulationFailed, which shows its last `events`.

    In odd seeds clients may keep locks on files when they are done, if they do so at all (`keep`).
    """
    group = Group(draw_plan(seed, calm=calm), keep=keep and seed % 2 == 1)
    try:
        group.run()
        # What an old copy has forgotten nobody knows: its host may count some events twice.
        for finding in () if group.copied == "old copy" else judge_group(group):
            if not finding.ok:
                raise Broken(f"✘ {finding.name}: {finding.detail}")
    except Inconclusive:
        pass
    except Exception as error:
        command = f"tests.sim{' --calm' if calm else ''}{'' if keep else ' --never-keep'}"
        raise failure(command, seed, error, group.world.trace, events) from error
    ops = sum(len(actor.done) + actor.unknown for actor in group.actors)
    return Figures(ops, group.schedule.steps, group.network.carried, group.elapsed_ns)


def failure(command: str, seed: int, error: Exception, trace: Trace, events: int) -> SimulationFailed:
    """Return what tells of a seed that failed, and which `command` runs it again."""
    frames = "" if isinstance(error, Broken) else "".join(traceback.format_tb(error.__traceback__)[-4:])
    return SimulationFailed(
        f"seed {seed}: {type(error).__name__}: {error}\n{frames}"
        f"again: python -m {command} --seed {seed}\n{show_trace(trace, events)}"
    )


def show_trace(trace: Trace, events: int) -> str:
    """Return the last steps, one line each, with the time since the start in milliseconds."""
    last = list(trace)[-events:]
    return "\n".join([f"{(ns - START_NS) / 1e6:10.3f} {who:9} {show(what)}" for ns, who, what in last])


def show(value: object, name: str = "") -> str:
    """Return an event or a message on one line, without what is empty; ids are cut short."""
    match value:
        case Version():
            return str(value)
        case Member():
            return value.host
        case bytes():
            return show(value.decode("ascii", "replace"))
        case str():
            return value[:6] if re.fullmatch("[0-9a-f]{16,}", value) else repr(value)
        case int() if name in ("token", "promised", "follows", "highest_token"):
            return format_token(value)
        case tuple():
            return f"({', '.join([show(each) for each in value])})"
        case Mapping():
            return f"{{{', '.join([f'{key}: {show(each)}' for key, each in value.items()])}}}"
        case _ if is_dataclass(value) or isinstance(value, Struct):
            names = [field.name for field in (fields(value) if is_dataclass(value) else struct_fields(value))]
            pairs = [(name, getattr(value, name)) for name in names]
            inner = [f"{key}={show(each, key)}" for key, each in pairs if each not in ("", 0, (), {})]
            return f"{type(value).__name__}({', '.join(inner)})"
    return str(value)
