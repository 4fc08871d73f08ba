"""The keys of attach.json and run.json and the options of exec, as frozen values.

The types and descriptions here are the reference: the JSON Schema and the error messages are made
of them. What no single key can say (two keys that contradict each other) is in consistency.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

Kind = Literal["mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time"]
MAX_ID: Final = 2**32 - 2

_PATH: Final = r"(?!(.|\n)*/\.\.(/|$))/[^\0]*"


def _text(pattern: str, expected: str) -> Meta:
    return Meta(pattern=f"^{pattern}$", extra={"expected": expected})


def _about(description: str) -> Meta:
    return Meta(description=description)


Path = Annotated[str, _text(_PATH, "an absolute path without ..")]
Word = Annotated[str, _text(r"[^\0]*", "a string without NUL")]
NonEmpty = Annotated[str, _text(r"[^\0]+", "a non-empty string without NUL")]
EnvName = Annotated[str, _text(r"[^=\0]+", "a variable's name (not empty, without = and NUL)")]
HostName = Annotated[str, _text(r"[^\s/\0]{1,64}", "a name of 1 to 64 characters")]
Name = Annotated[
    str,
    _text(
        r"(?=.*[^0-9])[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,127}",
        "a name of letters, digits and _.+@-, not a number",
    ),
]
JoinFrom = Annotated[str, _text(f"(join|{_PATH})", '"join" or the absolute path of a namespace')]
NewFrom = Annotated[str, _text(f"(new|{_PATH})", '"new" or the absolute path of a namespace')]
Id = Annotated[int, Meta(ge=0, le=MAX_ID)]
Seconds = Annotated[float, Meta(gt=0)]

Terminal = Annotated[
    bool | Literal["auto"],
    _about('Give the program a terminal of its own; "auto": when started on a terminal.'),
]
Command = Annotated[tuple[Word, ...], _about("The program and its arguments.")]
Env = Annotated[Mapping[EnvName, Word], _about("Variables to set.")]
ClearEnv = Annotated[bool, _about("Start with an empty environment; `env` is set nevertheless.")]
Timeout = Annotated[
    Seconds | None, _about("End the program after so many seconds, with exit status 124.")
]
Trace = Annotated[Path | None, _about("Write the trace of all processes to this file.")]
Joined = Annotated[
    tuple[Kind, ...] | Mapping[Kind, JoinFrom] | None,
    _about('The namespaces to join: a list of kinds of the target, or {kind: "join" or file}.'),
]


class Target(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A target in parts: a process id alone, or an engine and a name."""

    pid: Annotated[int, Meta(ge=1)] | None = None
    engine: NonEmpty | None = None
    name: NonEmpty | None = None


TargetKey = Annotated[
    NonEmpty | Target | None,
    _about("Whom to act on: NAME, ENGINE:NAME, a process id, or an object."),
]


class AttachRoot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the attached shell sees as its root directory."""

    source: Annotated[Path, _about("The host's directory that becomes the root.")] = "/"
    fuse: Annotated[bool, _about("Serve it by FUSE from the host's namespaces.")] = True
    read_only: Annotated[bool, _about("Refuse all writing to it.")] = False
    container_path: Annotated[Path, _about("Where the container's own tree is.")] = "/c"
    container_access: Annotated[
        Literal["auto", "idmapped", "native", "fuse"],
        _about(
            "How ids show there under a user namespace: as the container's by an idmapped mount "
            "or by FUSE, or as the host's (native). auto: idmapped where the file system can."
        ),
    ] = "auto"
    from_container: Annotated[
        tuple[Path, ...], _about("Files and directories taken from the container.")
    ] = ("/proc", "/dev", "/sys", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname")
    native: Annotated[
        tuple[Path, ...], _about("Host directories attached without FUSE, for their sockets.")
    ] = ("/run", "/tmp")


class Attach(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """attach.json: the host's tools inside a running container."""

    target: TargetKey = None
    command: Command = ()
    user: Annotated[NonEmpty | None, _about("The host's user to be; the one behind sudo.")] = None
    cwd: Annotated[Path | None, _about("Directory to start in, as the shell sees it.")] = None
    env: Env = {}
    clear_env: ClearEnv = False
    namespaces: Joined = None
    user_namespace: Annotated[
        Literal["join", "host"] | None,
        _about("The shell's user namespace; by default the host's for root, else the target's."),
    ] = None
    pid_namespace: Annotated[
        Literal["join", "host", "new"] | None,
        _about("The shell's pid namespace: the target's, the host's, or a new one below."),
    ] = None
    cgroup: Annotated[Literal["join", "host"], _about("The shell's cgroups.")] = "join"
    root: AttachRoot = AttachRoot()
    routing: Annotated[
        bool | None,
        _about("Run the container's programs in its own view; by default wherever possible."),
    ] = None
    supervise: Annotated[
        Literal["tree", "routed", "off"],
        _about("Whom the supervisor traces: all from the shell on, routed programs, nobody."),
    ] = "tree"
    terminal: Terminal = "auto"
    timeout: Timeout = None
    trace: Trace = None
    trust_container: Annotated[
        bool, _about("Attach even where the container could reach the shell.")
    ] = False

    @property
    def serves_files(self) -> bool:
        """Return True: the shell's root is served by FUSE."""
        return True

    @property
    def pid_mode(self) -> str:
        """Return join, host or new: `pid_namespace`, or what `namespaces` implies."""
        listed = self.namespaces is None or "pid" in self.namespaces
        return self.pid_namespace or ("join" if listed else "host")

    @property
    def routes(self) -> bool:
        """Tell whether programs of the container are routed."""
        possible = self.pid_mode != "host" and self.supervise != "off"
        return possible if self.routing is None else self.routing


