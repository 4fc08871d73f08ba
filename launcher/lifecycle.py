"""Drive an engine through the phases of its interface; clean up once, always, and report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from launcher.companions import Companion
from launcher.engine import Common, Operations
from launcher.phases import phase
from launcher.plan import Plan
from launcher.session import Session
from nsstages import namespaces
from nsstages.errors import NsstagesError
from nsstages.trace import Recorder


def prepare(engine: Operations[Any], common: Common[Any]) -> Plan:
    """Run the phases that fork nothing; `explain` stops here."""
    with phase("init_config"):
        engine.init_config(common, privileged=os.geteuid() == 0)
    with phase("prepare_config"):
        return engine.prepare_config()


def launch(
    engine: Operations[Any],
    common: Common[Any],
    recorder: Recorder,
    *,
    servers: Sequence[Companion] = (),
    tell: Callable[[str], None],
    warn: Callable[[str], None],
) -> int:
    """Run a launch from configuration to clean-up; return the program's wait status.

    Whatever is raised on the way has been cleaned up after when it leaves here. ``tell`` takes
    the plan's notes for the person at the terminal, ``warn`` its warnings for whoever reads.
    ``servers`` are FUSE servers that were started early; they are this function's from here on.
    """
    error: BaseException | None = None
    status: int | None = None
    session: Session | None = None
    try:
        session = Session(prepare(engine, common), recorder, servers)
        for warning in session.plan.warnings:
            warn(warning)
        status = _run_to_end(engine, session, tell)
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            if session is not None:
                session.end()
            else:
                for server in servers:
                    server.end(0)
        finally:
            with phase("cleanup_container"):
                engine.cleanup_container(error, status)
    return status


def _run_to_end(engine: Operations[Any], session: Session, tell: Callable[[str], None]) -> int:
    try:
        return _run(engine, session, tell)
    except (NsstagesError, OSError) as error:
        session.end()
        reason = session.reason_for(error)
        if reason is error:
            raise
        raise reason from error


def _run(engine: Operations[Any], session: Session, tell: Callable[[str], None]) -> int:
    session.recorder.event("state", namespaces=namespaces.inodes(), uid=os.geteuid())
    pid = session.start()
    with phase("create_container"):
        engine.create_container(pid, session)
    with phase("pre_start_process"):
        engine.pre_start_process(pid, session)
    for note in session.plan.notes:
        tell(note)
    with phase("start_process"):
        engine.start_process(session)
    with phase("post_start_process"):
        engine.post_start_process(pid)
    with phase("monitor_container"):
        return engine.monitor_container(pid, session)
