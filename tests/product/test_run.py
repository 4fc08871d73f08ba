"""`launcher run`: a container of one's own, from a directory or the host's root over FUSE."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
import pytest

from launcher import tracefile
from tests import needs
from tests.product.attached import LAUNCHER
from tests.session import Session

SECONDS = 60
FUSE = {"root": {"source": "/", "fuse": True}}
APPLETS = (
    "sh cat ls id tty mount touch stat sleep hostname ip ps true dd wc grep".split()  # noqa: SIM905
)
OFFSET = 300000
IDS = [{"inside": 0, "outside": OFFSET, "count": 1000}]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def place(session: Session) -> Iterator[Path]:
    """A directory that everybody may enter, for roots and configurations."""
    path = session.own / session.unique_name("run")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def root(place: Path) -> Path:
    """A root directory: a static busybox, two users, and nothing else."""
    path = place / "root"
    for name in ("bin", "etc"):
        (path / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin/busybox")
    for name in APPLETS:
        (path / "bin" / name).symlink_to("/bin/busybox")
    (path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nwww:x:33:34::/srv:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nwww:x:34:\nextra:x:35:www\n")
    return path


@pytest.fixture
def run(place: Path) -> Run:
    """Run a configuration to its end, as root or as another user."""

    def run(
        config: dict[str, Any], *command: str, user: str = "", options: tuple[str, ...] = (),
        stdin: Any = subprocess.DEVNULL,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        words = run_words(place, config, *options, command=command)
        return subprocess.run(
            words, stdin=stdin, capture_output=True, text=True, timeout=SECONDS, cwd="/",
            **identity(user),
        )  # fmt: skip

    return run


def run_words(
    place: Path, config: dict[str, Any], *options: str, command: tuple[str, ...]
) -> list[str]:
    """Return the words of a command line, its configuration written down."""
    path = place / f"run{len(list(place.iterdir()))}.json"
    path.write_text(json.dumps(config))
    return [
        LAUNCHER,
        "run",
        "--config",
        str(path),
        *options,
        *(["--", *command] if command else ()),
    ]


def identity(user: str) -> dict[str, Any]:
    """Return how subprocess starts something as if that user had logged in."""
    if not user:
        return {}
    entry = pwd.getpwnam(user)
    environment = {k: v for k, v in os.environ.items() if k != "XDG_RUNTIME_DIR"}
    return {
        "user": user, "group": entry.pw_gid, "extra_groups": [entry.pw_gid],
        "env": {**environment, "HOME": entry.pw_dir, "USER": user, "LOGNAME": user},
    }  # fmt: skip


def printed(done: subprocess.CompletedProcess[str]) -> str:
    """Return the output of a run that went well, and without a word of the launcher's."""
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


WHO = [pytest.param("", marks=needs.root, id="root"),
       pytest.param(needs.USER, marks=[needs.user, needs.userns], id="user")]  # fmt: skip
each_user = pytest.mark.parametrize("user", WHO)


# --- a root directory


@each_user
def test_a_directory_becomes_the_root(run: Run, root: Path, user: str) -> None:
    """The program sees it as /, with /proc and /dev, and is root and the first process there."""
    if user:
        chown_tree(root, user)
    script = "ls /; id -u; echo $$; hostname; [ -c /dev/null ] && cat /proc/self/mounts"
    output = printed(run({"root": {"path": str(root)}, "hostname": "box"}, "sh", "-c", script,
                         user=user)).splitlines()  # fmt: skip

    assert {"bin", "etc", "dev", "proc"} <= set(output[: output.index("0")])
    assert ["0", "1", "box"] == output[output.index("0") :][:3]
    targets = {line.split()[1] for line in output if line.count(" ") > 3}
    assert {"/", "/proc", "/dev", "/dev/pts", "/dev/shm"} <= targets
    assert not any(target.startswith(("/var", "/tmp", "/home")) for target in targets)


