"""The leak check itself: it sees each kind, and blames only who did it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nsstages import syscalls
from tests import leaks, needs
from tests.session import Session, new_session_id

NOBODY = 0  # as the keeper: no process has this pid


@pytest.fixture
def look(session: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[[], leaks.Belongings]:
    """Look at what exists, without patience."""
    monkeypatch.setattr(leaks, "GRACE", 0.05)
    return lambda: leaks.take(session, NOBODY)


def test_a_running_process_is_seen(look: Callable[[], leaks.Belongings]) -> None:
    """A child that is still running at the end of a test is a leak, named by pid and comm."""
    before = look()
    with subprocess.Popen(["sleep", "60"]) as process:
        leaked = leaks.left_behind(before, look)
        process.kill()

    assert f"processes: {process.pid} (sleep)" in leaked


def test_an_unreaped_fork_is_seen(look: Callable[[], leaks.Belongings]) -> None:
    """A forked child that ended but was not waited for is a leak."""
    before = look()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    leaked = leaks.left_behind(before, look)
    os.waitpid(pid, 0)

    assert 1 == len(leaked)
    assert leaked[0].startswith(f"processes: {pid} (")
    assert leaked[0].endswith("is a zombie")


def test_a_grandchild_cannot_hide(look: Callable[[], leaks.Belongings]) -> None:
    """A process whose parent has ended is still seen as the worker's descendant."""
    before = look()
    script = "import subprocess as s; print(s.Popen(['sleep', '60'], stdout=-3, stderr=-3).pid)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    leaked = leaks.left_behind(before, look)
    os.kill(int(done.stdout), 9)
    os.waitpid(int(done.stdout), 0)

    assert [f"processes: {int(done.stdout)} (sleep)"] == leaked


def test_an_orphan_that_ended_is_no_leak(look: Callable[[], leaks.Belongings]) -> None:
    """An orphan that the worker adopted and that then ended is reaped, as an init would."""
    before = look()
    script = "import subprocess; print(subprocess.Popen(['true']).pid)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    leaked = leaks.left_behind(before, look)

    assert [] == leaked
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_an_open_descriptor_is_seen(look: Callable[[], leaks.Belongings]) -> None:
    """A descriptor that is still open is a leak, named by number and target."""
    before = look()
    fd = os.open("/etc/passwd", os.O_RDONLY)
    leaked = leaks.left_behind(before, look)
    os.close(fd)

    assert [f"descriptors: {fd} -> /etc/passwd"] == leaked


@needs.root
def test_a_mount_is_seen(look: Callable[[], leaks.Belongings], tmp_path: Path) -> None:
    """A mount that is still in the mount table is a leak."""
    before = look()
    syscalls.mount("tmpfs", str(tmp_path), "tmpfs", 0)
    leaked = leaks.left_behind(before, look)
    syscalls.umount2(str(tmp_path), 0)

    assert 1 == len(leaked)
    assert str(tmp_path) in leaked[0]


@needs.root
def test_a_cgroup_is_seen_by_its_own_worker_only(
    look: Callable[[], leaks.Belongings], session: Session, unique_name: str
) -> None:
    """A cgroup directory is a leak of the worker whose name it carries."""
    hierarchy = next(path for path in Path("/sys/fs/cgroup").iterdir() if path.is_dir())
    own = hierarchy / unique_name
    others = hierarchy / f"{new_session_id()}-gw0-c1"
    before = look()
    own.mkdir()
    others.mkdir()
    leaked = leaks.left_behind(before, look)
    own.rmdir()
    others.rmdir()

    assert [f"cgroups: {own}"] == leaked


def test_a_temporary_file_is_seen(look: Callable[[], leaks.Belongings], session: Session) -> None:
    """A file in the worker's temporary directory is a leak."""
    path = session.temporary / "forgotten"
    before = look()
    path.touch()
    leaked = leaks.left_behind(before, look)
    path.unlink()

    assert [f"files: {path}"] == leaked


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("/run/launcher/web", False),
        ("/sys/fs/cgroup/lt00000001/gw1", False),
        ("/sys/fs/cgroup/lt00000001", True),
        ("/sys/fs/cgroup/lt00000001/gw2", True),
        ("/tmp/launcher-lt00000001/shared/images", True),
        ("/run/launcher/lt00000001-gw1-c4", False),
        ("/run/launcher/lt00000002-gw1-c4", True),
    ],
)
def test_names_tell_whose_a_thing_is(text: str, *, others: bool) -> None:
    """A path with the name of another worker or session is theirs; one without is suspicious."""
    assert others == Session("lt00000001", "gw1").is_others(text)


@needs.root
@pytest.mark.parametrize(("of_ours", "seen"), [(True, True), (False, False)])
def test_a_state_file_belongs_to_whoever_runs_the_container(
    look: Callable[[], leaks.Belongings], unique_name: str, *, of_ours: bool, seen: bool
) -> None:
    """The state file of a container below this worker is a leak, that of another's is not."""
    path = Path("/run/launcher", f"x{unique_name[2:]}.json")  # no name of a session
    path.parent.mkdir(mode=0o700, exist_ok=True)
    before = look()
    with subprocess.Popen(["sleep", "60"]) as process:
        path.write_text(f'{{"pid": {process.pid if of_ours else 1}}}')
        leaked = leaks.left_behind(before, look)
        path.unlink()
        process.kill()

    assert seen == (f"files: {path}" in leaked)