class Exec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of `launcher exec`: one program in a container as one of its own."""

    target: TargetKey = None
    command: Command = ()
    user: Annotated[NonEmpty | None, _about("USER[:GROUP] of the container.")] = None
    cwd: Annotated[Path | None, _about("Directory to start in; its init's by default.")] = None
    env: Env = {}
    clear_env: ClearEnv = False
    namespaces: Joined = None
    cgroup: Annotated[Literal["join", "host"], _about("The program's cgroups.")] = "join"
    terminal: Terminal = "auto"
    timeout: Timeout = None
    trace: Trace = None

    @property
    def serves_files(self) -> bool:
        """Return False: an exec sees the container's files alone."""
        return False


class RunRoot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The root directory of a new container: a directory, or the host's tree over FUSE."""

    path: Annotated[Path | None, _about("A directory that becomes the root.")] = None
    source: Annotated[Path | None, _about("The host's directory that FUSE serves as root.")] = None
    fuse: Annotated[bool, _about("Serve `source` by FUSE.")] = False
    read_only: Annotated[bool, _about("Refuse all writing to it.")] = False


class Mount(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One mount in the new container."""

    type: Literal["bind", "tmpfs", "proc", "sysfs", "dev", "devpts", "mqueue"]
    target: Annotated[Path, _about("Where, below the new root.")]
    source: Annotated[Path | None, _about("What of the host; of a bind mount only.")] = None
    options: Annotated[
        tuple[Annotated[str, _text(r"[^,\0]+", "one mount option")], ...],
        _about("As in fstab(5), one an item."),
    ] = ()


class IdMapping(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``count`` ids: ``inside`` the namespace are ``outside``."""

    inside: Id
    outside: Id
    count: Annotated[int, Meta(ge=1, le=MAX_ID + 1)]


IdMappings = Annotated[
    tuple[IdMapping, ...] | Literal["auto"],
    _about('Ranges of ids; "auto": from /etc/subuid and /etc/subgid, or the caller alone.'),
]


class TimeOffsets(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a new time namespace adds to the clocks, in seconds."""

    monotonic: int = 0
    boottime: int = 0


class Run(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """run.json: a program in new namespaces."""

    name: Annotated[Name | None, _about("What other commands call the container.")] = None
    command: Command = ()
    user: Annotated[NonEmpty | None, _about("USER[:GROUP] of the container.")] = None
    cwd: Annotated[Path, _about("Directory to start in.")] = "/"
    env: Env = {}
    clear_env: ClearEnv = False
    namespaces: Annotated[
        tuple[Kind, ...] | Mapping[Kind, NewFrom] | None,
        _about('The namespaces to create, as a list; {kind: "new" or file} to join some.'),
    ] = None
    uid_map: IdMappings = "auto"
    gid_map: IdMappings = "auto"
    setgroups: Annotated[
        bool | None, _about("Allow setgroups(2) in the new user namespace; where possible.")
    ] = None
    hostname: HostName | None = None
    domainname: HostName | None = None
    loopback: Annotated[bool | None, _about("Bring lo up in a new net namespace.")] = None
    time_offsets: TimeOffsets | None = None
    root: RunRoot = RunRoot()
    mounts: Annotated[tuple[Mount, ...], _about("Mounted in this order.")] = ()
    cgroup: Annotated[Path | None, _about("A cgroup to create, below the hierarchy's root.")] = None
    oom_score_adj: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    supervise: Annotated[
        Literal["tree", "off"] | None,
        _about("Trace the whole process tree; by default with a FUSE root."),
    ] = None
    terminal: Terminal = "auto"
    timeout: Timeout = None
    trace: Trace = None

    @property
    def serves_files(self) -> bool:
        """Tell whether the root is the host's, served by FUSE."""
        return self.root.fuse


def chosen(namespaces: Any) -> Mapping[str, str | None] | None:
    """Return kind -> file for a `namespaces` key, whichever form it has; None for the default.

    A kind without a file is the target's own (attach, exec) or a new one (run).
    """
    if namespaces is None:
        return None
    if isinstance(namespaces, Mapping):
        return {kind: file if file.startswith("/") else None for kind, file in namespaces.items()}
    return dict.fromkeys(namespaces)