def chown_tree(path: Path, user: str) -> None:
    """Give a root to a user."""
    entry = pwd.getpwnam(user)
    for directory, _, files in os.walk(path):
        for name in (".", *files):
            os.lchown(os.path.join(directory, name), entry.pw_uid, entry.pw_gid)


@needs.root
def test_devices_work(run: Run, root: Path) -> None:
    """The usual nodes, links and terminals of a /dev, without the host's disks."""
    script = (
        "echo x > /dev/null; dd if=/dev/zero bs=4 count=1 2>&- | wc -c;"
        " ls -d /dev/fd/0 /dev/stdin /dev/ptmx; ls /dev"
    )
    count, *names = printed(run({"root": {"path": str(root)}}, "sh", "-c", script)).split()

    assert "4" == count
    assert ["/dev/fd/0", "/dev/ptmx", "/dev/stdin"] == sorted(names[:3])
    expected = {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout",
                "stderr", "ptmx", "pts", "shm"}  # fmt: skip
    assert expected == set(names[3:])


@each_user
def test_a_network_of_its_own(run: Run, root: Path, user: str) -> None:
    """Loopback is up, and there is nothing else."""
    if user:
        chown_tree(root, user)
    output = printed(run({"root": {"path": str(root)}}, "ip", "-o", "addr", user=user))

    assert "127.0.0.1/8" in output
    assert {"lo"} == {line.split()[1] for line in output.splitlines()}


@needs.root
def test_maps_shift_every_id(run: Run, root: Path) -> None:
    """Files that the container's root and its users make belong to the mapped ids outside."""
    root.chmod(0o777)
    config = {"root": {"path": str(root)}, "namespaces": ["user", "mnt", "pid"],
              "uid_map": IDS, "gid_map": IDS}  # fmt: skip
    script = "cat /proc/self/uid_map; touch /made; stat -c '%u %g' /made /bin/busybox"
    lines = printed(run(config, "sh", "-c", script)).splitlines()
    made = (root / "made").stat()

    assert ["0", str(OFFSET), "1000"] == lines[0].split()
    assert ["0 0", "65534 65534"] == lines[1:]
    assert (OFFSET, OFFSET) == (made.st_uid, made.st_gid)

    done = run(config, "id", options=("-u", "www"))
    assert "uid=33(www) gid=34(www) groups=35(extra)\n" == printed(done).replace("34(www),", "")


@needs.root
def test_mounts_of_the_configuration(run: Run, root: Path, place: Path) -> None:
    """Bind mounts of files and trees, read-only or not, and new file systems; in their order."""
    (place / "data").mkdir()
    (place / "data/file").write_text("host\n")
    config = {
        "root": {"path": str(root)},
        "mounts": [
            {"type": "proc", "target": "/proc"},
            {"type": "bind", "source": str(place / "data"), "target": "/rw"},
            {"type": "bind", "source": str(place / "data"), "target": "/ro", "options": ["ro"]},
            {"type": "bind", "source": str(place / "data/file"), "target": "/rw/below/file"},
            {"type": "tmpfs", "target": "/tmp", "options": ["size=64k", "mode=1777", "nodev"]},
        ],
    }
    script = "cat /ro/file; touch /ro/x; touch /rw/new /tmp/t; ls /rw/below; cat /proc/mounts"
    done = run(config, "sh", "-c", script)
    tmpfs = next(line for line in done.stdout.splitlines() if " /tmp " in line)

    assert done.stdout.startswith("host\nfile\n")
    assert "/ro/x: Read-only file system" in done.stderr
    assert {"size=64k", "nodev"} <= set(tmpfs.split()[3].split(","))
    assert {"file", "new", "below"} == set(os.listdir(place / "data"))
    assert str(place) not in Path("/proc/self/mounts").read_text()


