"""The command line: parses, prints, maps errors to exit codes. Nothing else prints or exits.

Exit codes: the program's own; 128+n when signal n ended it; 125 a launcher error, 126 the program
cannot be executed, 127 it is not found; 124 the time limit; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from launcher.arguments import overrides, parse
from launcher.errors import LauncherError
from nsstages.errors import NsstagesError, StageFailed

if TYPE_CHECKING:
    from nsstages.trace import Recorder


# Objects that may be made before the collector looks: more than a launch makes until it waits.
_LAUNCH_OBJECTS: Final = 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code. Without ``arguments`` this process is the command,
    and ends here.
    """
    if arguments is not None:
        return _run(arguments)
    # What a launch loads lives to its end: looking for garbage in it is a tenth of the start
    gc.set_threshold(_LAUNCH_OBJECTS)
    code = _run(sys.argv[1:])
    # Everything has been cleaned up: taking the interpreter apart as well takes 5 ms
    os._exit(code)


def _run(arguments: Sequence[str]) -> int:
    try:
        options = parse(arguments)
        code = _ACTIONS[options.action](options)
        print(end="", flush=True)
    except (LauncherError, NsstagesError) as error:
        return _report(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 128 + 13
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return _report(LauncherError(f"{where}{error.strerror or error}"))
    return code


def _report(error: LauncherError | NsstagesError) -> int:
    print(f"launcher: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    if isinstance(error, LauncherError):
        return error.exit_code
    if isinstance(error, StageFailed) and error.failure.step == "exec":
        return 127 if error.failure.errno == errno.ENOENT else 126
    return 125


def launch(options: argparse.Namespace) -> int:
    """attach, run, exec: configuration to exit status."""
    from nsstages.messages import MANAGER
    from nsstages.trace import Recorder, create_sink

    config = _config(options, options.engine)
    sink = None
    if config.trace is not None:
        open(config.trace, "a").close()  # refused before anything is started
        sink = create_sink()
    recorder = Recorder(MANAGER, sink)
    recorder.event("process.start", role=MANAGER, comm="launcher")
    error: Exception | None = None
    status: int | None = None
    try:
        status = _launch(options.engine, config, recorder)
        return exit_code(status)
    except (LauncherError, NsstagesError, OSError) as raised:
        error = raised
        raise
    finally:
        if sink is not None:
            code = exit_code(status) if status is not None else None
            recorder.event("result", status=code, error=str(error or ""))
            _write_trace(sink, config.trace, options)
            os.close(sink)


def _launch(name: str, config: Any, recorder: Recorder) -> int:
    """Fork the FUSE server first: it imports for longer than the manager needs until then."""
    from launcher.companions import start_fuse_server

    servers = [start_fuse_server(recorder)] if config.serves_files else []
    from launcher.engine import Common, engine
    from launcher.lifecycle import launch

    common = Common(name, str(os.getpid()), config)
    return launch(
        engine(name), common, recorder, servers=servers, tell=print_note, warn=print_warning
    )


def exit_code(status: int) -> int:
    """Return a shell's exit code for a wait status."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def print_note(note: str) -> None:
    """Tell the person at the terminal one line."""
    if os.isatty(2):
        print(note, file=sys.stderr)


def print_warning(warning: str) -> None:
    """Tell that a launch is not quite what was asked for."""
    print(f"launcher: {warning}", file=sys.stderr)


def _config(options: argparse.Namespace, engine: str) -> Any:
    from launcher import config

    values = config.load(options.config) if options.config else {}
    values = config.merge(values, overrides(options))
    origin = options.config or "command line"
    convert = {"attach": config.attach, "run": config.run, "exec": config.exec_}
    return convert[engine](values, origin)


def _write_trace(sink: int, path: str, options: argparse.Namespace) -> None:
    from launcher import tracefile
    from nsstages.trace import read_sink

    about = {"engine": options.engine, "target": options.target, "command": options.command}
    tracefile.write(path, read_sink(sink), about)


def explain(options: argparse.Namespace) -> int:
    """Print the plan that would run."""
    import json

    from launcher import config
    from launcher.engine import Common, engine
    from launcher.lifecycle import prepare
    from launcher.plan import describe

    name = options.engine
    if name is None:
        values = config.load(options.config) if options.config else {}
        name = "attach" if options.target or "target" in values else "run"
    operations = engine(name)
    try:
        plan = prepare(operations, Common(name, "explain", _config(options, name)))
        print(json.dumps(describe(plan), indent=2))
    finally:
        operations.cleanup_container(None, None)
    return 0


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema of a configuration file."""
    import json

    from launcher import config

    print(json.dumps(config.schema(options.name), indent=2))
    return 0


def report(options: argparse.Namespace) -> int:
    """Print a trace as tables."""
    from launcher import tracefile
    from launcher.report import render

    trace = tracefile.read(options.file)
    print(render(trace.events, trace.about), end="")
    return 0


def diagram(options: argparse.Namespace) -> int:
    """Print a trace as a sequence diagram."""
    from launcher import tracefile
    from launcher.diagram import model, text

    print(text.render(model.build(tracefile.read(options.file).events)), end="")
    return 0


_ACTIONS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = MappingProxyType(
    {
        "launch": launch,
        "explain": explain,
        "schema": schema,
        "report": report,
        "diagram": diagram,
    }
)
