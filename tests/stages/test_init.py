"""Stage 2 with the test as its manager: root, mounts, names, rights, and what becomes of it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from launcher.supervisor.notify import filter_program
from nsstages import mounts
from nsstages.channel import Message
from nsstages.credentials import CapabilitySets, Credentials
from nsstages.errors import PeerDied
from nsstages.init_config import InitConfig, MountPlan, Process, Rlimit, Root, Source
from nsstages.messages import INIT, Word
from nsstages.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_RDONLY,
    unshare,
)
from nsstages.typed import to_payload
from tests import needs
from tests.stages.neighbour import (
    PATH,
    SECONDS,
    Forked,
    children_of,
    close_fds,
    configure,
    expect_failure,
    hear,
    program,
    run,
    say,
    shell,
    stage_2,
    until,
)

pytestmark = needs.root

LATER = (Word.MOUNT_FD_PLS, Word.TERMINAL, Word.SUPERVISE_PLS, Word.READY)
LAST = 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with a static busybox as its only program."""
    path = tmp_path / "root"
    for name in ("bin", "etc", "proc"):
        (path / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin/busybox")
    for name in ("sh", "cat", "ls", "hostname", "mount", "touch", "sleep", "stat", "ip"):
        (path / "bin" / name).symlink_to("/bin/busybox")
    return path


def apart(flags: int = CLONE_NEWNS) -> Callable[[], None]:
    """Return stage 1's part: namespaces of its own."""

    def prepare() -> None:
        unshare(flags | CLONE_NEWNS)
        mounts.make_private()

    return prepare


APART = apart()


def greet(stage: Forked) -> None:
    """Be stage 0: from GRANDCHILD on stage 2 is the manager's child."""
    stage["grandchild"].send(Word.GRANDCHILD)
    hear(stage["grandchild"], Word.CHILD_FINISH)


def result(config: InitConfig, prepare: Callable[[], Any] = APART) -> tuple[int, str]:
    """Run a stage 2 to the end of its program; return status and output."""
    with stage_2(prepare) as stage:
        greet(stage)
        configure(stage, config)
        return run(stage, stage.pid)


def output_of(config: InitConfig, prepare: Callable[[], Any] = APART) -> str:
    """Return what a program that succeeds prints."""
    status, output = result(config, prepare)
    assert 0 == status, output
    return output


def in_root(root: Path, script: str, *plans: MountPlan, **options: Any) -> str:
    """Return what a script in a root directory prints."""
    config = InitConfig(
        shell(script), root=Root.DIRECTORY, root_path=str(root), mounts=plans, **options
    )
    return output_of(config)


def new(kind: str, target: str, *options: str, **more: Any) -> MountPlan:
    """Return the plan of a new file system."""
    more.setdefault("create_target", True)
    return MountPlan(Source.NEW, kind, target, kind=kind, options=options, **more)


# --- what it becomes


def test_it_becomes_the_program() -> None:
    """The program has stage 2's pid, the arguments and the environment of CONFIG and no other."""
    env = (PATH, "A=1", "EMPTY=", "BYTES=\udcff")
    output = output_of(InitConfig(program("sh", "-c", "echo $$ $1; env", "sh", "x y", env=env)))

    first, *variables = output.encode(errors="surrogateescape").splitlines()
    assert first.endswith(b" x y")
    assert {b"A=1", b"EMPTY=", PATH.encode()} <= set(variables)
    names = {line.split(b"=")[0] for line in variables}
    assert names <= {b"A", b"EMPTY", b"BYTES", b"PATH", b"PWD", b"SHLVL", b"_", b"OLDPWD"}


def test_ready_names_the_program() -> None:
    """READY carries a pidfd of the process that will execute the program."""
    with stage_2() as stage:
        greet(stage)
        configure(stage, InitConfig(shell("true")))
        message = hear(stage[INIT], Word.READY)
        info = Path(f"/proc/self/fdinfo/{message.fds[0]}").read_text()
        close_fds(message)

        assert f"Pid:\t{stage.pid}\n" in info


def test_nothing_runs_before_the_gate_opens(tmp_path: Path) -> None:
    """Until RUN the program has done nothing; a manager that hangs up at READY prevents it."""
    with stage_2() as stage:
        greet(stage)
        configure(stage, InitConfig(shell(f"touch {tmp_path}/ran")))
        close_fds(hear(stage[INIT], Word.READY))
        stage.hang_up()

        assert 1 == stage.wait()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -TERM $$", -15)])
def test_its_end_is_the_programs(script: str, status: int) -> None:
    """Exit codes and deadly signals reach the manager's wait."""
    assert (status, "") == result(InitConfig(shell(script)))


def test_the_program_inherits_nothing() -> None:
    """It has its three streams; every channel and descriptor of the stage is closed at exec."""
    leaked = os.open("/etc/group", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        output = output_of(InitConfig(program("ls", "/proc/self/fd")))
    finally:
        os.close(leaked)

    assert ["0", "1", "2", "3"] == output.split()  # 3 is ls's own, of the directory


def test_signals_are_as_a_program_expects_them() -> None:
    """SIGPIPE, which Python ignores, has its default again; no signal is blocked."""
    lines = output_of(InitConfig(program("cat", "/proc/self/status"))).splitlines()
    fields = dict(line.split(":", 1) for line in lines)

    # 32 and 33 are the C library's own; a program can inherit them ignored, and nobody sets them.
    ignored = int(fields["SigIgn"], 16) & ~(0b11 << 31)
    assert (0, 0) == (ignored, int(fields["SigBlk"], 16))


def test_a_session_of_its_own() -> None:
    """It leads a session: a terminal's signals for the launcher are not for the program."""
    output = output_of(InitConfig(shell("cat /proc/$$/stat")))
    pid, _, _, _, group, session, terminal, *_ = output.split()

    assert (pid, pid, "0") == (group, session, terminal)


@pytest.mark.parametrize(
    ("argv", "errno"),
    [
        (("/nonexistent",), 2),
        (("nonexistent",), 2),
        (("/etc/passwd",), 13),
        (("/etc",), 13),
        (("/etc/passwd/x",), 20),
    ],
)
def test_a_program_that_cannot_be_executed_is_reported(argv: tuple[str, ...], errno: int) -> None:
    """The step is exec, the system call execve, the errno the kernel's; the name is in the text."""
    with stage_2() as stage:
        greet(stage)
        configure(stage, InitConfig(program(*argv)))
        close_fds(hear(stage[INIT], Word.READY))
        stage[INIT].send(Word.RUN)
        failure = expect_failure(stage[INIT], Word.STARTED)

        assert ("exec", "execve", errno) == (failure.step, failure.syscall, failure.errno)
        assert failure.text.startswith(argv[0])
        assert 1 == stage.wait()


def test_path_is_the_programs_own(root: Path) -> None:
    """A program without a slash is looked up in the PATH of CONFIG, in order, in the new root."""
    (root / "one").mkdir()
    (root / "two").mkdir()
    (root / "one/tool").write_text("not executable")
    (root / "two/tool").symlink_to("/bin/busybox")
    config = InitConfig(
        Process(argv=("busybox", "echo", "found"), env=("PATH=/one:/two:/bin",)),
        root=Root.DIRECTORY,
        root_path=str(root),
    )

    assert "found\n" == output_of(config)


# --- its root and mounts


def test_a_directory_becomes_the_root(root: Path) -> None:
    """The program sees that directory as / and nothing of the old root, which is unmounted."""
    output = in_root(root, "ls /; echo --; mount", new("proc", "/proc"))
    names, mount_table = output.split("--\n")

    assert ["bin", "etc", "proc"] == names.split()
    assert ["/", "/proc"] == [line.split()[2] for line in mount_table.splitlines()]


def test_a_mount_can_be_taken_away(root: Path) -> None:
    """What a path of `unmounts` covers shows again; a path that does not exist is no error."""
    (root / "t").mkdir()
    (root / "t/below").write_text("")
    output = in_root(root, "ls /t", new("tmpfs", "/t"), unmounts=("/t", "/nonexistent", "/etc"))

    assert "below\n" == output


def test_new_file_systems_are_mounted_with_their_options(root: Path) -> None:
    """Options and attributes of a plan arrive at the mount; missing targets are made."""
    plan = new("tmpfs", "/a/b", "size=16k", "mode=0750", attributes=MOUNT_ATTR_NOEXEC)
    output = in_root(root, "mount; stat -c %a /a/b", new("proc", "/proc"), plan)
    line = next(line for line in output.splitlines() if " /a/b " in line)

    assert {"noexec", "size=16k", "mode=750"} <= set(line[line.index("(") + 1 : -1].split(","))
    assert "750" == output.splitlines()[-1]


def test_host_files_and_directories_are_bound(root: Path, tmp_path: Path) -> None:
    """A bind mount shows the host's file or tree; read-only where the plan says so."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("host")
    directory = MountPlan(Source.BIND, f"{tmp_path}/data", "/d", create_target=True)
    file = MountPlan(
        Source.BIND, f"{tmp_path}/data/file", "/x/f", create_target=True,
        attributes=MOUNT_ATTR_RDONLY,
    )  # fmt: skip
    output = in_root(root, "cat /d/file /x/f; echo new > /d/new; echo > /x/f || true",
                     directory, file)  # fmt: skip

    assert output.startswith("hosthost")
    assert "Read-only" in output
    assert "new\n" == (tmp_path / "data/new").read_text()


def test_a_link_in_the_root_leads_nowhere_else(root: Path, tmp_path: Path) -> None:
    """A mount target behind a link that points out of the root is resolved inside it."""
    (root / "trap").symlink_to(tmp_path)
    (tmp_path / "victim").mkdir()
    (root / str(tmp_path / "victim").lstrip("/")).mkdir(parents=True)
    output = in_root(root, f"touch {tmp_path}/victim/f; ls {tmp_path}/victim",
                     new("tmpfs", "/trap/victim"))  # fmt: skip

    assert "f\n" == output
    assert [] == os.listdir(tmp_path / "victim")
    assert [] == os.listdir(root / str(tmp_path / "victim").lstrip("/"))


def test_a_link_is_made(root: Path) -> None:
    """A plan of a symbolic link makes it, and leaves what is there."""
    (root / "kept").write_text("kept")
    plans = (
        MountPlan(Source.SYMLINK, "/proc/self/fd", "/fd"),
        MountPlan(Source.SYMLINK, "elsewhere", "/kept"),
    )
    in_root(root, "true", *plans)

    assert "/proc/self/fd" == os.readlink(root / "fd")
    assert "kept" == (root / "kept").read_text()


def test_the_root_can_be_read_only(root: Path) -> None:
    """Writing to the root is refused, to a mount below it not."""
    output = in_root(root, "touch /x 2>&1; touch /t/y && ls /t", new("tmpfs", "/t"),
                     root_read_only=True)  # fmt: skip

    assert "Read-only file system" in output
    assert "y" == output.splitlines()[-1]


def test_a_mount_that_is_not_required_is_left_out(root: Path) -> None:
    """A failing mount ends the stage by its target and errno, or is recorded as skipped."""
    plan = MountPlan(Source.BIND, "/nonexistent", "/x", create_target=True, required=False)
    assert "ok\n" == in_root(root, "echo ok", plan)

    required = MountPlan(Source.BIND, "/nonexistent", "/x", create_target=True)
    config = InitConfig(shell("true"), root=Root.DIRECTORY, root_path=str(root), mounts=(required,))
    with stage_2(APART) as stage:
        greet(stage)
        configure(stage, config)
        failure = expect_failure(stage[INIT], *LATER)

        assert ("mount /x", 2) == (failure.step, failure.errno)
        assert "/nonexistent" in failure.text


def test_a_tree_of_stage_1_is_attached(root: Path, tmp_path: Path) -> None:
    """A tree that was cloned before is found by its name."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/leaf").write_text("")

    def clone() -> dict[str, int]:
        APART()
        return {"t": mounts.clone_tree(str(tmp_path / "tree"))}

    plan = MountPlan(Source.TREE, "t", "/t", create_target=True)
    config = InitConfig(shell("ls /t"), root=Root.DIRECTORY, root_path=str(root), mounts=(plan,))

    assert "leaf\n" == output_of(config, clone)


def test_a_source_out_of_reach_is_asked_for(root: Path, tmp_path: Path) -> None:
    """Where stage 2 may not go it asks with MOUNT_FD_PLS, and mounts what MOUNT_FD brings."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("granted")

    def refused() -> None:
        APART()
        plain = mounts.clone_tree

        def clone_tree(path: str, **options: Any) -> int:
            if path == "/asked/for":
                raise PermissionError(13, "Permission denied", path)
            return plain(path, **options)

        mounts.clone_tree = clone_tree

    plan = MountPlan(Source.BIND, "/asked/for", "/m", create_target=True)
    config = InitConfig(
        shell("cat /m/file"), root=Root.DIRECTORY, root_path=str(root), mounts=(plan,)
    )
    with stage_2(refused) as stage:
        greet(stage)
        configure(stage, config)
        assert {"source": "/asked/for"} == hear(stage[INIT], Word.MOUNT_FD_PLS).payload
        fd = mounts.clone_tree(str(tmp_path / "data"))
        stage[INIT].send(Word.MOUNT_FD, {}, [fd])
        os.close(fd)

        assert (0, "granted") == run(stage, stage.pid)


def test_a_directory_descriptor_can_be_the_root(root: Path) -> None:
    """With chroot the program's root is the directory of CONFIG's first descriptor."""
    with stage_2(APART) as stage:
        greet(stage)
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        configure(stage, InitConfig(shell("ls /; ls /.."), root=Root.CHROOT), [fd])
        os.close(fd)

        assert (0, "bin\netc\nproc\n" * 2) == run(stage, stage.pid)


# --- names, network, limits, rights


def test_the_host_gets_its_names() -> None:
    """Host and domain name of the new uts namespace; the machine's own stay."""
    config = InitConfig(
        shell("hostname; cat /proc/sys/kernel/domainname"), hostname="inside", domainname="nis"
    )

    assert "inside\nnis\n" == output_of(config, apart(CLONE_NEWUTS))
    assert socket.gethostname() != "inside"


@pytest.mark.parametrize("loopback", [True, False])
def test_loopback_is_brought_up(loopback: bool) -> None:
    """lo of a new network namespace is up when it is wanted, and down as it was made otherwise."""
    config = InitConfig(shell("cat /proc/net/fib_trie"), loopback=loopback)

    assert loopback == ("127.0.0.1" in output_of(config, apart(CLONE_NEWNET)))


def test_directory_mask_and_limits_are_set() -> None:
    """The program starts in its directory, with its umask and resource limits."""
    process = shell(
        "pwd; umask; ulimit -n", cwd="/etc", umask=0o027, rlimits=(Rlimit(7, 123, 456),)
    )

    assert ["/etc", "0027", "123"] == output_of(InitConfig(process)).split()


def test_a_missing_directory_has_a_fallback() -> None:
    """Where the directory does not exist the program starts in the fallback, or fails."""
    process = shell("pwd", cwd="/nonexistent", cwd_fallback="/usr")
    assert "/usr\n" == output_of(InitConfig(process))

    with stage_2() as stage:
        greet(stage)
        wanted = shell("pwd", cwd="/nonexistent", cwd_fallback="/nonexistent")
        configure(stage, InitConfig(wanted))
        close_fds(hear(stage[INIT], Word.READY))
        stage[INIT].send(Word.RUN)
        failure = expect_failure(stage[INIT], Word.STARTED)

        assert ("change directory to /nonexistent", 2) == (failure.step, failure.errno)


def test_rights_are_taken_last() -> None:
    """Ids, groups, the five capability sets and no_new_privs are those of CONFIG, no more."""
    sets = CapabilitySets(bounding=1 << 5, permitted=1 << 5, effective=1 << 5, inheritable=1 << 5,
                          ambient=1 << 5)  # fmt: skip
    rights = Credentials(1234, 4321, (7, 8), sets, no_new_privs=True)
    config = InitConfig(program("cat", "/proc/self/status", credentials=rights))
    lines = output_of(config).splitlines()
    fields = {name: value.split() for name, value in (line.split(":", 1) for line in lines)}

    assert ["1234"] * 4 == fields["Uid"]
    assert ["4321"] * 4 == fields["Gid"]
    assert ["7", "8"] == fields["Groups"]
    assert ["1"] == fields["NoNewPrivs"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert [f"{1 << 5:016x}"] == fields[name], name


# --- above the program: the reaper


def reaped(script: str, **options: Any) -> InitConfig:
    """Return a configuration with a reaper."""
    return InitConfig(shell(script), reaper=True, **options)


def start_reaper(stage: Forked, config: InitConfig) -> None:
    """Be the manager up to STARTED."""
    greet(stage)
    configure(stage, config)
    close_fds(hear(stage[INIT], Word.READY))
    stage[INIT].send(Word.RUN)
    hear(stage[INIT], Word.STARTED)


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3 << 8), ("kill -KILL $$", 9)])
def test_the_reaper_tells_the_end(script: str, status: int) -> None:
    """STARTED when the exec succeeded, EXITED with the wait status, then its own end."""
    with stage_2() as stage:
        start_reaper(stage, reaped(script))

        assert {"status": status} == hear(stage[INIT], Word.EXITED).payload
        assert 0 == stage.wait()


