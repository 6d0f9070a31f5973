"""Who may import what, and that a child process imports this project and not a namesake."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT = {
    "common": {"common"},
    "lockd": {"lockd", "common"},
    "client": {"client", "common"},
    "scripts": {"scripts", "client", "lockd", "common"},
}
"""Each package and the packages of this project that it may import."""

CORES = (
    "common.clock",
    "common.histogram",
    "common.messages",
    "common.records",
    "common.tokens",
    "common.zmtp",
    "client.core",
    "client.figures",
    "client.holder",
    "client.lock_core",
    "client.merge",
    "client.replica",
    "client.shared",
    "client.unconfirmed",
    "lockd.core",
    "lockd.deadlocks",
    "lockd.figures",
    "lockd.identities",
    "lockd.inspection",
    "lockd.locks",
    "lockd.members",
    "lockd.operators",
    "lockd.queues",
    "lockd.restart",
    "lockd.shared",
)
"""The modules without I/O. What they import from this project is held to the same rule."""

OUTSIDE_WORLD = {
    "asyncio",
    "fcntl",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "queue",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "uuid",
    "zmq",
}
"""Files, network, clocks, chance, threads and processes: a core reaches them by its effects alone."""


def source_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports_of(source: str) -> set[str]:
    """Return the dotted names that `source` imports, at any depth; of `from a import b` both a and a.b.

    What only a type checker sees is not imported.
    """
    names: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                names.add(module)
                names.update(f"{module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                raise ValueError(f"line {node.lineno} holds a relative import")
    return names


def modules_of(package: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each module of a package with what it imports."""
    for file in sorted((ROOT / package).rglob("*.py")):
        yield str(file.relative_to(ROOT)), imports_of(file.read_text(encoding="utf-8"))


def reach_of(core: str) -> dict[str, set[str]]:
    """Return `core` and every module of this project that it brings in, each with what it imports."""
    reached: dict[str, set[str]] = {}
    waiting = [core]
    while waiting:
        module = waiting.pop()
        file = source_of(module)
        if module in reached or module.partition(".")[0] not in MAY_IMPORT or file is None:
            continue
        reached[module] = imports_of(file.read_text(encoding="utf-8"))
        waiting += [*reached[module], module.rpartition(".")[0]]
    return reached


def test_imports_are_found_at_any_depth() -> None:
    source = "import os.path\ndef f():\n    from time import sleep\n    from common import clock as c\n"
    assert imports_of(source) == {"os.path", "time", "time.sleep", "common", "common.clock"}
    with pytest.raises(ValueError, match="line 1"):
        imports_of("from . import core")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    ours = {*MAY_IMPORT, "tests"}
    wrong = {
        f"{module} imports {name}"
        for module, names in modules_of(package)
        for name in names
        if name.partition(".")[0] in ours - MAY_IMPORT[package]
    }
    assert not wrong


@pytest.mark.parametrize("core", CORES)
def test_a_core_has_no_io(core: str) -> None:
    assert source_of(core) is not None, f"{core} has moved: name it anew in CORES"
    wrong = {
        f"{module} imports {name}"
        for module, names in reach_of(core).items()
        for name in names
        if name.partition(".")[0] in OUTSIDE_WORLD
    }
    assert not wrong


def test_one_module_knows_msgpack() -> None:
    packages = ("common", "lockd", "client")
    users = [module for package in packages for module, names in modules_of(package) if "msgspec.msgpack" in names]
    assert users == ["common/wire.py"]


STORAGE = ("event_file", "journal", "journal_change", "journal_format", "journal_log", "plainfiles")
"""The modules of the client that reach their files through a client.disk.Disk alone."""


@pytest.mark.parametrize("module", STORAGE)
def test_the_storage_reaches_the_disk_in_one_way(module: str) -> None:
    names = {
        node.attr
        for node in ast.walk(ast.parse((ROOT / "client" / f"{module}.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    assert {name for name in names if not name.startswith("O_")} <= {"path", "stat_result", "strerror", "urandom"}


def imported_by_a_child(directory: Path, *options: str) -> list[Path]:
    """Run this module in a Python started in `directory`; return the folders it imports the packages from."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, *options, "-m", "tests.test_imports"]
    child = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    return [Path(line).parent for line in child.stdout.splitlines()]


def test_a_child_imports_this_project_wherever_it_starts(tmp_path: Path) -> None:
    foreign = tmp_path / "common"
    foreign.mkdir()
    (foreign / "__init__.py").touch()
    ours = [ROOT / package for package in MAY_IMPORT]
    assert imported_by_a_child(tmp_path, "-P") == ours
    assert imported_by_a_child(tmp_path) == [foreign, *ours[1:]], "without -P the namesake wins"


if __name__ == "__main__":
    for name in MAY_IMPORT:
        print(importlib.import_module(name).__file__)
