"""The pure readers of /proc: recorded lines of many machines, and hostile ones."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import TargetMalformed
from launcher.targets.cgroups import (
    CgroupMembership,
    directories,
    frozen_directory,
    parse_cgroup,
)
from launcher.targets.inside import MAX_ENVIRONMENT, parse_environment, path_inside
from launcher.targets.limits import parse_limits
from launcher.targets.mounts import Mount, parse_mountinfo
from launcher.targets.process import parse_stat
from launcher.targets.status import parse_status

DOCKER_ID = "99a7c416251ed9feb7e9ed88c0857ff395e9e3103793b3b3b472cd8d28de66cf"

HYBRID = f"""\
9:name=systemd:/docker/{DOCKER_ID}
6:freezer:/docker/{DOCKER_ID}
4:memory:/process_api/x/docker/{DOCKER_ID}
3:cpu,cpuacct:/docker/{DOCKER_ID}
0::/docker/{DOCKER_ID}
"""
PURE_V2_PODMAN = f"0::/machine.slice/libpod-{DOCKER_ID}.scope/container\n"
PURE_V2_SYSTEMD = "0::/system.slice/system-getty.slice/getty@tty1.service\n"
PURE_V2_ROOTLESS = f"""\
0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{DOCKER_ID}.scope
"""

MOUNTS_HYBRID = """\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 /process_api/x /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
"""
MOUNTS_V2 = """\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw
"""

STATUS = """\
Name:\tsh\\nUid:\t0\t0
Umask:\t0022
State:\tS (sleeping)
Tgid:\t812
NStgid:\t812\t1
Uid:\t100000\t100001\t100002\t100003
Gid:\t100010\t100011\t100012\t100013
Groups:\t100010 100027 \n\
NSpid:\t812\t1
CapInh:\t0000000000000000
CapPrm:\t00000000a80425fb
CapEff:\t00000000a80425fb
CapBnd:\t00000000a80425ff
CapAmb:\t0000000000000001
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t1
"""

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units     \n\
Max cpu time              unlimited            unlimited            seconds   \n\
Max open files            1024                 524288               files     \n\
Max nice priority         0                    0                    \n\
Max realtime timeout      unlimited            unlimited            us        \n\
"""


def test_status_is_read() -> None:
    """Ids, groups, capabilities, seccomp and the innermost pid come from /proc/PID/status."""
    status = parse_status(STATUS)

    assert (812, (812, 1)) == (status.tgid, status.nspid)
    assert (100000, 100001, 100002, 100003) == status.uids
    assert (100010, 100011, 100012, 100013) == status.gids
    assert (100010, 100027) == status.groups
    assert (0o22, True, 2) == (status.umask, status.no_new_privs, status.seccomp_mode)
    capabilities = status.capabilities
    assert (0xA80425FB, 0xA80425FF) == (capabilities.effective, capabilities.bounding)
    assert (0, 1) == (capabilities.inheritable, capabilities.ambient)


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("Uid", "Uid:\t1\t2\t3\n"),
        ("Gid", "Gid:\t1\t2\tx\t4\n"),
        ("CapEff", "CapEff:\tzz\n"),
        ("Groups", "Groups:\t-1\n"),
        ("Umask", "Umask:\t9\n"),
        ("Seccomp", ""),
    ],
)
def test_a_malformed_field_is_refused_by_name(field: str, line: str) -> None:
    """A field of /proc/PID/status that makes no sense, or is missing, is named."""
    lines = [old for old in STATUS.splitlines(keepends=True) if not old.startswith(f"{field}:")]

    with pytest.raises(TargetMalformed) as caught:
        parse_status("".join(lines) + line)

    assert field == caught.value.field


def test_the_status_of_a_real_process_is_read() -> None:
    """The text of this kernel has all fields."""
    assert parse_status(Path("/proc/self/status").read_text()).tgid > 0


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=15))
def test_a_process_name_cannot_forge_its_stat(name: str) -> None:
    """Parentheses, spaces and newlines in a process's name do not move the fields after it."""
    text = f"77 ({name}) S 5 6 7 0 -1 2097152 " + " ".join(map(str, range(10, 22))) + " 4711 0 0"

    stat = parse_stat(text.encode())

    assert (77, "S", 5, True, 4711) == (
        stat.pid, stat.state, stat.parent, stat.is_kernel_thread, stat.start_time
    )  # fmt: skip