def test_nothing_outlives_the_program() -> None:
    """Daemons that the program leaves are killed before EXITED is said."""
    script = (
        "for n in 1 2 3; do (setsid sleep 1000 &) ; done; setsid sh -c 'sleep 1000 & sleep 1000' &"
    )
    with stage_2() as stage:
        start_reaper(stage, reaped(script))
        hear(stage[INIT], Word.EXITED)
        stage.wait()

        assert "" == stage.output()  # end of file: nobody holds the pipe any more


def test_orphans_are_reaped_while_the_program_runs() -> None:
    """No zombie stays below the reaper."""
    with stage_2() as stage:
        start_reaper(stage, reaped("(sleep 0.02 & sleep 0.02 & ) ; read line || sleep 0.3"))
        until(lambda: len(children_of(stage.pid)) > 1, "no orphans came")
        until(lambda: len(children_of(stage.pid)) == 1, "zombies stay")
        hear(stage[INIT], Word.EXITED)


def test_without_a_manager_the_reaper_kills_all() -> None:
    """When the manager hangs up, the program and all below it end, and then the reaper."""
    with stage_2() as stage:
        start_reaper(stage, reaped("sleep 1000 & sleep 1000"))
        stage.hang_up()

        assert 0 == stage.wait()
        assert "" == stage.output()


