"""The vessel: a static ELF through which a routed exec passes, built here as bytes.

Started by itself it exits with 126. After an exec routed through it, the supervisor finds a process
with one thread, its own fresh memory, the code of a batch (machine.py) at a known address and zero
pages for the data of the injected calls. Imports nothing heavy: the manager needs `image()`.
"""

from __future__ import annotations

import struct
from typing import Final

from launcher.supervisor.machine import MACHINE

_BASE: Final = 0x10000000
SCRATCH: Final = 0x20000000
SCRATCH_SIZE: Final = 4 * 1024 * 1024  # environment and seccomp filters of a target fit in half
_PAGE: Final = 0x1000

_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_ENTRY_OFFSET: Final = _EHDR.size + 2 * _PHDR.size
_PT_LOAD: Final = 1
_READ_EXECUTE: Final = 5
_READ_WRITE: Final = 6

ENTRY: Final = _BASE + _ENTRY_OFFSET
BATCH: Final = ENTRY + len(MACHINE.EXIT)


def image() -> bytes:
    """Return the file of `/.launcher/vessel`; it is to be served with mode 4755, owner root."""
    code = MACHINE.EXIT + MACHINE.BATCH
    size = _ENTRY_OFFSET + len(code)
    identification = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _EHDR.pack(
        identification, 2, MACHINE.ELF_MACHINE, 1, ENTRY, _EHDR.size, 0, 0, _EHDR.size,
        _PHDR.size, 2, 0, 0, 0,
    )  # fmt: skip
    text = _PHDR.pack(_PT_LOAD, _READ_EXECUTE, 0, _BASE, _BASE, size, size, _PAGE)
    scratch = _PHDR.pack(_PT_LOAD, _READ_WRITE, 0, SCRATCH, SCRATCH, 0, SCRATCH_SIZE, _PAGE)
    return header + text + scratch + code
