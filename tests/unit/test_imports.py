"""What the forked companions do not import, and that it is there all the same."""

from __future__ import annotations

import subprocess
import sys

START = """
import sys
from launcher.imports import sparing
with sparing():
    import launcher.hostfs.server
    import launcher.supervisor.loop
"""


def answer(code: str) -> str:
    """Return what ``code`` prints after their imports, in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.strip()


def test_nothing_for_tls_is_loaded() -> None:
    """Neither OpenSSL nor the tables of host names are loaded when they start."""
    loaded = answer("print([n for n in ('_ssl', '_hashlib', 'idna.core') if n in sys.modules])")

    assert "[]" == loaded


def test_no_program_is_run() -> None:
    """Importing trio or python-ptrace runs ldconfig; the companions' start runs nothing."""
    code = "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt)"

    assert "0" == answer(code)


def test_what_was_postponed_works() -> None:
    """A module that was kept out is loaded when somebody uses it."""
    assert "True" == answer("import ssl; print(ssl.create_default_context().check_hostname)")


def test_what_was_stood_in_for_works() -> None:
    """The stand-ins are gone after the import: their true modules can be imported."""
    code = (
        "import ctypes.util, importlib.metadata as m; print(m.version('trio')[0] in '0123456789')"
    )

    assert "True" == answer(code)


def test_modules_that_are_loaded_stay() -> None:
    """A module that was imported before is left alone."""
    code = """
import ctypes.util
before = ctypes.util
with sparing():
    assert ctypes.util is before
print(sys.modules["ctypes.util"] is before)
"""

    assert "True" == answer(code)
