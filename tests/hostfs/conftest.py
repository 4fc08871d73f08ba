"""Fixtures: a source directory on the host and ways to serve it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.hostfs.options import HostfsOptions
from tests.hostfs.mounted import Mounted, Rights

Serve = Callable[..., Mounted]


@pytest.fixture
def area(unique_name: str) -> Iterator[Path]:
    """A directory that every user may pass through, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix=unique_name) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def source(area: Path) -> Path:
    """A host directory with a few files of every kind that needs no privilege."""
    directory = area / "source"
    directory.mkdir()
    (directory / "file").write_text("content\n")
    (directory / "directory").mkdir()
    (directory / "directory" / "inner").write_text("inner\n")
    (directory / "link").symlink_to("file")
    return directory


@pytest.fixture
def many_files(unique_name: str) -> Iterator[Path]:
    """300 directories of user 1001 with 100 files each, in memory."""
    with tempfile.TemporaryDirectory(prefix=unique_name, dir="/dev/shm") as name:
        os.chmod(name, 0o755)
        for number in range(300):
            directory = Path(name, f"{number:03}")
            directory.mkdir()
            for file in range(100):
                os.close(os.open(directory / f"{file:02}", os.O_CREAT | os.O_WRONLY, 0o644))
            os.chown(directory, 1001, 1001)
        yield Path(name)


@pytest.fixture
def serve(source: Path, area: Path) -> Iterator[Serve]:
    """Serve the source directory (or ``root``) with options; everything ends with the test."""
    mounted: list[Mounted] = []

    def start(
        options: HostfsOptions | None = None, server: Rights | None = None, root: Path = source
    ) -> Mounted:
        path = area / f"mount{len(mounted)}"
        path.mkdir()
        options = replace(options or HostfsOptions(), source=str(root))
        mounted.append(Mounted(path, options, server))
        return mounted[-1]

    yield start
    for mount in mounted:
        mount.close()


@pytest.fixture
def mount(serve: Serve) -> Mounted:
    """The source directory, served with no options."""
    return serve()
