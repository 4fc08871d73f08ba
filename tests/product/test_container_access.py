"""The three ways to show a container's ids at /c, at a map offset of 100000."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs
from tests.product.attached import attach
from tests.product.container import SCRATCH, Container
from tests.product.images import OFFSET

CASES = [
    pytest.param(engine, access, marks=need)
    for engine, need in (("runc", needs.runc), ("podman", needs.podman))
    for access in ("idmapped", "native", "fuse")
]


@pytest.mark.parametrize(("engine", "access"), CASES)
def test_owners_on_both_sides(
    start: Callable[..., Container], engine: str, access: str, tmp_path: Path
) -> None:
    """create, chown and stat agree: mapped forms show the container's ids and write them on the
    container's files; native shows and writes the host's.
    """
    container = start(engine, "busybox", userns=True)
    config = tmp_path / "attach.json"
    config.write_text(json.dumps({"root": {"container_access": access}}))
    # A tmpfs of the container's own refuses the host's ids (EOVERFLOW), so natively in the root.
    directory = "" if access == "native" else SCRATCH
    made = f"/c{directory}/made"
    script = f"stat -c %u /c{SCRATCH}; echo x > {made}; stat -c %u {made}; chown 7:8 {made}"
    done = attach(
        container, "sh", "-ec", f"{script}; stat -c %u:%g {made}", options=("--config", str(config))
    )
    facts = os.stat(f"/proc/{container.pid}/root{directory}/made")

    shift, shown = (0, OFFSET) if access == "native" else (OFFSET, 0)
    assert (0, "") == (done.returncode, done.stderr)
    assert [str(shown), "0", "7:8"] == done.stdout.split()
    assert (7 + shift, 8 + shift) == (facts.st_uid, facts.st_gid)


@needs.runc
def test_routing_does_not_depend_on_it(start: Callable[..., Container], tmp_path: Path) -> None:
    """A program below a /c that FUSE serves is routed, and the container runs its own file."""
    container = start("runc", "busybox", userns=True)
    config = tmp_path / "attach.json"
    config.write_text(json.dumps({"root": {"container_access": "fuse"}}))
    done = attach(container, "/c/bin/onlyhere", options=("--config", str(config)))

    assert (0, "") == (done.returncode, done.stderr)
    assert "image busybox" in done.stdout.splitlines()
