"""C programs that call exec in every way there is, and a few that a container may hold."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

_CALLER: Final = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char **args;

static void refused(void) { printf("errno %d\n", errno); fflush(stdout); }

static void *from_thread(void *unused) {
    (void)unused;
    execv(args[0], args);
    refused();
    exit(3);
}

static void *idle(void *unused) { (void)unused; for (;;) pause(); }

static int leak(const char *when) {
    /* print the descriptors above 2 that are open */
    for (int fd = 3; fd < 64; fd++)
        if (fcntl(fd, F_GETFD) != -1) printf("%s: descriptor %d\n", when, fd);
    return 0;
}

static int wait_for(pid_t pid) {
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
    const char *how = argv[1];
    args = argv + 2;
    if (!strcmp(how, "thread")) {
        pthread_t t;
        for (int i = 0; i < 4; i++) pthread_create(&t, 0, idle, 0);
        pthread_create(&t, 0, from_thread, 0);
        pthread_join(t, 0);
    } else if (!strcmp(how, "leader")) {
        pthread_t t;
        for (int i = 0; i < 4; i++) pthread_create(&t, 0, idle, 0);
        execv(args[0], args);
        refused();
    } else if (!strcmp(how, "vfork")) {
        char *volatile marker = malloc(4096);
        memset(marker, 'x', 4096);
        pid_t pid = vfork();
        if (!pid) { execv(args[0], args); _exit(127); }
        int status = wait_for(pid);
        for (int i = 0; i < 4096; i++) if (marker[i] != 'x') puts("the parent's heap changed");
        return status;
    } else if (!strcmp(how, "spawn")) {
        pid_t pid;
        int error = posix_spawn(&pid, args[0], 0, 0, args, environ);
        if (error) { printf("errno %d\n", error); return 3; }
        return wait_for(pid);
    } else if (!strcmp(how, "fd")) { /* execveat of an open file */
        int fd = open(args[0], O_RDONLY | O_CLOEXEC);
        syscall(SYS_execveat, fd, "", args, environ, AT_EMPTY_PATH);
        refused();
    } else if (!strcmp(how, "at")) { /* execveat relative to a directory */
        int fd = open(args[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        syscall(SYS_execveat, fd, args[1], args + 1, environ, 0);
        refused();
    } else if (!strcmp(how, "given")) { /* execveat of a descriptor that was passed in */
        syscall(SYS_execveat, atoi(args[0]), "", args + 1, environ, AT_EMPTY_PATH);
        refused();
    } else if (!strcmp(how, "nnp")) {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        execv(args[0], args);
        refused();
    } else if (!strcmp(how, "failing")) { /* an exec that the kernel refuses once it has begun */
        size_t size = 200 * 1024;
        char *big = malloc(size);
        memset(big, 'a', size); big[size - 1] = 0;
        char *long_args[] = {args[0], big, 0};
        execv(args[0], long_args);
        refused();
        return leak("after");
    } else if (!strcmp(how, "descriptors")) { /* exec with descriptors of every kind open */
        int path = open("/etc", O_PATH), directory = open("/etc", O_RDONLY | O_DIRECTORY);
        int file = open("/etc/passwd", O_RDONLY), ns = open("/proc/self/ns/mnt", O_RDONLY);
        int ends[2];
        if (pipe(ends) || path < 0 || directory < 0 || file < 0 || ns < 0) return 9;
        printf("file %d pipe %d\n", file, ends[0]); fflush(stdout);
        execv(args[0], args);
        refused();
    } else if (!strcmp(how, "type")) { /* type a character into the terminal */
        char c = 'x';
        if (ioctl(0, 0x5412, &c)) refused();
        c = 3;
        if (ioctl(0, 0x541C, &c)) refused();
        return 0;
    } else if (!strcmp(how, "loop")) {
        int n = atoi(args[0]);
        for (int i = 0; i < n; i++) {
            pid_t pid = fork();
            if (!pid) { execv(args[1], args + 1); _exit(127); }
            int status = wait_for(pid);
            if (status) { printf("run %d: status %d\n", i, status); return 1; }
        }
        return 0;
    } else if (!strcmp(how, "many")) { /* many at once */
        int n = atoi(args[0]), failed = 0;
        for (int i = 0; i < n; i++)
            if (!fork()) { execv(args[1], args + 1); _exit(127); }
        for (int i = 0; i < n; i++) { int status; wait(&status); failed += status != 0; }
        printf("failed %d\n", failed);
        return 0;
    }
    return 3;
}
"""

_HELLO: Final = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
    FILE *file = fopen("/etc/marker", "r");
    char line[80] = "no marker\n";
    if (file) fgets(line, sizeof line, file);
    printf("%s says: %s", argv[0], line);
    return argc > 1 ? atoi(argv[1]) : 0;
}
"""


def compile_c(source: str, target: Path, *options: str, compiler: str = "gcc") -> Path:
    """Compile a C program."""
    file = target.with_suffix(".c")
    file.write_text(source)
    subprocess.run([compiler, "-O1", "-w", "-o", target, file, *options], check=True)
    file.unlink()
    return target


def build_caller(directory: Path) -> Path:
    """Build the program of the host that calls exec; its first argument says how."""
    return compile_c(_CALLER, directory / "caller", "-pthread", "-static")


def build_dynamic(root: Path) -> None:
    """Put a glibc and a musl program into a root, with interpreters that the host does not have."""
    libraries = root / "cont"
    libraries.mkdir()
    interpreter = Path("/lib64/ld-linux-x86-64.so.2").resolve()
    shutil.copy(interpreter, libraries / "ld-cont.so")
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", libraries)
    compile_c(
        _HELLO,
        root / "bin/hello-glibc",
        "-Wl,--dynamic-linker=/cont/ld-cont.so",
        "-Wl,-rpath,/cont",
    )
    shutil.copy(Path("/lib/ld-musl-x86_64.so.1").resolve(), libraries / "ld-musl-cont.so")
    compile_c(
        _HELLO,
        root / "bin/hello-musl",
        "-Wl,--dynamic-linker=/cont/ld-musl-cont.so",
        compiler="musl-gcc",
    )
    compile_c(_HELLO, root / "bin/hello-static", "-static")
    compile_c(_HELLO, root / "bin/hello-orphan", "-Wl,--dynamic-linker=/cont/missing.so")