@needs.root
def test_a_source_that_only_root_may_enter(run: Run, root: Path, place: Path) -> None:
    """A bind mount from where the new user namespace cannot go: the manager opens it."""
    (place / "secret").mkdir(mode=0o700)
    (place / "secret/data").mkdir(mode=0o755)
    (place / "secret/data/file").write_text("granted\n")
    config = {
        "root": {"path": str(root)}, "namespaces": ["user", "mnt"], "uid_map": IDS, "gid_map": IDS,
        "mounts": [{"type": "bind", "source": str(place / "secret/data"), "target": "/d"}],
    }  # fmt: skip
    root.chmod(0o777)

    assert "granted\n" == printed(run(config, "cat", "/d/file"))


@needs.root
def test_a_read_only_root(run: Run, root: Path) -> None:
    """Nothing can be written to it, but to the mounts in it."""
    config = {"root": {"path": str(root), "read_only": True}}
    (root / "dev").mkdir()
    (root / "proc").mkdir()
    (root / "sys").mkdir()
    done = run(config, "sh", "-c", "touch /x; touch /dev/shm/y && echo written")

    assert ("written\n", True) == (done.stdout, "Read-only file system" in done.stderr)
    assert not (root / "x").exists()


@needs.root
def test_a_link_in_the_root_does_not_lead_out(run: Run, root: Path, place: Path) -> None:
    """A hostile root whose /proc is a link elsewhere gets its mount inside, the host none."""
    (place / "victim").mkdir()
    (root / "proc").symlink_to(place / "victim")
    done = run({"root": {"path": str(root)}}, "ls", "/proc/self/comm")

    assert done.returncode == 125 or "/proc/self/comm\n" == done.stdout
    assert [] == os.listdir(place / "victim")
    assert str(place / "victim") not in Path("/proc/self/mountinfo").read_text()


@needs.root
def test_rights_are_recorded_where_they_change(run: Run, root: Path, place: Path) -> None:
    """Stage 1 after its joins and the program before its exec tell the sets that they have."""
    trace = str(place / "trace")
    config = {"root": {"path": str(root)}, "trace": trace}
    status = printed(run(config, "cat", "/proc/self/status"))
    events = tracefile.read(trace).events
    child, program = (e for e in events if e["kind"] == "state" and "capabilities" in e)
    names = zip(("Inh", "Prm", "Eff", "Bnd", "Amb"), program["capabilities"].values(), strict=True)

    assert ("stage 1 (CHILD)", "stage 2 (INIT)") == (child["process"], program["process"])
    assert child["capabilities"]["effective"] > program["capabilities"]["effective"]
    assert [] == [n for n, value in names if f"Cap{n}:\t{value}\n" not in status]
    assert (0, 0, [0]) == (program["uid"], program["gid"], program["groups"] or [0])


@needs.root
def test_a_cgroup_of_its_own(run: Run, root: Path, session: Session, unique_name: str) -> None:
    """It exists in every hierarchy while the container runs, and never afterwards."""
    path = f"{session.cgroup}/{unique_name}"
    config = {"cgroup": path, "namespaces": ["mnt", "pid"]}
    lines = printed(run(config, "cat", "/proc/self/cgroup")).splitlines()

    assert len(lines) == sum(line.endswith(f":{path}") for line in lines)
    assert [] == list(Path("/sys/fs/cgroup").glob(f"**/{unique_name}"))


@each_user
def test_clocks_are_shifted(run: Run, user: str) -> None:
    """A new time namespace with offsets of its own; the host's clocks stay."""
    config = {"time_offsets": {"boottime": 100000}}
    host = float(Path("/proc/uptime").read_text().split()[0])
    output = printed(run(config, "cat", "/proc/uptime", user=user))

    assert 100000 == pytest.approx(float(output.split()[0]) - host, abs=SECONDS)


@needs.root
def test_a_namespace_can_be_joined_by_file(run: Run) -> None:
    """A kind given as a file is joined, the others are new."""
    file = "/proc/self/ns/net"
    config = {"namespaces": {"net": file, "uts": "new"}}
    output = printed(run(config, "readlink", "/proc/self/ns/net", "/proc/self/ns/uts")).split()

    assert os.readlink(file) == output[0]
    assert os.readlink("/proc/self/ns/uts") != output[1]


