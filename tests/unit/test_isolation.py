"""The door that is closed before a join: imports, descriptors, and looking in."""

from __future__ import annotations

import os
import signal

import pytest

from nsstages.isolation import close_all_but, exit_status_text, seal
from tests import needs
from tests.stages.neighbour import in_child


def sealed_import(statement: str) -> str:
    """Return how an import in a sealed process ends."""

    def job() -> str:
        seal()
        try:
            exec(statement)
        except ImportError as error:
            return str(error)
        return "imported"

    return in_child(job)


@pytest.mark.parametrize("module", ["this", "antigravity", "encodings.cp1250", "no_such_module"])
def test_nothing_is_imported_late(module: str) -> None:
    """After the door is closed a module that was not loaded is an error that names it."""
    assert f"{module}: nothing is imported after a join" == sealed_import(f"import {module}")


def test_what_is_loaded_can_be_used() -> None:
    """An import statement for a loaded module is no import."""
    assert "imported" == sealed_import("import os, msgpack, nsstages.mounts")


def test_codecs_are_loaded_before() -> None:
    """File names and messages can be encoded; another codec is not fetched from anywhere."""

    def job() -> str:
        seal()
        "é\udcff".encode("utf-8", "surrogateescape")
        os.fsdecode(b"\xff")
        os.strerror(2)
        try:
            "x".encode("cp1250")
        except LookupError:
            return "no codec"
        except ImportError as error:
            return str(error)
        return "a codec was loaded"

    assert "a codec was loaded" != in_child(job)


@needs.root
def test_a_sealed_process_is_roots() -> None:
    """PR_SET_DUMPABLE 0: an ordinary user's process cannot be looked into any more."""

    def job() -> str:
        before = os.stat("/proc/self/mem").st_uid
        seal()
        return f"{before} {os.stat('/proc/self/mem').st_uid}"

    assert "65534 0" == in_child(job, "nobody")


@pytest.mark.parametrize("kept", [(), (5,), (5, 6, 9), (30,)])
def test_only_what_is_kept_stays_open(kept: tuple[int, ...]) -> None:
    """Descriptors above 2 are closed but for those that are named."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(write_fd, 1)
            for fd in (5, 6, 7, 9, 30):
                os.dup2(write_fd, fd)
            close_all_but(kept)
            os.write(1, " ".join(str(fd) for fd in range(256) if _is_open(fd)).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd) as answer:
        text = answer.read()
    os.waitpid(pid, 0)

    assert [0, 1, 2, *kept] == [int(word) for word in text.split()]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exit 0"),
        (3 << 8, "exit 3"),
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGSEGV | 0x80, "SIGSEGV"),
        (40, "signal 40"),
    ],
)
def test_the_end_of_a_process_in_words(status: int, text: str) -> None:
    """Wait statuses as people say them, without the tables of the signal module."""
    assert text == exit_status_text(status)