def test_an_exec_that_fails_below_the_reaper_is_reported_once() -> None:
    """The child says FAILED itself; the reaper ends without another word."""
    with stage_2() as stage:
        greet(stage)
        configure(stage, InitConfig(program("/nonexistent"), reaper=True))
        close_fds(hear(stage[INIT], Word.READY))
        stage[INIT].send(Word.RUN)

        failure = expect_failure(stage[INIT], Word.STARTED)

        assert ("exec", 2) == (failure.step, failure.errno)
        assert 0 == stage.wait()
        with pytest.raises(PeerDied):
            stage[INIT].expect(Word.STARTED, timeout=SECONDS)


def test_a_child_killed_at_the_gate_is_told() -> None:
    """The reaper says how the process died that was to become the program."""
    with stage_2() as stage:
        greet(stage)
        configure(stage, reaped("true"))
        message = hear(stage[INIT], Word.READY)
        signal.pidfd_send_signal(message.fds[0], signal.SIGKILL)
        close_fds(message)
        failure = expect_failure(stage[INIT], Word.STARTED)

        assert ("before exec", "died (SIGKILL)") == (failure.step, failure.text)
        assert 1 == stage.wait()


def test_a_new_pid_namespace_below() -> None:
    """With a new PID namespace the program's process is its first; its end reaches the manager."""
    config = InitConfig(shell("echo $$; exit 5"), new_pid_namespace=True)
    with stage_2(APART) as stage:
        greet(stage)
        configure(stage, config)

        assert (5, "1\n") == run(stage, stage.pid)


