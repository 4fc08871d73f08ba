"""Another process's memory: process_vm_readv(2) and process_vm_writev(2), and C strings in it."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_PAGE: Final = 4096
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

# One buffer and its vectors for all reads of a page: the supervisor has one thread, and building
# them anew would cost more than the system call.
_page: Final = ctypes.create_string_buffer(_PAGE)
_page_view: Final = memoryview(_page).cast("B")
_local: Final = _Vector(ctypes.addressof(_page), _PAGE)
_remote: Final = _Vector(0, 0)
_local_reference: Final = ctypes.pointer(_local)
_remote_reference: Final = ctypes.pointer(_remote)


def _raise() -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def read_page_rest(tid: int, address: int) -> memoryview:
    """Return the bytes from ``address`` to the end of its page; valid until the next read."""
    length = _PAGE - address % _PAGE
    _remote.base = address
    _remote.length = length
    got = _readv(tid, _local_reference, 1, _remote_reference, 1, 0)
    if got == -1:
        _raise()
    return _page_view[:got]


def read(tid: int, address: int, size: int) -> bytes:
    """Return ``size`` bytes of the process's memory. Raises OSError (EFAULT when unmapped)."""
    data = b""
    while len(data) < size:
        data += bytes(read_page_rest(tid, address + len(data))[: size - len(data)])
    return data


def read_string(tid: int, address: int, limit: int = PATH_MAX) -> bytes:
    """Return the NUL-terminated string at ``address``, cut at ``limit``. Raises OSError."""
    text = b""
    while len(text) < limit:
        piece = bytes(read_page_rest(tid, address + len(text)))
        end = piece.find(b"\0")
        if end != -1:
            return text + piece[:end]
        text += piece
    return text[:limit]


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
