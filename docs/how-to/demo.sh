#!/bin/bash
# A container, a shell in it with the host's tools, one of its own programs, and the diagram of it
# all. `make demo` runs this; nothing is left behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
launcher=$PWD/.venv/bin/launcher
name=demo-$$
work=$(mktemp -d)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

finish() {
    [ -z "${container:-}" ] || { kill "$container"; wait "$container"; } 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

make_root() {
    mkdir -p "$1"/{bin,dev,etc,proc,sys,tmp}
    cp /bin/busybox "$1/bin"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -s /bin/busybox "$1/bin/$applet"
    done
    echo "a file of the container" >"$1/etc/motd"
}

start_container() {
    cat >"$work/run.json" <<END
{
  "name": "$name",
  "hostname": "demo",
  "command": ["/bin/sh", "-c", "trap exit TERM; sleep 3600 & wait"],
  "root": {"path": "$work/root"},
  "mounts": [{"type": "proc", "target": "/proc"}, {"type": "dev", "target": "/dev"},
             {"type": "sysfs", "target": "/sys"}]
}
END
    "$launcher" run --config "$work/run.json" &
    container=$!
    for _ in $(seq 200); do
        [ -e "/run/launcher/$name.json" ] && return
        kill -0 "$container" || { echo "the container did not start" >&2; exit 1; }
        sleep 0.05
    done
    echo "the container did not start in 10 s" >&2
    exit 1
}

inside() { "$launcher" attach "$name" -- "$@"; }

make_root "$work/root"
start_container

say "The container has a busybox and nothing else. The shell in it has the host's tools:"
inside bash -c 'grep PRETTY_NAME /etc/os-release; python3 --version; echo "hostname: $(hostname)"'

say "Its own files are at /c:"
inside bash -c 'ls /c; cat /c/etc/motd'

say "Its processes are the container's:"
inside ps -e -o pid,comm

say "A program of the container, executed from the shell, sees the container's root:"
"$launcher" attach --trace "$work/trace" "$name" -- /c/bin/ls /

say "What happened in that last attach:"
"$launcher" diagram "$work/trace"