@needs.root
def test_the_programs_rights_are_a_containers(run: Run, root: Path) -> None:
    """Root has what engines leave it, another user nothing; nobody gains more."""
    status = ("grep", "^Cap", "/proc/self/status")
    as_root = printed(run({"root": {"path": str(root)}}, *status)).split()
    as_user = printed(run({"root": {"path": str(root)}}, *status, options=("-u", "www"))).split()

    inherited, permitted, effective, bounding, ambient = as_root[1::2]
    assert {"00000000a80425fb"} == {permitted, effective, bounding}
    assert {"0" * 16} == {inherited, ambient}
    inherited, permitted, effective, bounding, ambient = as_user[1::2]
    assert {"0" * 16} == {inherited, permitted, effective, ambient}
    assert "00000000a80425fb" == bounding


# --- the host's root over FUSE


@needs.fuse
@each_user
def test_the_hosts_files_over_fuse(run: Run, user: str, place: Path) -> None:
    """Programs and files are the host's; the program is supervised and is root of its namespace."""
    (place / "file").write_text("host\n")
    script = f"cat {place}/file; id -u; stat -f -c %T /etc; readlink /proc/self/ns/pid"
    content, uid, kind, namespace = printed(run(FUSE, "sh", "-c", script, user=user)).split()

    assert ("host", "0", "fuseblk") == (content, uid, kind)
    assert os.readlink("/proc/self/ns/pid") != namespace


@needs.fuse
@each_user
def test_written_files_are_ones_own(run: Run, user: str) -> None:
    """A file that is made inside belongs outside to whoever started the launcher."""
    directory = Path(pwd.getpwnam(user or "root").pw_dir)
    path = directory / f"launcher-test-{os.getpid()}"
    try:
        printed(run(FUSE, "sh", "-c", f"echo text > {path}; chmod 640 {path}", user=user))

        assert "text\n" == path.read_text()
        assert (pwd.getpwnam(user or "root").pw_uid, 0o640) == (
            path.stat().st_uid, path.stat().st_mode & 0o777
        )  # fmt: skip
    finally:
        path.unlink(missing_ok=True)


@needs.fuse
@needs.user
@needs.userns
def test_a_user_gains_nothing_over_fuse(run: Run, place: Path) -> None:
    """Root inside is the user outside: what they may not read, write or enter stays closed."""
    secret = place / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    script = (
        f"cat {secret}; echo x > {secret}; cat /etc/shadow; touch /etc/made; chmod 777 {secret}"
    )
    done = run(FUSE, "sh", "-c", script, user=needs.USER)

    assert "" == done.stdout
    assert 4 <= done.stderr.count("denied") + done.stderr.count("not permitted")
    assert "secret" == secret.read_text()
    assert 0o600 == secret.stat().st_mode & 0o777
    assert not Path("/etc/made").exists()


@needs.fuse
@each_user
def test_a_fuse_root_can_be_read_only(run: Run, user: str, place: Path) -> None:
    """Every write is refused; reading works."""
    place.chmod(0o777)
    config = {"root": {"source": "/", "fuse": True, "read_only": True}}
    done = run(config, "sh", "-c", f"touch {place}/x; cat /etc/hostname", user=user)

    assert "Read-only file system" in done.stderr
    assert Path("/etc/hostname").read_text() == done.stdout
    assert not (place / "x").exists()


@needs.fuse
@each_user
def test_nested_sandboxes_work_in_a_fuse_root(run: Run, user: str) -> None:
    """unshare -U works inside: the root was switched by pivot_root, not chroot."""
    output = printed(run(FUSE, "unshare", "-U", "-r", "id", "-u", user=user))

    assert "0\n" == output


@needs.fuse
@needs.root
def test_mounts_on_a_fuse_root(run: Run, place: Path) -> None:
    """A file system on a path that the host may not even have; nothing of it reaches the host."""
    target = f"/var/launcher-{place.name}"
    config = {**FUSE, "mounts": [{"type": "tmpfs", "target": target}]}
    output = printed(run(config, "sh", "-c", f"touch {target}/x; stat -f -c %T {target}"))

    assert "tmpfs\n" == output
    assert not Path(target).exists()


