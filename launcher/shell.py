"""The program of an attach: whose it is, its environment, how it finds the container's programs.

Pure. The container's programs are in PATH, last. A login shell reads /etc/profile, and many of
those set PATH anew; so the served root has one more file in /etc/profile.d, which bash, dash, ksh
and other shells of the Bourne family read after that. fish, zsh, csh and tcsh do not: they keep
the PATH that they inherit unless the person's own files, or the distribution's, set another.
"""

from __future__ import annotations

import os
from typing import Final

from launcher.attachment import DEFAULT_PATH, PROGRAMS, Attachment
from launcher.hostfs.options import File
from nsstages.credentials import CapabilitySets, Credentials
from nsstages.init_config import Process

# What little they allow: CAP_WAKE_ALARM, CAP_BLOCK_SUSPEND, CAP_LEASE, CAP_AUDIT_READ.
_HARMLESS: Final = (35, 36, 28, 37)
# The last of its directory in every locale: C sorts capitals before, others letter by letter.
_PROFILE: Final = "/etc/profile.d/zz-launcher.sh"
_PROFILE_TEXT: Final = f"""\
# Served by the launcher in this attach only; the host has no such file.
case ":$PATH:" in
    *:{PROGRAMS}:*) ;;
    *) PATH="$PATH:{PROGRAMS}" ;;
esac
"""


def plan_process(attach: Attachment) -> Process:
    """Plan the shell: the person's, with their home and history, and the container's PATH added."""
    config, host, person = attach.config, attach.host, attach.host.person
    rights = Credentials()
    if host.privileged and not is_own_environment(attach):
        rights = Credentials(person.uid, person.gid, person.groups, guard_of(attach))
    environment = environment_of(attach)
    return Process(
        argv=tuple(config.command) or (environment["SHELL"], "-l"),
        env=tuple(f"{name}={value}" for name, value in environment.items()),
        cwd=config.cwd or host.cwd,
        cwd_fallback=config.cwd or environment["HOME"],
        credentials=rights,
        terminal=host.interactive if config.terminal == "auto" else config.terminal,
    )


def guard_of(attach: Attachment) -> CapabilitySets:
    """Return one harmless capability that the container lacks, as the person's only one.

    The kernel lets a process look into another of the same uid, and so at this host's files, but
    not when the other holds a capability that it has not (cap_ptrace_access_check): without this
    a container's process of the person's uid, or its root become that uid, could. bwrap runs with
    no capability at all: `setpriv --ambient-caps=-all bwrap ...`.
    """
    lacking = ~attach.target.capabilities.bounding
    guard = next((1 << number for number in _HARMLESS if lacking >> number & 1), 0)
    everything = (1 << attach.host.last_capability + 1) - 1
    return CapabilitySets(guard, guard, guard, bounding=everything, ambient=guard)


def profile_files(attach: Attachment) -> tuple[File, ...]:
    """Return the files that keep the container's programs in a login shell's PATH."""
    return (File(_PROFILE, _PROFILE_TEXT.encode()),) if attach.routes else ()


def is_own_environment(attach: Attachment) -> bool:
    """Tell whether the launcher's environment is that of the person, and not of sudo's root."""
    return attach.host.person.uid == os.geteuid()


def environment_of(attach: Attachment) -> dict[str, str]:
    """Return the shell's environment: the invoker's, made the person's, then the overrides."""
    config, host, person = attach.config, attach.host, attach.host.person
    own = host.environment if is_own_environment(attach) else {}
    environment = {} if config.clear_env else dict(host.environment)
    environment |= {
        "HOME": own.get("HOME") or person.home,
        "SHELL": own.get("SHELL") or person.shell,
        "USER": person.name,
        "LOGNAME": person.name,
    }
    if attach.routes:
        environment["PATH"] = f"{environment.get('PATH') or DEFAULT_PATH}:{PROGRAMS}"
    return environment | dict(config.env)
