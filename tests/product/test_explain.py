"""`launcher explain` prints the plan that would run, and what is wrong before anything runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from launcher import tracefile
from tests import needs
from tests.product.attached import LAUNCHER, attach
from tests.product.container import Container

KINDS = ("mnt", "uts", "ipc", "net", "pid", "cgroup", "time")


def explain(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [LAUNCHER, "explain", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@needs.runc
def test_the_plan_is_what_runs(start: Callable[..., Container], tmp_path: Path) -> None:
    """The namespaces, trees and mounts that explain prints are those of the recorded attach."""
    container = start("runc", "busybox")
    config = tmp_path / "attach.json"
    config.write_text(json.dumps({"target": container.spec, "command": ["true"]}))
    plan = json.loads(explain("--config", str(config)).stdout)
    attach(container, "true", options=("--trace", str(tmp_path / "trace")))
    events = tracefile.read(tmp_path / "trace").events
    steps = [event["step"] for event in events if event["kind"] == "step"]

    different = [
        kind
        for kind in KINDS
        if os.stat(f"/proc/{container.pid}/ns/{kind}").st_ino
        != os.stat(f"/proc/self/ns/{kind}").st_ino
    ]
    planned = [join["kind"] for join in plan["bootstrap"]["joins"]]
    assert sorted(different) == sorted(planned)
    assert {f"join {kind} namespace" for kind in planned} <= set(steps)
    assert [f"clone {tree['path']}" for tree in plan["bootstrap"]["trees"]] == sorted(
        (step for step in steps if step.startswith("clone ")),
        key=[f"clone {tree['path']}" for tree in plan["bootstrap"]["trees"]].index,
    )
    assert {f"mount {mount['target']}" for mount in plan["init"]["mounts"]} <= set(steps)


@needs.runc
@needs.strace
def test_explain_starts_no_stage(start: Callable[..., Container], tmp_path: Path) -> None:
    """No process of a pipeline, server or supervisor is started, nothing is mounted or joined."""
    container = start("runc", "busybox")
    log = tmp_path / "calls"
    calls = "trace=unshare,setns,mount,fsmount,move_mount,pivot_root,ptrace"
    command = ["strace", "-f", "-o", str(log), "-e", calls, LAUNCHER, "explain", container.spec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert 0 == done.returncode, done.stderr
    # A forked reader looks from inside whether the root is the namespace's; it is the only one.
    joined = [line for line in log.read_text().splitlines() if "setns(" in line]
    assert len({line.split()[0] for line in joined}) <= 1
    assert not any(
        word in log.read_text() for word in ("unshare(", "mount(", "pivot_root(", "ptrace(")
    )


def test_all_problems_are_told_by_key(tmp_path: Path) -> None:
    """A wrong configuration is refused with every problem, each by its key, exit code 125."""
    config = tmp_path / "attach.json"
    config.write_text(
        json.dumps({"target": "x", "rout": 1, "timeout": -1, "root": {"container_path": "c"}})
    )
    done = explain("--config", str(config))

    assert 125 == done.returncode
    for key in ("rout", "timeout", "root.container_path"):
        assert f"{key}:" in done.stderr


def test_schemas_are_json() -> None:
    """attach and run have a JSON Schema with a description for each key of attach."""
    for name in ("attach", "run"):
        done = subprocess.run([LAUNCHER, "schema", name], capture_output=True, text=True)
        document = json.loads(done.stdout)
        properties = document["$defs"][name.capitalize()]["properties"]

        assert f"{name}.json" == document["title"]
        assert "root" in properties