@needs.fuse
@needs.root
def test_every_process_of_the_program_is_recorded(run: Run, place: Path) -> None:
    """Under supervision the trace has each fork, exec and exit, and the words of all processes."""
    trace = place / "trace.jsonl"
    printed(run(FUSE, "sh", "-c", "/bin/true; /bin/echo x | cat > /dev/null",
                options=("--trace", str(trace))))  # fmt: skip
    header, *events = [json.loads(line) for line in trace.read_text().splitlines()]
    executed = {event["path"] for event in events if event["kind"] == "exec"}

    assert 1 == header["version"]
    assert {"true", "echo", "cat"} <= {os.path.basename(path) for path in executed}
    assert {"manager", "stage 0 (PARENT)", "stage 1 (CHILD)", "stage 2 (INIT)", "FUSE server",
            "supervisor"} <= {event["process"] for event in events}  # fmt: skip
    clocks = [event["clock"] for event in events]
    assert clocks == sorted(clocks)
    report = subprocess.run([LAUNCHER, "report", trace], capture_output=True, text=True)
    assert (0, "") == (report.returncode, report.stderr)


# --- terminals, streams and signals


@pytest.mark.parametrize("config", [FUSE, {"namespaces": ["mnt", "pid", "user"]}],
                         ids=["fuse", "plain"])  # fmt: skip
@needs.fuse
@each_user
def test_a_terminal_of_its_own(run: Run, config: dict[str, Any], user: str) -> None:
    """-t gives a terminal also where the launcher has none."""
    done = run(config, "sh", "-c", "tty; test -t 0 -a -t 1 -a -t 2 && echo all", options=("-t",),
               user=user)  # fmt: skip

    assert ["/dev/pts/", "all"] == [re.sub(r"\d+$", "", line) for line in done.stdout.split()]
    assert 0 == done.returncode


@needs.fuse
@each_user
def test_a_shell_at_a_terminal(place: Path, user: str) -> None:
    """On a terminal a FUSE root gives a shell: prompt, job control, and the exit code."""
    words = run_words(place, {**FUSE, "env": {"PS1": "ready> "}}, command=("sh", "-i"))
    wishes = identity(user)
    child = pexpect.spawn(
        words[0], words[1:], timeout=SECONDS, encoding="utf-8", cwd="/",
        env=wishes.get("env", os.environ), preexec_fn=lambda: become(user),
    )  # fmt: skip
    try:
        child.expect_exact("ready> ")
        child.sendline("sh -c 'tty; echo started; exec sleep 100'")
        child.expect("/dev/pts/[0-9]+\r\nstarted")
        child.sendintr()
        child.expect_exact("ready> ")
        child.sendline("exit 7")
        child.expect(pexpect.EOF)
    finally:
        child.close()

    assert 7 == child.exitstatus


def become(user: str) -> None:
    """Be the user, in the child that becomes the launcher."""
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([entry.pw_gid])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)


@needs.root
@pytest.mark.parametrize("config", [FUSE, {}], ids=["fuse", "plain"])
def test_bytes_pass_unharmed(place: Path, config: dict[str, Any]) -> None:
    """Without a terminal, standard streams are the program's own: any bytes, and end of file."""
    data = bytes(range(256)) * 2000
    words = run_words(place, config, command=("sh", "-c", "cat; echo end >&2"))
    done = subprocess.run(words, input=data, capture_output=True, timeout=SECONDS)

    assert (0, data, b"end\n") == (done.returncode, done.stdout, done.stderr)


