/* A program that exists in the test containers and nowhere on the host. It prints the view that it
 * has, one "key value" a line, so that a test can tell the container's view from the host's.
 *
 *     onlyhere [WORD...]     print the view; the words appear in it
 *     onlyhere exit STATUS   end with this status
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

extern char **environ;

static void copy(const char *key, const char *path) {
    char line[8192];
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    while (fgets(line, sizeof line, file))
        printf("%s %s", key, line);
    fclose(file);
}

static void list(const char *key, const char *path) {
    DIR *directory = opendir(path);
    struct dirent *entry;
    if (!directory)
        return;
    while ((entry = readdir(directory)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            printf("%s %s\n", key, entry->d_name);
    closedir(directory);
}

static void print_link(const char *key, const char *path) {
    char target[4096];
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        return;
    target[length] = 0;
    printf("%s %s\n", key, target);
}

static void print_descriptors(void) {
    char path[64], target[4096];
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, target, sizeof target - 1);
        if (length < 0)
            continue;
        target[length] = 0;
        printf("fd %d %s\n", fd, target);
    }
}

static void print_namespaces(void) {
    static const char *const kinds[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
    char path[64];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        print_link("namespace", path);
    }
}

int main(int argc, char **argv) {
    char text[4096];
    if (argc == 3 && !strcmp(argv[1], "exit"))
        return atoi(argv[2]);
    for (int i = 0; i < argc; i++)
        printf("argument %s\n", argv[i]);
    printf("uid %d\neuid %d\ngid %d\negid %d\npid %d\n", getuid(), geteuid(), getgid(), getegid(),
           getpid());
    if (getcwd(text, sizeof text))
        printf("cwd %s\n", text);
    if (!gethostname(text, sizeof text))
        printf("hostname %s\n", text);
    for (char **variable = environ; *variable; variable++)
        printf("environment %s\n", *variable);
    list("root", "/");
    print_link("executable", "/proc/self/exe");
    print_namespaces();
    print_descriptors();
    copy("image", "/image.txt");
    copy("status", "/proc/self/status");
    copy("mount", "/proc/self/mountinfo");
    copy("cgroup", "/proc/self/cgroup");
    return 0;
}