@pytest.mark.parametrize("text", [b"", b"1 (x", b"1 (x) S 1", b"1 (x) S" + b" x" * 30])
def test_a_malformed_stat_is_refused(text: bytes) -> None:
    """Too few fields, or words where numbers belong, are an error that names the file."""
    with pytest.raises(TargetMalformed, match="stat: "):
        parse_stat(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PURE_V2_SYSTEMD, {PURE_V2_SYSTEMD[3:-1]}),
        (PURE_V2_PODMAN, {PURE_V2_PODMAN[3:-1]}),
        (PURE_V2_ROOTLESS, {PURE_V2_ROOTLESS[3:-1]}),
        ("0::/\n", {"/"}),
        ("0::/a:b/c (deleted)\n", {"/a:b/c"}),
    ],
)
def test_membership_of_version_2(text: str, expected: set[str]) -> None:
    """The one line of version 2 is the unified hierarchy, whatever its path holds."""
    memberships = parse_cgroup(text)

    assert expected == {membership.path for membership in memberships}
    assert [(0, ())] == [(m.hierarchy_id, m.controllers) for m in memberships]


def test_membership_of_a_hybrid_host() -> None:
    """Named and combined hierarchies of version 1 stand beside the one of version 2."""
    memberships = {m.controllers: m.path for m in parse_cgroup(HYBRID)}

    assert {
        ("name=systemd",), ("freezer",), ("memory",), ("cpu", "cpuacct"), ()
    } == set(memberships)  # fmt: skip
    assert f"/docker/{DOCKER_ID}" == memberships["cpu", "cpuacct"]


@pytest.mark.parametrize("text", ["x::/\n", "0:/\n", "0::relative\n", "\0\n"])
def test_a_malformed_membership_is_refused(text: str) -> None:
    """A line that is no membership is an error that names the file."""
    with pytest.raises(TargetMalformed, match="cgroup: "):
        parse_cgroup(text)


def test_directories_of_a_hybrid_host() -> None:
    """Each membership is found where its hierarchy is mounted, also when a part of it is."""
    found = directories(parse_cgroup(HYBRID), parse_mountinfo(MOUNTS_HYBRID))

    assert {
        ("name=systemd",): f"/sys/fs/cgroup/systemd/docker/{DOCKER_ID}",
        ("memory",): f"/sys/fs/cgroup/memory/docker/{DOCKER_ID}",
        ("cpu", "cpuacct"): f"/sys/fs/cgroup/cpu,cpuacct/docker/{DOCKER_ID}",
        (): f"/sys/fs/cgroup/unified/docker/{DOCKER_ID}",
    } == {membership.controllers: directory for membership, directory in found.items()}


def test_directories_of_a_version_2_host() -> None:
    """The unified hierarchy is at /sys/fs/cgroup; its root is the directory itself."""
    mounts = parse_mountinfo(MOUNTS_V2)
    root = CgroupMembership(0, (), "/")

    assert {root: "/sys/fs/cgroup"} == directories([root], mounts)
    assert [f"/sys/fs/cgroup{PURE_V2_SYSTEMD[3:-1]}"] == list(
        directories(parse_cgroup(PURE_V2_SYSTEMD), mounts).values()
    )


def test_a_cgroup_outside_the_mounts_has_no_directory() -> None:
    """A path above the reader's cgroup namespace or mount is left out, never guessed."""
    outside = [CgroupMembership(0, (), "/../other"), CgroupMembership(4, ("memory",), "/elsewhere")]

    assert {} == directories(outside, parse_mountinfo(MOUNTS_HYBRID))


@pytest.mark.parametrize(
    ("file", "text", "frozen"),
    [
        ("freezer.state", "THAWED\n", False),
        ("freezer.state", "FREEZING\n", True),
        ("freezer.state", "FROZEN\n", True),
        ("cgroup.events", "populated 1\nfrozen 0\n", False),
        ("cgroup.events", "populated 1\nfrozen 1\n", True),
        ("cgroup.procs", "1\n", False),
    ],
)
def test_a_frozen_cgroup_is_noticed(tmp_path: Path, file: str, text: str, frozen: bool) -> None:
    """Frozen and freezing cgroups of both versions are told from running ones."""
    (tmp_path / file).write_text(text)

    assert (str(tmp_path) if frozen else None) == frozen_directory(["/nowhere", str(tmp_path)])