@needs.root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("config", [FUSE, {"namespaces": ["mnt"]}], ids=["fuse", "plain"])
def test_signals_reach_the_program(
    place: Path, config: dict[str, Any], number: signal.Signals
) -> None:
    """What the launcher is sent, the program gets; its end is the launcher's."""
    script = f"trap 'echo caught; exit 9' {number.name[3:]}; echo up; while :; do sleep 0.02; done"
    words = run_words(place, config, command=("sh", "-c", script))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "up\n" == process.stdout.readline()
        process.send_signal(number)
        output, _ = process.communicate(timeout=SECONDS)

    assert (9, "caught\n") == (process.returncode, output)


@needs.root
@pytest.mark.parametrize("config", [FUSE, {"namespaces": ["mnt"]}], ids=["fuse", "plain"])
def test_a_signal_that_ends_the_program(place: Path, config: dict[str, Any]) -> None:
    """128 and its number, as shells say it; nothing of the program stays."""
    words = run_words(place, config, command=("sh", "-c", "echo up; exec sleep 1000"))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "up\n" == process.stdout.readline()
        process.terminate()
        process.communicate(timeout=SECONDS)

    assert 128 + signal.SIGTERM == process.returncode


@needs.root
@pytest.mark.parametrize("config", [FUSE, {"namespaces": ["mnt", "pid"]}], ids=["fuse", "plain"])
def test_daemons_end_with_the_program(run: Run, config: dict[str, Any], unique_name: str) -> None:
    """What the program leaves behind does not outlive the run, nor hold its output open."""
    script = f"(setsid sh -c 'exec sleep 1000 # {unique_name}' &); echo done"
    started = time.monotonic()
    output = printed(run(config, "sh", "-c", script))

    assert "done\n" == output
    assert time.monotonic() - started < SECONDS / 2
    assert "" == subprocess.run(["pgrep", "-f", unique_name], capture_output=True, text=True).stdout


@needs.root
@pytest.mark.parametrize("config", [FUSE, {"namespaces": ["mnt", "pid"]}], ids=["fuse", "plain"])
def test_a_time_limit_ends_everything(run: Run, config: dict[str, Any]) -> None:
    """124, soon after the limit, also when the program ignores every signal."""
    started = time.monotonic()
    done = run({**config, "timeout": 0.5}, "sh", "-c", "trap '' TERM INT HUP; sleep 1000 & wait")

    assert 124 == done.returncode
    assert "0.5 s" in done.stderr
    assert time.monotonic() - started < SECONDS / 4


# --- names


@pytest.fixture
def sleeper(place: Path, unique_name: str, root: Path) -> Iterator[Callable[[str], str]]:
    """Start a named container of a user that sleeps; returns its name when it runs."""
    started: list[subprocess.Popen[str]] = []

    def start(user: str) -> str:
        if user:
            chown_tree(root, user)
        script = "trap exit TERM; echo up; sleep 1000 & wait"
        config = {"root": {"path": str(root)}, "name": unique_name}
        words = run_words(place, config, command=("sh", "-c", script))
        started.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd="/", **identity(user))
        )
        assert started[-1].stdout is not None
        assert "up\n" == started[-1].stdout.readline()
        return unique_name

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=SECONDS)


@each_user
def test_a_name_is_taken_while_it_runs(run: Run, sleeper: Callable[[str], str], user: str) -> None:
    """A second container of that name is refused and leaves the first alone; later it is free."""
    name = sleeper(user)
    done = run({"name": name}, "true", user=user)

    assert 125 == done.returncode
    assert f"a container named '{name}' is running" in done.stderr
    assert "\nhint: " in done.stderr
    again = launcher_exec(name, "true", user=user)
    assert (0, "") == (again.returncode, again.stderr)


@needs.root
def test_a_name_is_free_afterwards(run: Run, unique_name: str) -> None:
    """Also after a program that could not be executed, and its state is gone."""
    for command, status in (("true", 0), ("false", 1), ("/nonexistent", 127), ("true", 0)):
        assert status == run({"name": unique_name}, command).returncode
        assert not Path(f"/run/launcher/{unique_name}.json").exists()


