/* The first process of a test container: it does nothing, reaps nobody and ends on SIGTERM, like
 * the first process of many real containers. */
#include <signal.h>
#include <unistd.h>

static void end(int number) {
    (void)number;
    _exit(0);
}

int main(void) {
    signal(SIGTERM, end);
    for (;;)
        pause();
}