def test_mountinfo_is_read() -> None:
    """Escaped names, optional fields and a root inside the file system come out right."""
    (mount,) = parse_mountinfo(
        r"36 35 98:0 /a\040b /mnt/x\011\134040y rw,noatime shared:1 master:2 - ext3 "
        r"/dev/my\040disk rw,errors=continue" + "\n"
    )

    assert Mount(
        mount_id=36,
        parent_id=35,
        device="98:0",
        root="/a b",
        mount_point="/mnt/x\t\\040y",
        options=frozenset({"rw", "noatime"}),
        propagation=("shared:1", "master:2"),
        fs_type="ext3",
        source="/dev/my disk",
        super_options=frozenset({"rw", "errors=continue"}),
    ) == mount  # fmt: skip


@pytest.mark.parametrize("text", ["x", "1 2 0:1 / / rw - ext4", "a b 0:1 / / rw - e s o"])
def test_malformed_mountinfo_is_refused(text: str) -> None:
    """A line that is no mount is an error that names the file."""
    with pytest.raises(TargetMalformed, match="mountinfo: "):
        parse_mountinfo(text)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_mount_point_survives(name: str) -> None:
    """A mount point of any characters is read back from the kernel's escaped form."""
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in name)
    line = f"1 2 0:1 / /{escaped} rw - tmpfs tmpfs rw\n"

    (mount,) = parse_mountinfo(line)

    assert f"/{name}" == mount.mount_point


def test_real_mountinfo_is_read() -> None:
    """The mounts of this machine can be read."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")

    assert len(text.splitlines()) == len(parse_mountinfo(text))


def test_limits_are_read() -> None:
    """Limits come by their number, with infinity for unlimited."""
    limits = parse_limits(LIMITS)

    assert (1024, 524288) == limits[resource.RLIMIT_NOFILE]
    assert (resource.RLIM_INFINITY, resource.RLIM_INFINITY) == limits[resource.RLIMIT_CPU]
    assert (0, 0) == limits[resource.RLIMIT_NICE]


def test_real_limits_are_read() -> None:
    """All sixteen limits of this process are what getrlimit(2) says."""
    limits = parse_limits(Path("/proc/self/limits").read_text())

    assert set(range(16)) == set(limits)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits[resource.RLIMIT_NOFILE]


def test_an_unknown_limit_is_refused() -> None:
    """A line that is no limit is an error that names the file."""
    with pytest.raises(TargetMalformed, match="limits: "):
        parse_limits("head\nMax luck   x   y   z\n")


def test_only_variables_are_taken_from_an_environment() -> None:
    """What a process wrote over its environment is left out; odd bytes survive."""
    data = b"A=1\0\0noise\0=x\0B=\0C=a=b\nc\0D=\xff\0"

    assert ("A=1", "B=", "C=a=b\nc", "D=\udcff") == parse_environment(data)


def test_a_cut_off_variable_is_dropped() -> None:
    """Of an environment beyond the bound the last, incomplete variable is dropped."""
    data = (b"A=1\0B=" + b"x" * MAX_ENVIRONMENT)[:MAX_ENVIRONMENT]

    assert ("A=1",) == parse_environment(data)


@given(st.binary())
def test_any_environment_is_read(data: bytes) -> None:
    """Whatever bytes are there, what comes out are variables with a name and without NUL."""
    for entry in parse_environment(data):
        name, equals, _ = entry.partition("=")
        assert name
        assert equals
        assert "\0" not in entry


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("/", "/", "/"),
        ("/", "/home/x", "/home/x"),
        ("/srv/jail", "/srv/jail", "/"),
        ("/srv/jail", "/srv/jail/home", "/home"),
        ("/srv/jail", "/srv/jailer", "/"),
        ("/srv/jail", "/etc", "/"),
        ("/", "/gone (deleted)", "/"),
        ("/", "(unreachable)/x", "/"),
    ],
)
def test_a_path_is_named_from_the_root_of_its_process(root: str, path: str, expected: str) -> None:
    """A working directory is named inside its root; one without a name there becomes /."""
    assert expected == path_inside(root, path)
