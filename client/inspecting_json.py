"""What an Inspection says, for programs: dictionaries and lists that JSON knows. No I/O."""

from collections.abc import Mapping

from msgspec import Struct

from client.inspecting import Rates, rates, why_lines
from common.histogram import quantile_us
from common.messages import Inspection
from common.records import Version
from common.tokens import format_token


def as_json(inspection: Inspection, before: Inspection | None = None) -> dict[str, object]:
    """Return all of an inspection as what JSON knows, with the rates since `before`, or since lockd's start."""
    counts: dict[str, object] = {}
    for each in inspection.counts:
        if not each.kind:
            counts[each.what] = each.count
            continue
        kinds = counts.setdefault(each.what, {})
        assert isinstance(kinds, dict)
        kinds[each.kind] = each.count
    values = _plain(inspection)
    assert isinstance(values, dict)
    values["members"] = members_json(inspection)["members"]
    values["counts"] = counts
    values["durations"] = {
        each.what: {
            "count": sum(each.counts),
            "sum_us": each.sum_us,
            "p50_us": quantile_us(each.counts, 0.5),
            "p99_us": quantile_us(each.counts, 0.99),
        }
        for each in inspection.spreads
    }
    del values["spreads"]
    their = rates(inspection, before)
    values["rates"] = {name: getattr(their, name) for name in Rates.__slots__}
    return values


def members_json(inspection: Inspection) -> dict[str, object]:
    """Return the members, each with the files of the locks told, as what JSON knows."""
    files: dict[str, dict[str, object]] = {}
    for lock in inspection.locks:
        for each in lock.replicas:
            files.setdefault(each.host, {})[lock.lock] = {"standing": each.standing, "behind": each.behind}
    members: list[object] = []
    for member in inspection.members:
        values = _plain(member)
        assert isinstance(values, dict)
        members.append({**values, "files": files.get(member.host, {}) if member.replica else {}})
    return {"epoch": inspection.epoch, "members": members, "left_out": inspection.members_left_out}


def locks_json(inspection: Inspection) -> dict[str, object]:
    """Return the locks as what JSON knows."""
    return {"epoch": inspection.epoch, "locks": _plain(inspection.locks), "left_out": inspection.locks_left_out}


def why_json(inspection: Inspection, name: str) -> dict[str, object]:
    """Return what is known of one lock, and the sentences on it, as what JSON knows."""
    lock = next((_plain(lock) for lock in inspection.locks if lock.lock == name), None)
    return {"epoch": inspection.epoch, "lock": lock, "why": why_lines(inspection, name)}


def _plain(value: object, name: str = "") -> object:
    match value:
        case Version():
            return {"seq": value.seq, "token": format_token(value.token), "hash": value.hash.hex()[:12]}
        case Struct():
            names = [each for each in value.__struct_fields__ if each != "request"]
            return {each: _plain(getattr(value, each), each) for each in names}
        case tuple():
            return [_plain(each) for each in value]
        case Mapping():
            return {key: _plain(each) for key, each in value.items()}
        case int() if name == "token":
            return format_token(value)
    return value
