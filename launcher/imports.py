"""What trio, pyfuse3 and python-ptrace import and a launch never uses, kept out of its start.

Importing them is the longest part of an attach, and a third of it is for TLS, DTLS, international
host names, version numbers and running ldconfig. For the processes of one job only, which end with
it: what is kept out stays usable there, as far as it can be used at all.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

# trio names these at import and uses them in functions that are never called here.
_POSTPONED: Final = ("ssl", "hmac", "idna")


class _Postponed(ModuleType):
    """Stands for a module until an attribute of it is asked for, then takes that module's place.

    importlib.util.LazyLoader does not do: `import` itself asks a module for an attribute.
    """

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update(module.__dict__)
        return getattr(module, name)


@contextmanager
def sparing() -> Iterator[None]:
    """Import trio, pyfuse3 or python-ptrace in the body of this.

    While it lasts, two modules are stand-ins that answer the one question they are asked.
    `ctypes.util`, where a library is, for which it would run ldconfig(8): trio then names no
    threads, and python-ptrace takes the C library that the process has already.
    `importlib.metadata`, which version pyfuse3 is: it goes on as an unknown one.
    """
    for name in _POSTPONED:
        sys.modules.setdefault(name, _Postponed(name))
    library, metadata = ModuleType("ctypes.util"), ModuleType("importlib.metadata")
    vars(library).update(find_library=_nowhere)
    vars(metadata).update(PackageNotFoundError=ModuleNotFoundError, version=_unknown)
    with _instead(ctypes, "util", library), _instead(importlib, "metadata", metadata):
        yield


def _nowhere(_name: str) -> None:
    """Answer for ctypes.util.find_library."""


def _unknown(package: str) -> str:
    """Answer for importlib.metadata.version."""
    raise ModuleNotFoundError(package)


@contextmanager
def _instead(package: ModuleType, name: str, stand_in: ModuleType) -> Iterator[None]:
    """Have ``stand_in`` imported as a submodule of ``package``, unless the true one is there."""
    if stand_in.__name__ in sys.modules:
        yield
        return
    sys.modules[stand_in.__name__] = stand_in
    setattr(package, name, stand_in)
    try:
        yield
    finally:
        del sys.modules[stand_in.__name__]
        delattr(package, name)
