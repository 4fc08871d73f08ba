"""One guard around every request handler: whatever happens there becomes an errno.

pyfuse3 ends the whole mount on any exception but FUSEError.
"""

from __future__ import annotations

import errno
import functools
import inspect
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pyfuse3

from nsstages.trace import Recorder

_Class = TypeVar("_Class", bound=type)
_Handler = Callable[..., Awaitable[Any]]


def guarded(cls: _Class) -> _Class:
    """Wrap each public coroutine, inherited ones too; instances have a ``recorder``."""
    for name, handler in inspect.getmembers(cls, inspect.iscoroutinefunction):
        if not name.startswith("_"):
            setattr(cls, name, _guard(handler))
    return cls


def _guard(handler: _Handler) -> _Handler:
    @functools.wraps(handler)
    async def wrapper(self: Any, *arguments: Any) -> Any:
        try:
            return await handler(self, *arguments)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            raise pyfuse3.FUSEError(_errno_for_client(error)) from None
        except Exception as error:  # noqa: BLE001 - the mount must survive our bugs
            _record(self.recorder, handler.__name__, error)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return wrapper


def _errno_for_client(error: OSError) -> int:
    """Return the errno to send. ENOSYS would switch the operation off for the whole mount."""
    if error.errno == errno.ENOSYS:
        return errno.EOPNOTSUPP
    return error.errno or errno.EIO


def _record(recorder: Recorder, operation: str, error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    recorder.event("fuse.error", operation=operation, error=repr(error), traceback=text)