# --- terminal and supervision


def test_a_terminal_is_handed_up() -> None:
    """TERMINAL carries the master; the program has the slave as its controlling terminal."""
    with stage_2() as stage:
        greet(stage)
        configure(stage, InitConfig(shell("tty; ps -o tty= $$; echo e >&2", terminal=True)))
        (master,) = hear(stage[INIT], Word.TERMINAL).fds
        close_fds(hear(stage[INIT], Word.READY))
        stage[INIT].send(Word.RUN)
        data = b""
        with suppress(OSError):
            while chunk := os.read(master, 1024):
                data += chunk
        os.close(master)

        name, tty, error = data.decode().split()
        assert ("/dev/" + tty, "e") == (name, error)
        assert 0 == stage.wait()


def test_it_is_supervised_before_it_is_ready() -> None:
    """SUPERVISE_PLS carries the listener, its pidfd and the vessel; READY waits for the ACK."""
    config = reaped("true", seccomp_notify=filter_program(), vessel="/etc/passwd")
    with stage_2() as stage:
        greet(stage)
        configure(stage, config)
        message = hear(stage[INIT], Word.SUPERVISE_PLS)
        listener, pidfd, vessel = (os.readlink(f"/proc/self/fd/{fd}") for fd in message.fds)

        assert "seccomp notify" in listener
        assert "pidfd" in pidfd
        assert "/etc/passwd" == vessel
        poller = select.poll()
        poller.register(stage[INIT], select.POLLIN)
        assert [] == poller.poll(50)
        stage[INIT].send(Word.SUPERVISE_ACK)
        close_fds(hear(stage[INIT], Word.READY))
        close_fds(message)


