"""The routing decision, over a file system that exists only here."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.supervisor.routes import (
    HOST,
    Container,
    Decision,
    Host,
    Layout,
    Place,
    Refused,
    Target,
    Where,
    decide,
)

LAYOUT = Layout("/c", frozenset(("/dev", "/proc", "/sys")), "/.launcher/bin")
IN_CONTAINER = Where.CONTAINER


@dataclass
class Links:
    """A Resolver made of tables; everything that is not in one is no link."""

    host: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    programs: dict[str, str] = field(default_factory=dict)
    places: dict[int | None, Place] = field(default_factory=dict)
    processes: dict[tuple[str, str], Place] = field(default_factory=dict)

    def host_link(self, path: str) -> str | None:
        """A link of the host."""
        return self.host.get(path)

    def container_link(self, path: str) -> str | None:
        """A link of the container."""
        return self.container.get(path)

    def container_program(self, name: str) -> str | None:
        """A program of the container."""
        return self.programs.get(name)

    def start(self, directory_fd: int | None) -> Place:
        """Where the caller is."""
        return self.places[directory_fd]

    def process_link(self, process: str, link: str) -> Place | None:
        """Where a link of /proc leads."""
        return self.processes.get((process, link))


LINKS = Links(
    host={
        "/bin": "usr/bin",
        "/opt/tool": "/c/usr/bin/tool",
        "/opt/relative": "../c/usr/bin/tool",
        "/opt/loop": "/opt/loop",
        "/opt/self": "/proc/self/exe",
        "/opt/devices": "/dev/shm",
    },
    container={
        "/bin": "/usr/bin",
        "/up": "../../../usr/lib",
        "/dev/fd": "/proc/self/fd",
        "/dev/out": "/usr/bin/tool",
        "/dev/here": "shm/tool",
    },
    programs={"tool": "/usr/bin/tool"},
    places={
        None: Place(IN_CONTAINER, "/usr/bin"),
        3: Place(Where.HOST, "/opt"),
        4: Place(Where.FOREIGN, "/usr/bin"),
        5: Place(IN_CONTAINER, "/proc/12"),
        6: Place(IN_CONTAINER, "/dev/shm"),
        7: Place(Where.HOST, "/usr/bin/ls"),
        8: Place(IN_CONTAINER, "/usr/bin/tool"),
        9: Place(IN_CONTAINER, "/"),
    },
    processes={
        ("self", "exe"): Place(Where.HOST, "/usr/bin/bash"),
        ("thread-self", "exe"): Place(Where.HOST, "/usr/bin/bash"),
        ("1", "exe"): Place(Where.FOREIGN, "/sbin/init"),
        ("12", "exe"): Place(Where.FOREIGN, "/sbin/init"),
        ("1", "root"): Place(IN_CONTAINER, "/"),
        ("self", "root"): Place(Where.HOST, "/"),
        ("self", "cwd"): Place(IN_CONTAINER, "/usr"),
        ("self", "fd/5"): Place(IN_CONTAINER, "/usr/bin/tool"),
        ("1", "fd/5"): Place(Where.FOREIGN, "/usr/bin/tool"),
    },
)


def kind(decision: Decision) -> Decision:
    """Take away what a decision for the host says about the way to it."""
    return HOST if isinstance(decision, Host) else decision


TOOL = Container("/usr/bin/tool")
EACCES = Refused(errno.EACCES)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/usr/bin/ls", HOST),
        ("/bin/ls", HOST),
        ("//usr/./bin//ls", HOST),
        ("/", HOST),
        ("/..", HOST),
        ("/cc/usr/bin/tool", HOST),
        ("/c/usr/bin/tool", TOOL),
        ("//c///usr/bin/./tool", TOOL),
        ("/c", Container("/")),
        ("/c/", Container("/")),
        ("/usr/../c/usr/bin/tool", TOOL),
        ("/bin/../../c/usr/bin/tool", TOOL),
        ("/c/../usr/bin/ls", HOST),
        ("/c/usr/../../usr/bin/ls", HOST),
        ("/c/../c/usr/bin/tool", TOOL),
        ("/c/usr/../usr/bin/tool", TOOL),
        ("/c/bin/../bin/tool", TOOL),
        ("/c/bin/../../usr/bin/tool", TOOL),  # /c/bin is /usr/bin inside, so this stays inside
        ("/c/up/../bin/tool", TOOL),  # a link of the container stays below its root
        ("/opt/tool", TOOL),
        ("/opt/relative", TOOL),
        ("/opt/loop", HOST),
        ("/.launcher/bin/tool", TOOL),
        ("/.launcher/bin/missing", HOST),
        ("/.launcher/bin/tool/x", HOST),
        ("/.launcher/bin/../../usr/bin/ls", HOST),
        ("/.launcher/vessel", HOST),
        ("/dev/shm/tool", Container("/dev/shm/tool")),
        ("/dev/here", Container("/dev/shm/tool")),
        ("/dev/out", TOOL),
        ("/dev/../usr/bin/ls", HOST),
        ("/opt/devices/tool", Container("/dev/shm/tool")),
        ("/proc/self/exe", HOST),
        ("/opt/self", HOST),
        ("/proc/thread-self/exe", HOST),
        ("/proc/self/task/12/../../exe", HOST),
        ("/proc/1/exe", EACCES),
        ("/proc/1/task/1/exe", EACCES),
        ("/proc/1/fd/../exe", EACCES),
        ("/proc/self/../1/exe", EACCES),
        ("/proc/net/../../1/exe", EACCES),
        ("/proc/../proc/1/exe", EACCES),
        ("/dev/../proc/1/exe", EACCES),
        ("/proc/1/root/usr/bin/tool", TOOL),
        ("/proc/self/root/usr/bin/ls", HOST),
        ("/proc/self/root/c/usr/bin/tool", TOOL),
        ("/proc/self/root/proc/1/exe", EACCES),
        ("/proc/self/cwd/bin/tool", TOOL),
        ("/proc/self/cwd/../../usr/bin/ls", HOST),
        ("/proc/self/fd/5", TOOL),
        ("/dev/fd/5", TOOL),
        ("/proc/1/fd/5", EACCES),
        ("/proc/version", HOST),
        ("/proc", HOST),
        ("/proc/..", HOST),
        ("/c/proc/1/exe", Container("/proc/1/exe")),  # what the container's own kernel view makes
        ("/c/dev/../bin/../bin/tool", TOOL),
    ],
)
def test_absolute_path_belongs_to_one_view(path: str, expected: Decision) -> None:
    """The walk that the kernel would do tells whose program it is."""
    assert expected == kind(decide(Target(path), LAYOUT, LINKS))


@pytest.mark.parametrize(
    ("directory_fd", "path", "expected"),
    [
        (None, "tool", TOOL),
        (None, "./tool", TOOL),
        (None, "../bin/tool", TOOL),
        (None, "../../usr/bin/tool", TOOL),
        (None, "../../../usr/bin/ls", HOST),
        (3, "tool", TOOL),
        (3, "../usr/bin/ls", HOST),
        (3, "../c/usr/bin/tool", TOOL),
        (4, "tool", EACCES),
        (5, "exe", EACCES),
        (5, "../1/root/usr/bin/tool", TOOL),
        (6, "tool", Container("/dev/shm/tool")),
        (7, "", HOST),
        (8, "", TOOL),
        (4, "", EACCES),
        (9, "usr/bin/tool", TOOL),
    ],
)
def test_relative_path_starts_where_the_caller_is(
    directory_fd: int | None, path: str, expected: Decision
) -> None:
    """Relative paths and descriptors are judged by the place they start from."""
    assert expected == kind(decide(Target(path, directory_fd), LAYOUT, LINKS))


@pytest.mark.parametrize(
    ("path", "watched", "doubtful"),
    [
        ("/usr/bin/ls", False, False),
        ("/proc/self/exe", True, False),
        ("/dev/../usr/bin/ls", True, False),
        ("/c/../usr/bin/ls", True, False),
        ("/c/bin/../../../usr/bin/ls", True, True),
    ],
)
def test_way_that_the_container_can_change_is_marked(
    path: str, watched: bool, doubtful: bool
) -> None:
    """A host program reached through something of the container is looked at when it runs."""
    decision = decide(Target(path), LAYOUT, LINKS)

    assert Host(watched, doubtful) == decision


def test_own_proc_is_walked_as_the_containers() -> None:
    """Links of processes are judged the same when /proc is not the container's."""
    layout = Layout("/c", frozenset(("/dev",)), "/.launcher/bin")

    assert EACCES == decide(Target("/proc/1/exe"), layout, LINKS)
    assert HOST == kind(decide(Target("/proc/../usr/bin/ls"), layout, LINKS))


def test_deeper_prefix_is_found() -> None:
    """The container's tree can be anywhere below the root."""
    layout = Layout("/mnt/box", frozenset(), "/.launcher/bin")

    assert TOOL == decide(Target("/mnt/box/usr/bin/tool"), layout, LINKS)
    assert HOST == kind(decide(Target("/mnt/box/../ls"), layout, LINKS))
    assert HOST == decide(Target("/mnt/usr/bin/tool"), layout, LINKS)


@given(
    st.lists(
        st.sampled_from(
            ["usr", "bin", "c", "..", ".", "", "proc", "self", "1", "root", "exe", "up"]
        ),
        max_size=12,
    )
)
def test_every_path_has_a_decision(components: list[str]) -> None:
    """No path makes the walk fail, and what is routed never names a parent directory."""
    decision = decide(Target("/" + "/".join(components)), LAYOUT, LINKS)

    assert isinstance(decision, (Host, Container, Refused))
    if isinstance(decision, Container):
        assert decision.path.startswith("/")
        assert ".." not in decision.path.split("/")