@needs.root
def test_a_killed_launchers_name_is_free(run: Run, sleeper: Callable[[str], str]) -> None:
    """The state that a SIGKILL leaves names nobody: it is ignored and replaced."""
    name = sleeper("")
    state = json.loads(Path(f"/run/launcher/{name}.json").read_text())
    launcher = int(Path(f"/proc/{state['pid']}/stat").read_text().rsplit(")")[-1].split()[1])
    os.kill(launcher, signal.SIGKILL)
    while os.path.exists(f"/proc/{state['pid']}"):  # a test is a subreaper: it comes to us
        with suppress(ChildProcessError):
            os.waitpid(state["pid"], 0)
        time.sleep(0.01)

    assert "no launcher container" in launcher_exec(name, "true").stderr
    printed(run({"name": name}, "true"))
    assert not Path(f"/run/launcher/{name}.json").exists()


@each_user
def test_ones_own_container_can_be_entered(sleeper: Callable[[str], str], user: str) -> None:
    """exec finds it by its name, with its root and namespaces; as a user of the container, too."""
    name = sleeper(user)
    done = launcher_exec(name, "sh", "-c", "id -u; ls /bin/busybox; ps | grep -c 'sleep 1000'",
                         user=user)  # fmt: skip

    assert ["0", "/bin/busybox"] == done.stdout.split()[:2]
    assert "uid=33(www)" in launcher_exec(name, "id", user=user, options=("-u", "www")).stdout
    assert 0 == launcher_exec(name, "tty", user=user, options=("-t",)).returncode


def launcher_exec(
    name: str, *command: str, user: str = "", options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `launcher exec` in a container of `launcher run`."""
    return subprocess.run(
        [LAUNCHER, "exec", *options, f"launcher:{name}", "--", *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, cwd="/",
        **identity(user),
    )  # fmt: skip


# --- what cannot work


@needs.root
@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ({"root": {"path": "/nonexistent"}}, (), ["/nonexistent", "No such file"]),
        ({"root": {"path": "/etc/passwd"}}, (), ["root"]),
        ({}, ("--trace", "/nonexistent/t"), ["/nonexistent/t: No such file or directory"]),
        ({}, ("--namespaces", "net=/nonexistent"), ["namespaces.net", "No such file"]),
        ({}, ("--namespaces", "net=/etc/passwd"), ["stage 1", "net", "setns", "EINVAL"]),
        ({"cwd": "/nonexistent"}, (), ["stage 2", "/nonexistent", "chdir", "ENOENT"]),
        ({}, ("-u", "no-such-user"), ["no-such-user"]),
        ({"root": {"path": "/"}, "mounts": [{"type": "tmpfs", "target": "/proc",
                                             "options": ["moon=full"]}]}, (),
         ["stage 2", "/proc", "EINVAL"]),
        ({"uid_map": [{"inside": 0, "outside": 0, "count": 1}],
          "gid_map": [{"inside": 5, "outside": 0, "count": 1}],
          "namespaces": ["user"], "cgroup": "/proc/../x"}, (), ["cgroup"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_a_line(
    run: Run, config: dict[str, Any], options: tuple[str, ...], words: list[str]
) -> None:
    """125, who failed at what and why; no traceback, nothing left."""
    done = run(config, "true", options=options)

    assert 125 == done.returncode
    assert done.stderr.startswith("launcher: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@needs.user
@needs.userns
def test_what_a_user_may_not_do_is_said(run: Run, unique_name: str) -> None:
    """Cgroups, ids of others, a trace in a closed directory: refused with the reason."""
    cases: tuple[tuple[dict[str, Any], tuple[str, ...], str], ...] = (
        ({"cgroup": f"/{unique_name}"}, (), "create cgroup"),
        ({"namespaces": ["user"], "uid_map": [{"inside": 0, "outside": 0, "count": 5}]}, (),
         "not allowed"),
        ({}, ("--trace", "/root/trace"), "/root/trace: Permission denied"),
    )  # fmt: skip
    for config, options, text in cases:
        done = run(config, "true", options=options, user=needs.USER)

        assert 125 == done.returncode
        assert text in done.stderr
        assert "Traceback" not in done.stderr
