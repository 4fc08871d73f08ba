"""The words of the handshake, who may say them to whom, and in which order.

    manager            stage 0 PARENT        stage 1 CHILD         stage 2 INIT
       |--- BOOTSTRAP ----->|                     |                     |
       |                    |<--- USERMAP_PLS ----|  (new user ns)      |
       |                    |---- USERMAP_ACK --->|                     |
       |                    |<- TIMEOFFSETS_PLS --|  (new time ns)      |
       |                    |- TIMEOFFSETS_ACK -->|                     |
       |<------ FUSE_FD ----|<----- FUSE_FD ------|  (FUSE root)        |
       |                    |<--- RECVPID_PLS ----|                     |
       |                    |---- RECVPID_ACK --->|                     |
       |                    |<--- CHILD_FINISH ---|  exits              |
       |                    |---- GRANDCHILD --------------------------->|
       |                    |<--- CHILD_FINISH --------------------------|
       |<------- PIDS ------|  exits                                     |
       |--- CONFIG -------------------------------------------------->  |
       |<-- MOUNT_FD_PLS / MOUNT_FD (any number) --------------------->  |
       |<-- TERMINAL (the pty's master) ------------------------------   |
       |<-- SUPERVISE_PLS / SUPERVISE_ACK ---------------------------->  |
       |<-- READY / RUN ---------------------------------------------->  |
       |<-- STARTED, EXITED (only when stage 2 stays above it) --------  |

FAILED may be said upward at any time; nothing follows it. The FUSE server
is told what to serve by OPTIONS and answers FUSE_FD with FUSE_SERVING, the supervisor answers
SUPERVISE_PLS with SUPERVISE_ACK.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Word(StrEnum):
    """Every word of the handshake; runc's names where runc has the word."""

    BOOTSTRAP = "BOOTSTRAP"
    USERMAP_PLS = "USERMAP_PLS"
    USERMAP_ACK = "USERMAP_ACK"
    TIMEOFFSETS_PLS = "TIMEOFFSETS_PLS"
    TIMEOFFSETS_ACK = "TIMEOFFSETS_ACK"
    OPTIONS = "OPTIONS"
    FUSE_FD = "FUSE_FD"
    FUSE_SERVING = "FUSE_SERVING"
    RECVPID_PLS = "RECVPID_PLS"
    RECVPID_ACK = "RECVPID_ACK"
    GRANDCHILD = "GRANDCHILD"
    CHILD_FINISH = "CHILD_FINISH"
    PIDS = "PIDS"
    CONFIG = "CONFIG"
    MOUNT_FD_PLS = "MOUNT_FD_PLS"
    MOUNT_FD = "MOUNT_FD"
    TERMINAL = "TERMINAL"
    SUPERVISE_PLS = "SUPERVISE_PLS"
    SUPERVISE_ACK = "SUPERVISE_ACK"
    READY = "READY"
    RUN = "RUN"
    STARTED = "STARTED"
    EXITED = "EXITED"
    FAILED = "FAILED"


MANAGER: Final = "manager"
PARENT: Final = "stage 0 (PARENT)"
CHILD: Final = "stage 1 (CHILD)"
INIT: Final = "stage 2 (INIT)"
FUSE: Final = "FUSE server"
SUPERVISOR: Final = "supervisor"

# comm of each process, at most 15 bytes (PR_SET_NAME): what `ps` shows
COMM: Final = MappingProxyType(
    {
        PARENT: "ns:[0:PARENT]",
        CHILD: "ns:[1:CHILD]",
        INIT: "ns:[2:INIT]",
        FUSE: "ns:[fuse]",
        SUPERVISOR: "ns:[ptrace]",
    }
)

_W = Word

# (who speaks, who listens) -> word -> the words of the same speaker that may come right before it;
# None stands for "as the first word". FAILED may always come last.
_Order = dict[Word, tuple[Word | None, ...]]
LEGAL: Final[Mapping[tuple[str, str], _Order]] = MappingProxyType(
    {
        (MANAGER, PARENT): {_W.BOOTSTRAP: (None,)},
        (PARENT, MANAGER): {
            _W.FUSE_FD: (None, _W.FUSE_FD),
            _W.PIDS: (None, _W.FUSE_FD),
        },
        (CHILD, PARENT): {
            _W.USERMAP_PLS: (None,),
            _W.TIMEOFFSETS_PLS: (None, _W.USERMAP_PLS),
            _W.FUSE_FD: (None, _W.USERMAP_PLS, _W.TIMEOFFSETS_PLS, _W.FUSE_FD),
            _W.RECVPID_PLS: (None, _W.USERMAP_PLS, _W.TIMEOFFSETS_PLS, _W.FUSE_FD),
            _W.CHILD_FINISH: (_W.RECVPID_PLS,),
        },
        (PARENT, CHILD): {
            _W.USERMAP_ACK: (None,),
            _W.TIMEOFFSETS_ACK: (None, _W.USERMAP_ACK),
            _W.RECVPID_ACK: (None, _W.USERMAP_ACK, _W.TIMEOFFSETS_ACK),
        },
        (PARENT, INIT): {_W.GRANDCHILD: (None,)},
        (INIT, PARENT): {_W.CHILD_FINISH: (None,)},
        (MANAGER, INIT): {
            _W.CONFIG: (None,),
            _W.MOUNT_FD: (_W.CONFIG, _W.MOUNT_FD),
            _W.SUPERVISE_ACK: (_W.CONFIG, _W.MOUNT_FD),
            _W.RUN: (_W.CONFIG, _W.MOUNT_FD, _W.SUPERVISE_ACK),
        },
        (INIT, MANAGER): {
            _W.MOUNT_FD_PLS: (None, _W.MOUNT_FD_PLS),
            _W.TERMINAL: (None, _W.MOUNT_FD_PLS),
            _W.SUPERVISE_PLS: (None, _W.MOUNT_FD_PLS, _W.TERMINAL),
            _W.READY: (None, _W.MOUNT_FD_PLS, _W.TERMINAL, _W.SUPERVISE_PLS),
            _W.STARTED: (_W.READY,),
            _W.EXITED: (_W.STARTED,),
        },
        (MANAGER, FUSE): {_W.OPTIONS: (None,), _W.FUSE_FD: (None, _W.OPTIONS)},
        (FUSE, MANAGER): {_W.FUSE_SERVING: (None,)},
        (MANAGER, SUPERVISOR): {_W.SUPERVISE_PLS: (None,)},
        (SUPERVISOR, MANAGER): {_W.SUPERVISE_ACK: (None,)},
    }
)


def is_legal(speaker: str, listener: str, word: Word, previous: Word | None) -> bool:
    """Tell whether ``speaker`` may say ``word`` to ``listener`` right after ``previous``."""
    if previous is Word.FAILED:
        return False
    if word is Word.FAILED:
        return True
    return previous in LEGAL[speaker, listener].get(word, ())
