"""The commands as typed: what is wrong is told in one line, with the exit code of its kind, and nothing happens."""

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import client.cli
import lockd.cli
from common.errors import EXIT_CRASHED, EXIT_OK, EXIT_REFUSED, EXIT_WRONG_USE
from tests.group import Done, Group, refusal

COMMANDS = ("serve", "run", "read", "write", "update", "restore", "snapshots", "show", "diff")
PROGRAMS = {"client": client.cli.main, "lockd": lockd.cli.main}
UNSET = {"LOCKSTEP_LOCKD": ""}
"""The environment of a command that is not to find the group's lockd there."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Give all tests of this file one group: lockd, and a client that is up on `a`."""
    with Group(tmp_path_factory.mktemp("up")) as group:
        group.lockd()
        group.serving("a")
        yield group


def told(group: Group, arguments: str | list[str], program: str = "client") -> tuple[int, str]:
    """Run a command that must fail; return its exit code and its one line."""
    words = arguments.split() if isinstance(arguments, str) else arguments
    done = group.start(program, *words).end()
    return done.code, refusal(done, program)


class Typist:
    """Runs commands in this process, in an empty directory: for those that end before they reach anything."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        for variable in ("LOCKSTEP_DATA", "LOCKSTEP_NAME", "LOCKSTEP_LOCKD"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.chdir(directory)
        self._directory, self._monkeypatch, self._capfd = directory, monkeypatch, capfd

    def types(self, arguments: list[str], program: str = "client") -> Done:
        """Run a command to its end."""
        self._monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[program]()
        out, err = self._capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, out.encode(), err)

    def is_wrong(self, arguments: list[str], program: str = "client") -> str:
        """Run a command that must be wrong use; return its one line."""
        done = self.types(arguments, program)
        assert done.code == EXIT_WRONG_USE
        assert list(self._directory.iterdir()) == [], "nothing is made"
        return refusal(done, program)


@pytest.fixture
def typist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Typist:
    return Typist(tmp_path, monkeypatch, capfd)


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("erase x", "no such command 'erase'; see client --help"),
        ("--data a", "no such option: --data; see client --help"),
        ("write --nope a b", "no such option: --nope"),
        ("write --data a", "missing argument 'FILE'; see client write --help"),
        ("write notes.txt --data a", "missing argument 'TEXT'; see client write --help"),
        ("read a b --data a", "got unexpected extra argument(s) (b); see client read --help"),
        ("serve a", "got unexpected extra argument(s) (a)"),
        ("serve --data", "option '--data' requires an argument"),
        ("run --ops many --data a", "invalid value for '--ops': 'many' is not a valid int"),
        ("run --ops 0 --data a", "--ops 0: at least 1 op is needed"),
        ("run --ops -1 --data a", "--ops -1: at least 1 op is needed"),
        ("run --group 0 --data a", "--group 0: at least 1 replica is needed"),
        ("run --delay 5..1 --data a", "--delay 5..1: A..B needs 0 <= A <= B, in seconds"),
        ("run --delay fast --data a", "--delay fast: a delay reads A..B in seconds, like 0.0..0.2"),
        ("run --lines nowhere --data a", "--lines nowhere: it cannot be read (No such file or directory)"),
        ("run --file ../x --data a", "FILE '../x': a file's name has no empty part, '.' or '..'"),
        ("run --file x/y --file x --data a", "--file x/y: x is a file of this run"),
        ("run --wait long --data a", "--wait: a duration reads like 3s, 500ms or 1.5m, not 'long'"),
        ("write x y --wait -1s --data a", "--wait: a duration reads like 3s, 500ms or 1.5m, not '-1s'"),
        ("serve --data a --lockd here", "--lockd here: an endpoint reads tcp://HOST:PORT or ipc://PATH"),
        ("serve --data a --lockd tcp://here:0", "--lockd tcp://here:0: '0' is no port; use 1 to 65535"),
        ("serve --data a --lockd tcp://here:*", "--lockd tcp://here:*: '*' is no port; use 1 to 65535"),
        ("serve --data a --name a/b", "--name 'a/b': a client's name holds only letters, digits"),
        ("serve --data a --durability paper", "--durability paper: it is disk or memory"),
        ("serve --data spaced/.. --name ", "--name '': a client's name cannot be empty"),
        ("show notes.txt --data a", "'notes.txt': a version reads FILE@SEQ, like notes.txt@42"),
        ("show @1 --data a", "FILE '': a file's name cannot be empty"),
        ("show notes.txt@ --data a", "'notes.txt@': a version reads FILE@SEQ"),
        ("show notes.txt@-1 --data a", "'notes.txt@-1': a version reads FILE@SEQ"),
        ("show notes.txt@1.5 --data a", "'notes.txt@1.5': a version reads FILE@SEQ"),
        ("show notes.txt@0000000000000000001 --data a", "a version reads FILE@SEQ"),
        ("restore notes.txt --data a", "'notes.txt': a version reads FILE@SEQ"),
        ("diff notes.txt@1 notes.txt --data a", "'notes.txt': a version reads FILE@SEQ"),
    ],
)
def test_wrong_use_is_told_in_one_line(typist: Typist, arguments: str, line: str) -> None:
    assert line in typist.is_wrong(arguments.split(" "))


FILE_NAMES = {
    "": "cannot be empty",
    "/etc/passwd": "it cannot start with '/'",
    "../x": "no empty part, '.' or '..'",
    "a/../b": "no empty part, '.' or '..'",
    "a/./b": "no empty part, '.' or '..'",
    "a//b": "no empty part, '.' or '..'",
    "a/": "no empty part, '.' or '..'",
    "two\nlines": "no line breaks or other control characters",
    "\x1b[31m": "no line breaks or other control characters",
    "x" * 201: "at most 200 bytes",
    "x/" * 256 + "x": "at most 512 bytes",
    "\udcff": "valid UTF-8",
}


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_file_name_that_leads_astray_is_wrong_use(typist: Typist, name: str) -> None:
    line = typist.is_wrong(["write", name, "text", "--data", "a"])
    assert line.startswith("FILE ")
    assert FILE_NAMES[name] in line


@pytest.mark.parametrize("verb", ["read", "update", "restore", "snapshots", "show", "diff"])
def test_every_command_with_a_file_looks_at_its_name(typist: Typist, verb: str) -> None:
    file = "../x" if verb in ("read", "update", "snapshots") else "../x@1"
    more = {"update": ["text"], "diff": ["x@1"]}.get(verb, [])
    line = typist.is_wrong([verb, file, *more, "--data", "a"])
    assert line == "FILE '../x': a file's name has no empty part, '.' or '..'"


@pytest.mark.parametrize("text", ["two\nlines", "a\rb", "a\vb", "a\0b", "a\u2028b", "a\x85b", "\udcff"])
def test_a_text_that_is_not_one_line_is_wrong_use(typist: Typist, text: str) -> None:
    assert typist.is_wrong(["write", "notes.txt", text, "--data", "a"]).startswith("a TEXT is ")
    assert typist.is_wrong(["update", "notes.txt", text, "--data", "a"]).startswith("a TEXT is ")


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_data_directory_it_is_wrong_use(typist: Typist, command: str) -> None:
    words = {"serve": [], "run": [], "write": ["x", "y"], "update": ["x", "y"], "diff": ["x@1", "x@2"]}
    arguments = words.get(command, ["x@1" if command in ("show", "restore") else "x"])
    line = "no data directory: give --data DIR, or set LOCKSTEP_DATA"
    assert typist.is_wrong([command, *arguments]) == line
    assert typist.is_wrong([command, *arguments, "--data", ""]) == line


def test_a_directory_whose_name_can_be_no_clients_needs_a_name(group: Group) -> None:
    code, line = told(group, ["serve", "--data", "my replica"])
    assert line.startswith("'my replica', the last part of my replica, cannot be this client's name")
    assert line.endswith("; set --name")
    assert code == EXIT_WRONG_USE
    assert not group.path("my replica").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--nope", "no such option: --nope; see lockd --help"),
        ("somewhere", "got unexpected extra argument(s) (somewhere); see lockd --help"),
        ("--ttl", "option '--ttl' requires an argument"),
        ("--ttl soon", "--ttl: a duration reads like 3s, 500ms or 1.5m, not 'soon'"),
        ("--ttl 0s", "--ttl 0s: it is at least 100ms and at most 1h"),
        ("--ttl 2h", "--ttl 2h: it is at least 100ms and at most 1h"),
        ("--bind 7461", "--bind 7461: an endpoint reads tcp://HOST:PORT or ipc://PATH"),
        ("--bind tcp://127.0.0.1", "--bind tcp://127.0.0.1: an endpoint reads tcp://HOST:PORT"),
        ("--bind tcp://127.0.0.1:70000", "'70000' is no port; use 1 to 65535, or * for a free one"),
        ("--bind tcp://127.0.0.1:* --bind udp://x", "--bind udp://x: an endpoint reads"),
        ("--data ", "--data: the directory's name is empty"),
    ],
)
def test_wrong_use_of_lockd_is_told_in_one_line(typist: Typist, arguments: str, line: str) -> None:
    assert line in typist.is_wrong(arguments.split(" "), "lockd")


@pytest.mark.parametrize("program", PROGRAMS)
def test_real_processes_end_likewise(group: Group, program: str) -> None:
    code, line = told(group, "--nope", program)
    assert line == f"no such option: --nope; see {program} --help"
    assert code == EXIT_WRONG_USE


# Help


@pytest.mark.parametrize("command", [[], *[[command] for command in COMMANDS]])
def test_help_is_printed(typist: Typist, command: list[str]) -> None:
    done = typist.types([*command, "--help"])
    assert done.out.decode().startswith(f"Usage: {' '.join(['client', *command])} ")
    assert (done.code, done.err) == (EXIT_OK, "")


def test_lockd_prints_help(typist: Typist) -> None:
    done = typist.types(["--help"], "lockd")
    assert b"tcp://127.0.0.1:7461" in done.out
    assert (done.code, done.err) == (EXIT_OK, "")


@pytest.mark.parametrize("command", ["write", "update"])
def test_help_tells_how_a_text_may_begin_with_a_dash(typist: Typist, command: str) -> None:
    text = typist.types([command, "--help"]).out.decode()
    assert "One that begins with - goes behind --" in " ".join(text.split())


WITHOUT_DEFAULT = {"--data", "--help", "--json", "--of", "--rebuild", "--retry", "--stay"}


@pytest.mark.parametrize("command", [*COMMANDS, "give-up", "members", "locks", "status", "why", "top", "lockd"])
def test_help_tells_every_default(typist: Typist, command: str) -> None:
    words, program = ([], "lockd") if command == "lockd" else ([command], "client")
    text = typist.types([*words, "--help"], program).out.decode()
    for option in re.split(r"\n  (?=--)", text)[1:]:
        name = option.split()[0]
        told = "default:" in option or (command, name) == ("give-up", "--name")
        assert told or name in WITHOUT_DEFAULT, option


def test_without_arguments_help_goes_to_stderr(group: Group) -> None:
    done = group.client()
    assert done.err.startswith("Usage: client ")
    assert all(command in done.err for command in COMMANDS)
    assert (done.code, done.out) == (EXIT_WRONG_USE, b"")


# What group and machine refuse


def test_an_unreachable_lockd(group: Group) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    commands = [["read", "x"], ["serve"], ["run"]]
    children = [group.start("client", *words, "--data", words[0], "--lockd", endpoint) for words in commands]
    for child in children:
        done = child.end()
        assert refusal(done) == (
            f"lockd at {endpoint} cannot be reached (Connection refused); start lockd, or set --lockd"
        )
        assert done.code == EXIT_REFUSED
    assert [path.name for path in group.path().iterdir()] == ["outputs"], "nothing stays"


def test_a_refused_start_leaves_a_directory_as_it_was(up: Group) -> None:
    up.path("before").mkdir()
    up.path("before", "note").write_text("mine")
    assert told(up, "serve --data before --name a")[0] == EXIT_REFUSED
    assert [path.name for path in up.path("before").iterdir()] == ["note"]
    up.ok("read", "x", "--data", "before", "--name", "before")
    kept = set(up.path("before").rglob("*"))
    assert told(up, "serve --data before --lockd tcp://127.0.0.1:1")[0] == EXIT_REFUSED
    assert set(up.path("before").rglob("*")) == kept, "a replica of the group stays one"


def test_a_lockd_whose_name_leads_nowhere(group: Group) -> None:
    code, line = told(group, "read x --data x --lockd tcp://nowhere.invalid:7461")
    assert line.startswith("lockd at tcp://nowhere.invalid:7461 cannot be reached (")
    assert code == EXIT_REFUSED


def test_a_port_in_use(up: Group) -> None:
    code, line = told(up, ["--bind", up.endpoint, "--data", "other"], "lockd")
    assert line.startswith(f"cannot listen on {up.endpoint} (Address already in use")
    assert line.endswith("is another lockd there? choose another --bind")
    assert code == EXIT_REFUSED


def test_a_path_that_is_too_long_for_a_socket(group: Group) -> None:
    code, line = told(group, ["--bind", f"ipc:///{'a' * 200}", "--data", "other"], "lockd")
    assert line.endswith(" (AF_UNIX path too long); choose another --bind")
    assert code == EXIT_REFUSED


def test_a_lockd_directory_in_use(up: Group) -> None:
    code, line = told(up, "--bind tcp://127.0.0.1:* --data lockd", "lockd")
    assert line == "lockd is in use by another lockd; choose another --data"
    assert code == EXIT_REFUSED


def test_a_lockd_directory_that_is_none(up: Group) -> None:
    up.path("plain").write_text("mine")
    code, line = told(up, "--bind tcp://127.0.0.1:* --data plain", "lockd")
    assert line == "plain cannot be used (it is not a directory); choose another --data"
    assert code == EXIT_REFUSED
    assert up.path("plain").read_text() == "mine"


@pytest.mark.parametrize("command", ["serve", "run"])
def test_a_data_directory_in_use(up: Group, command: str) -> None:
    code, line = told(up, [command, "--data", "a"])
    assert line == "a is in use by another client; stop that one, or choose another --data"
    assert code == EXIT_REFUSED


@pytest.mark.parametrize("command", ["serve", "read x"])
def test_a_data_directory_that_is_none(up: Group, command: str) -> None:
    up.path("plain").write_text("mine")
    for path in ("plain", "plain/below"):
        code, line = told(up, [*command.split(), "--data", path])
        assert line.startswith(f"{path} cannot be used (")
        assert line.endswith("; choose another --data")
        assert code == EXIT_REFUSED
    assert up.path("plain").read_text() == "mine"


def test_a_data_directory_of_something_else(up: Group) -> None:
    path = up.path("foreign")
    path.mkdir()
    (path / "journal").write_bytes(b"my own journal\n" * 1000)
    code, line = told(up, "serve --data foreign")
    assert "foreign/journal is not a Lockstep journal" in line
    assert code == EXIT_REFUSED
    (path / "journal").unlink()
    (path / "events.log").write_bytes(b"my own events\n")
    code, line = told(up, "serve --data foreign")
    assert line.startswith("foreign/events.log is not an event log")
    assert code == EXIT_REFUSED


@pytest.mark.parametrize("command", ["serve", "read x"])
def test_a_name_in_use(up: Group, command: str) -> None:
    code, line = told(up, [*command.split(), "--data", "second", "--name", "a"])
    assert line == "lockd refused a: the name a is in use by a live session; choose another with --name"
    assert code == EXIT_REFUSED
    assert not up.path("second").exists()


def test_a_refused_name_is_not_remembered(up: Group) -> None:
    assert told(up, "read x --data third --name a")[0] == EXIT_REFUSED
    assert up.ok("write", "x", "text", "--data", "third").endswith(b" id=third:1\n")


def test_a_directory_of_another_group(up: Group, group: Group) -> None:
    up.ok("read", "x", "--data", "moved")
    group.lockd()
    code, line = told(group, ["serve", "--data", str(up.path("moved"))])
    assert line.startswith("lockd refused moved: its data directory belongs to another group; use an empty one")
    assert code == EXIT_REFUSED


def test_a_file_cannot_be_a_folder(up: Group) -> None:
    up.ok("write", "plain", "text", "--data", "a")
    code, line = told(up, "write plain/below text --data a")
    assert line.startswith("write plain/below failed, nothing happened: plain is a file")
    assert code == EXIT_REFUSED
    up.ok("write", "folder/file", "text", "--data", "a")
    code, line = told(up, "write folder text --data a")
    assert line.startswith("write folder failed, nothing happened: folder is a folder")
    assert code == EXIT_REFUSED


def test_a_version_that_is_not_there(up: Group) -> None:
    up.ok("write", "short", "text", "--data", "a")
    assert told(up, "show short@2 --data a") == (EXIT_WRONG_USE, "short has versions 0 to 1, not 2")
    assert told(up, "diff short@1 short@9 --data a") == (EXIT_WRONG_USE, "short has versions 0 to 1, not 9")
    assert told(up, "show other@1 --data a") == (EXIT_WRONG_USE, "a has no versions of other")
    code, line = told(up, "restore short@2 --data a")
    assert line == "restore short failed, nothing happened: short has versions 0 to 1, not 2"
    assert code == EXIT_REFUSED


@pytest.mark.parametrize("command", ["show x@1", "diff x@1 x@2", "snapshots x"])
def test_the_past_of_no_replica(up: Group, command: str) -> None:
    code, line = told(up, [*command.split(), "--data", "never"])
    assert line == "never is no client's data directory: it has no journal"
    assert code == EXIT_REFUSED
    assert not up.path("never").exists()


# Options


def test_options_stand_before_or_after_the_arguments(up: Group) -> None:
    up.ok("write", "--data", "a", "order", "one")
    up.ok("write", "order", "--data", "a", "two")
    up.ok("write", "order", "three", "--data", "a")
    up.ok("write", "--data=a", "--wait=5s", "order", "--", "--four")
    up.client("write", "order", "--", "-5 degrees", environment={"LOCKSTEP_DATA": "a"})
    assert up.ok("read", "order", "--data", "a") == b"one\ntwo\nthree\n--four\n-5 degrees\n"
    assert up.ok("show", "--data", "a", "order@1") == up.ok("show", "order@1", "--data", "a") == b"one\n"


def test_an_option_comes_before_the_environment_and_that_before_what_is_remembered(up: Group) -> None:
    endpoint = up.endpoint
    up.ok("write", "order", "text", "--data", "b", "--lockd", endpoint)
    remembered = up.client("write", "order", "text", "--data", "b", environment=UNSET)
    assert remembered.out.endswith(b" id=b:2\n")
    wrong = {"LOCKSTEP_LOCKD": "wrong", "LOCKSTEP_NAME": "c", "LOCKSTEP_DATA": "c"}
    done = up.client("read", "x", "--data", "b", environment=wrong)
    assert refusal(done).startswith("--lockd wrong: ")
    done = up.client("write", "order", "text", "--lockd", endpoint, environment=wrong)
    assert done.out.endswith(b" id=c:1\n")
    done = up.client("write", "order", "text", "--name", "e", "--lockd", endpoint, "--data", "d", environment=wrong)
    assert done.out.endswith(b" id=e:1\n")


def test_a_lockd_that_was_not_reached_is_not_remembered(up: Group) -> None:
    up.ok("write", "order", "text", "--data", "f", "--lockd", up.endpoint)
    assert told(up, "read order --data f --lockd tcp://127.0.0.1:1")[0] == EXIT_REFUSED
    assert up.client("read", "order", "--data", "f", environment=UNSET).code == EXIT_OK


def test_a_name_is_remembered(up: Group) -> None:
    up.ok("read", "x", "--data", "g", "--name", "grace")
    server = up.serving("h", "--name", "grace-2")
    assert server.stop().code == EXIT_OK
    holder = up.serving("i", "--name", "grace")
    code, line = told(up, "read x --data j --name grace")
    assert line.startswith("lockd refused grace: the name grace is in use")
    assert code == EXIT_REFUSED
    up.ok("read", "x", "--data", "g")  # a known replica, whatever its name
    up.ok("read", "x", "--data", "g", "--name", "hopper")
    assert holder.stop(signal.SIGINT).code == EXIT_OK


# Output


def test_a_reader_that_goes_away_is_no_crash(up: Group) -> None:
    """As in `client show FILE@SEQ | head -1`."""
    up.ok("write", "order", "text", "--data", "a")
    for arguments in (("show", "order@1"), ("read", "order"), ("snapshots", "order")):
        read, write = os.pipe()
        os.close(read)
        done = piped(up, write, *arguments, "--data", "a")
        assert done == (EXIT_CRASHED, "")


def test_a_full_disk_behind_stdout_is_told(up: Group) -> None:
    up.ok("write", "order", "text", "--data", "a")
    for arguments in (("show", "order@1"), ("write", "order", "text")):
        code, err = piped(up, os.open("/dev/full", os.O_WRONLY), *arguments, "--data", "a")
        assert err == "client: stdout cannot be written (No space left on device)\n"
        assert code == EXIT_CRASHED


def piped(group: Group, stdout: int, *arguments: str) -> tuple[int, str]:
    """Run a client command whose stdout is this descriptor, which is closed; return its exit code and stderr."""
    child = group.start("client", *arguments, stdout=stdout)
    os.close(stdout)
    done = child.end()
    return done.code, done.err


def test_a_terminal_that_cannot_print_a_name_is_no_crash(up: Group) -> None:
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = up.client("write", "zwölf", "text", "--data", "a", environment=plain)
    assert done.out.decode().startswith("ok zwölf@1 ")
    done = up.client("write", "zwölf//", "text", "--data", "a", environment=plain)
    assert refusal(done).startswith("FILE 'zw")
    assert done.code == EXIT_WRONG_USE


def test_grants_log_on_a_full_disk_ends_lockd_in_one_line(group: Group) -> None:
    group.path("lockd").mkdir()
    group.path("lockd", "grants.log").symlink_to("/dev/full")
    lockd = group.lockd()
    client = group.start("client", "write", "notes.txt", "text", "--data", "a", "--wait", "1s")
    done = lockd.end()
    assert done.err == "lockd: lockd/grants.log cannot be written (No space left on device); make room, start again\n"
    assert done.code == EXIT_CRASHED
    assert client.end().code in (EXIT_OK, EXIT_REFUSED), "the line may come after the grant"
