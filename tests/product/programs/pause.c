/* The first process of a test container: it does nothing, reaps nobody and ends on SIGTERM, like
 * the first process of many real containers. With an argument it reaps, as an init does. */
#include <signal.h>
#include <unistd.h>

static void end(int number) {
    (void)number;
    _exit(0);
}

int main(int count, char **words) {
    (void)words;
    signal(SIGTERM, end);
    if (count > 1)
        signal(SIGCHLD, SIG_IGN);
    for (;;)
        pause();
}
