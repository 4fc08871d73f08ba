"""run: a program in new namespaces, from a root directory or the host's root over FUSE."""

from __future__ import annotations

import os

from launcher import settings
from launcher.engine import Common, Operations
from launcher.host import own_mounts
from launcher.joins import open_namespace_files
from launcher.people import invoking_person, subordinate_ids
from launcher.plan import Plan
from launcher.run_plan import RunHost, plan_run
from launcher.session import Session
from launcher.supervisor.notify import filter_program
from launcher.targets import sandbox
from launcher.targets.process import read_stat
from launcher.targets.users import User, look_up
from launcher.terminal import is_interactive
from nsstages.channel import close_all
from nsstages.credentials import last_capability


class Sandbox(Operations[settings.Run]):
    """A new container. Others find it by its name while it runs."""

    name = "run"

    def __init__(self) -> None:
        self._config = settings.Run()
        self._files: list[int] = []
        self._program_pid = 0

    def config(self) -> settings.Run:
        """Return the zero value."""
        return settings.Run()

    def init_config(self, common: Common[settings.Run], *, privileged: bool) -> None:
        """Store the configuration."""
        del privileged
        self._config = common.config

    def prepare_config(self) -> Plan:
        """Read the facts, plan."""
        return plan_run(self._config, self._read_host())

    def _read_host(self) -> RunHost:
        person = invoking_person({})
        files = open_namespace_files(self._config.namespaces)
        self._files = [reference.fd for reference in files.values()]
        return RunHost(
            privileged=os.geteuid() == 0,
            uid=os.geteuid(),
            gid=os.getegid(),
            person=person,
            environment=dict(os.environ),
            cwd=os.getcwd(),
            namespace_files=files,
            subordinate_uids=subordinate_ids("/etc/subuid", person.name, person.uid),
            subordinate_gids=subordinate_ids("/etc/subgid", person.name, person.uid),
            newuidmap=_helper("newuidmap"),
            newgidmap=_helper("newgidmap"),
            cgroup_hierarchies=_cgroup_hierarchies(),
            last_capability=last_capability(),
            filter_program=filter_program(),
            interactive=is_interactive(),
            user=self._user(),
        )

    def _user(self) -> User | None:
        """Return the user in the new root's own /etc/passwd."""
        if self._config.user is None:
            return None
        root_fd = os.open(self._config.root.path or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return look_up(root_fd, self._config.user)
        finally:
            os.close(root_fd)

    def pre_start_process(self, pid: int, session: Session) -> None:
        """Write the state, so that whoever sees the program run can find it by name."""
        del pid
        self._program_pid = session.program_pid()
        if self._config.name is not None:
            stat = read_stat(self._program_pid)
            start_time = stat.start_time if stat is not None else 0
            command = session.plan.init.process.argv
            sandbox.write_state(self._config.name, self._program_pid, start_time, command)

    def cleanup_container(self, error: BaseException | None, status: int | None) -> None:
        """Remove the state, close what was opened."""
        del error, status
        if self._config.name is not None and self._program_pid:
            sandbox.remove_state(self._config.name, self._program_pid)
        close_all(self._files)


def _helper(name: str) -> str:
    import shutil

    return shutil.which(name) or ""


def _cgroup_hierarchies() -> tuple[str, ...]:
    return tuple(m.mount_point for m in own_mounts() if m.fs_type in ("cgroup", "cgroup2"))
