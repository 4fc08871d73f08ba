"""The request handlers: what the kernel asks of the mount, answered from the host's files.

Every handler runs to its end without giving way to another one, except where it says `await`:
then it touches no table. Synthetic files (numbers from FIRST_NUMBER on) are answered first in each
handler; changing one is EROFS, replacing one is EBUSY.
"""

from __future__ import annotations

from launcher.hostfs.contents import ContentOperations
from launcher.hostfs.guard import guarded
from launcher.hostfs.metadata import AttributeOperations
from launcher.hostfs.names import NameOperations


@guarded
class HostOperations(NameOperations, AttributeOperations, ContentOperations):
    """Serves ``options.source``; lives in the FUSE server process only.

    FLUSH is not handled on purpose: the kernel then stops asking, and closing costs no round trip.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False  # the kernel would ignore what the host does to open files
    enable_acl = True  # default_permissions without it would ignore the host's ACLs
