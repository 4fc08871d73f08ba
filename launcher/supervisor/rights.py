"""Who can board a vessel: will its set-user-id bit give the rights that the passage needs?"""

from __future__ import annotations

from typing import Final

from launcher.supervisor.resolver import Shell
from nsstages.credentials import CAP_SYS_ADMIN

_NEEDED: Final = 1 << CAP_SYS_ADMIN


def can_board(tid: int, shell: Shell) -> bool:
    """Tell whether the vessel will have its rights when ``tid`` executes it.

    Not with no_new_privs, unless the caller has them already; not when they are outside the
    bounding set; not in another user namespace than the shell's.
    """
    try:
        with open(f"/proc/{tid}/status", "rb", buffering=0) as file:
            status = dict(
                line.split(b":", 1) for line in (file.readall() or b"").splitlines() if b":" in line
            )
    except OSError:
        return False
    bounding = int(status[b"CapBnd"], 16) & _NEEDED
    has_already = int(status[b"CapEff"], 16) & _NEEDED
    restricted = status[b"NoNewPrivs"].strip() == b"1"
    return bool(bounding and (has_already or not restricted)) and shell.shares_user_namespace(tid)
