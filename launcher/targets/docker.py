"""Docker containers, asked over the engine's API socket; the docker command is not needed.

One HTTP/1.0 request: the engine then neither chunks its answer nor keeps the connection, so no
HTTP library (20 ms to import) is needed. Engines on other machines (tcp://, ssh://) are refused:
their processes are not here.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from launcher.errors import AmbiguousTarget, EngineUnavailable, TargetNotRunning
from launcher.targets.lookup import MAX_STATE, Engine, Found, decode_json, dig, is_plain_name

_NAME: Final = "docker"
_SYSTEM_SOCKET: Final = "/run/docker.sock"
_TIMEOUT: Final = 5.0


def _look_up(name: str) -> Found | None:
    if not is_plain_name(name):
        return None
    status, answer = _get(_socket_path(), f"/containers/{name}/json")
    message = dig(answer, str, "message")
    if status == 404:
        return None
    if "prefix" in message:  # "multiple IDs found with provided prefix: ..."
        raise AmbiguousTarget(name, [f"every docker container whose id starts with {name}"])
    container = dig(answer, str, "Name").removeprefix("/")
    if status != 200 or not container:
        raise EngineUnavailable(_NAME, f"answered {status}: {message}")
    pid = dig(answer, int, "State", "Pid")
    if not pid or not dig(answer, bool, "State", "Running"):
        state = dig(answer, str, "State", "Status")
        raise TargetNotRunning(
            f"docker container {container!r} is not running (state: {state})",
            hint=f"docker start {container}",
        )
    return Found(_NAME, container, pid)


def _socket_path() -> str:
    host = os.environ.get("DOCKER_HOST", "")
    if host.startswith("unix://"):
        return host.removeprefix("unix://")
    if host:
        raise EngineUnavailable(
            _NAME, f"DOCKER_HOST={host} is not on this machine", hint="use a unix:// address"
        )
    own = os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), "docker.sock")
    rootless = os.geteuid() != 0 and os.path.isabs(own) and os.path.exists(own)
    return own if rootless else _SYSTEM_SOCKET


def _get(path: str, url: str) -> tuple[int, Any]:
    """Return the status and the decoded body of one request, or raise EngineUnavailable."""
    try:
        answer = _exchange(path, f"GET {url} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
    except PermissionError as error:
        hint = "run as root, or as a member of the group docker"
        raise EngineUnavailable(_NAME, f"{path}: {error.strerror}", hint=hint) from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise EngineUnavailable(_NAME, f"no engine listens on {path}") from error
    except OSError as error:
        raise EngineUnavailable(_NAME, f"{path}: {error}") from error
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise EngineUnavailable(_NAME, f"{path} does not speak HTTP")
    return int(words[1]), decode_json(body)


def _exchange(path: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT)
        connection.connect(path)
        connection.sendall(request)
        answer = bytearray()
        while len(answer) <= MAX_STATE and (piece := connection.recv(65536)):
            answer += piece
    return bytes(answer)


DOCKER = Engine(_NAME, _look_up)
