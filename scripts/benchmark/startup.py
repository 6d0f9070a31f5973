"""How long commands take to start."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from scripts.benchmark.figures import Row, against, pooled
from scripts.benchmark.group import Group
from scripts.benchmark.processes import PATIENCE_S, NotMeasured, environment, stage
from scripts.benchmark.samples import FILE, TEXT
from scripts.benchmark.sampling import Effort, interleave


def measure(effort: Effort) -> list[Row]:
    """Return the time of `client --help` and of `client write` to a running client, against an empty Python."""
    script = Path(sys.executable).with_name("client")
    client = [str(script)] if script.exists() else [sys.executable, "-P", "-m", "client"]
    with stage() as place:
        group = Group(place)
        group.serve(1, "disk")
        data = str(group.data("replica-0"))

        def run(*command: str) -> None:
            try:
                subprocess.run(command, check=True, timeout=PATIENCE_S, env=environment(), capture_output=True)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise NotMeasured(str(error)) from None

        blocks = interleave(
            {
                "pass": lambda: run(sys.executable, "-c", "pass"),
                "help": lambda: run(*client, "--help"),
                "write": lambda: run(*client, "write", FILE, TEXT, "--data", data),
            },
            replace(effort, rounds=effort.starts, block=1),
        )
    times = {name: pooled(samples) for name, samples in blocks.items()}
    against_pass = "against python -c pass, p50s of whole processes"
    return [
        against("client --help", f"client --help {against_pass}", times["help"], times["pass"], wanted=10),
        against(
            "client write",
            f"client write to a running client, durability disk, {against_pass}",
            times["write"],
            times["pass"],
            wanted=12,
        ),
    ]