# --- wrong words, malformed payloads, silence, hang-ups


def test_stage_2_does_not_start_by_itself() -> None:
    """Before GRANDCHILD it is deaf to the manager, and ends when stage 0 hangs up."""
    with stage_2() as stage:
        stage["grandchild"].close()
        failure = expect_failure(stage[INIT], *LATER)

        assert "stage 0 (PARENT) died before GRANDCHILD" in failure.text
        assert 1 == stage.wait()


def test_stage_2_lets_nothing_but_grandchild_pass() -> None:
    """Another word of stage 0 is a broken handshake."""
    with stage_2() as stage:
        say(stage["grandchild"], Word.RECVPID_ACK)

        assert "got RECVPID_ACK" in expect_failure(stage[INIT], *LATER).text
        assert 1 == stage.wait()


GOOD = to_payload(InitConfig(shell("true")))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"more": 1}, "InitConfig.more"),
        ({"process": {}}, "InitConfig.process.argv"),
        ({"process": {"argv": ["x"], "env": "A=1"}}, "InitConfig.process.env"),
        ({"hostname": 5}, "InitConfig.hostname"),
        ({"mounts": [{"source_kind": "new"}]}, "InitConfig.mounts[0].source"),
        ({"reaper": 1}, "InitConfig.reaper"),
        ({"seccomp_notify": "text"}, "InitConfig.seccomp_notify"),
    ],
)
def test_a_malformed_config_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    """CONFIG is checked as strictly as the bootstrap."""
    with stage_2() as stage:
        greet(stage)
        say(stage[INIT], Word.CONFIG, GOOD | change)

        assert expect_failure(stage[INIT], *LATER).text.startswith(f"{field}: ")
        assert 1 == stage.wait()


