"""Another process's memory: process_vm_readv(2) and process_vm_writev(2), and C strings in it."""

from __future__ import annotations

import ctypes
import os
from typing import Final, NoReturn

_libc: Final = ctypes.CDLL(None, use_errno=True)
_PAGE: Final = 4096
_SHORT: Final = 256  # most strings end within; copying a page would cost more
PATH_MAX: Final = 4096


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_VECTOR = ctypes.POINTER(_Vector)
for _name in ("process_vm_readv", "process_vm_writev"):
    _function = getattr(_libc, _name)
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (
        ctypes.c_int, _VECTOR, ctypes.c_ulong, _VECTOR, ctypes.c_ulong, ctypes.c_ulong,
    )  # fmt: skip
_readv: Final = _libc.process_vm_readv
_writev: Final = _libc.process_vm_writev

# One buffer and its vectors for all reads: the supervisor has one thread, and building them anew
# would cost more than the system call.
_buffer: Final = ctypes.create_string_buffer(_PAGE)
_buffer_view: Final = memoryview(_buffer).cast("B")
_local: Final = _Vector(ctypes.addressof(_buffer), _PAGE)
_remote: Final = _Vector(0, 0)
_local_reference: Final = ctypes.pointer(_local)
_remote_reference: Final = ctypes.pointer(_remote)


def _raise() -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def read(tid: int, address: int, size: int) -> bytes:
    """Return at most ``size`` bytes at ``address``, not beyond its page. Raises OSError."""
    _remote.base = address
    _remote.length = min(size, _PAGE - address % _PAGE)
    got = _readv(tid, _local_reference, 1, _remote_reference, 1, 0)
    if got == -1:
        _raise()
    return bytes(_buffer_view[:got])


def read_string(tid: int, address: int, limit: int = PATH_MAX) -> bytes:
    """Return the NUL-terminated string at ``address``, cut at ``limit``. Raises OSError."""
    text = read(tid, address, _SHORT)
    end = text.find(b"\0")
    while end == -1 and len(text) < limit:
        piece = read(tid, address + len(text), _PAGE)
        found = piece.find(b"\0")
        end = len(text) + found if found != -1 else -1
        text += piece
    return text[:end] if end != -1 else text[:limit]


def read_word(tid: int, address: int, size: int) -> int:
    """Return the pointer of ``size`` bytes at ``address``. Raises OSError."""
    data = read(tid, address, size)
    if len(data) < size:
        data += read(tid, address + len(data), size - len(data))
    return int.from_bytes(data, "little")


def write(tid: int, address: int, data: bytes) -> None:
    """Write ``data`` into the process's memory. Raises OSError."""
    buffer = ctypes.create_string_buffer(data, len(data))
    local = _Vector(ctypes.addressof(buffer), len(data))
    remote = _Vector(address, len(data))
    done = _writev(tid, ctypes.pointer(local), 1, ctypes.pointer(remote), 1, 0)
    if done == -1:
        _raise()
    if done != len(data):
        raise OSError(14, "partial write")