@pytest.mark.parametrize("word", [Word.RUN, Word.MOUNT_FD, Word.SUPERVISE_ACK, Word.BOOTSTRAP])
def test_a_wrong_word_instead_of_config_is_refused(word: Word) -> None:
    """The error names what was expected and what came."""
    with stage_2() as stage:
        greet(stage)
        say(stage[INIT], word)
        failure = expect_failure(stage[INIT], *LATER)

        assert "CONFIG" in failure.text
        assert f"got {word}" in failure.text
        assert 1 == stage.wait()


@pytest.mark.parametrize("reaper", [False, True])
def test_a_wrong_word_at_the_gate_is_refused(reaper: bool) -> None:
    """Nothing but RUN opens the start gate."""
    with stage_2() as stage:
        greet(stage)
        configure(stage, InitConfig(shell("true"), reaper=reaper))
        close_fds(hear(stage[INIT], Word.READY))
        say(stage[INIT], Word.MOUNT_FD)

        assert "got MOUNT_FD" in expect_failure(stage[INIT], Word.STARTED).text
        stage.wait()


@pytest.mark.parametrize("reaper", [False, True])
def test_a_silent_manager_is_not_waited_for(reaper: bool) -> None:
    """Without RUN the stage fails after the deadline of CONFIG."""
    with stage_2() as stage:
        greet(stage)
        configure(stage, InitConfig(shell("true"), reaper=reaper, timeout=1))
        close_fds(hear(stage[INIT], Word.READY))

        assert "no RUN from manager within 1 s" in expect_failure(stage[INIT], Word.STARTED).text
        stage.wait()


@pytest.mark.parametrize("reaper", [False, True])
@pytest.mark.parametrize("word", [None, Word.CONFIG, Word.TERMINAL, Word.SUPERVISE_PLS, Word.READY])
def test_it_ends_when_the_manager_hangs_up(reaper: bool, word: Word | None) -> None:
    """After each word the end of the manager is the end of stage 2 and of all below it."""
    config = InitConfig(
        shell("sleep 1000", terminal=True), reaper=reaper, seccomp_notify=filter_program()
    )
    with stage_2() as stage:
        greet(stage)
        if word is not None:
            configure(stage, config)
        held = hear_up_to(stage, word)
        stage.hang_up()

        assert 0 <= stage.wait()
        assert "" == stage.output()
    for message in held:
        close_fds(message)


def hear_up_to(stage: Forked, word: Word | None) -> list[Message]:
    """Be the manager up to ``word``; a closed terminal would be a signal."""
    said = (Word.CONFIG, Word.TERMINAL, Word.SUPERVISE_PLS, Word.READY)
    held = []
    for due in said[1 : said.index(word) + 1 if word else 0]:
        held.append(hear(stage[INIT], due))
        if due is Word.SUPERVISE_PLS and word is Word.READY:
            stage[INIT].send(Word.SUPERVISE_ACK)
    return held
