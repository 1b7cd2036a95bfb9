/* Calls the aarch64 kernels of one level in an emulator, on memory that it shares with the test.

   runner FILE ADDRESS SIZE: the file is the memory, at the same address as in the test. Then one call per line of the
   standard input, "run|lead|assist A B C D" with decimal words, each answered by a line. Linked with -DLEVEL=name. */

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define JOIN(a, b, c, d) a##b##c##d
#define ENTRY(level, name) JOIN(minitrans_, level, _, name)

typedef void kernel(int64_t, int64_t, int64_t, int64_t);
extern kernel ENTRY(LEVEL, run), ENTRY(LEVEL, lead), ENTRY(LEVEL, assist);

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    void *address = (void *)strtoull(arguments[2], NULL, 10);
    int file = open(arguments[1], O_RDWR);
    int access = PROT_READ | PROT_WRITE;
    if (mmap(address, strtoull(arguments[3], NULL, 10), access, MAP_SHARED | MAP_FIXED, file, 0) != address) {
        perror("mmap");
        return 3;
    }
    char name[8];
    long long a, b, c, d;
    while (scanf("%7s %lld %lld %lld %lld", name, &a, &b, &c, &d) == 5) {
        kernel *call = ENTRY(LEVEL, run);
        if (!strcmp(name, "lead"))
            call = ENTRY(LEVEL, lead);
        if (!strcmp(name, "assist"))
            call = ENTRY(LEVEL, assist);
        call(a, b, c, d);
        puts("done");
        fflush(stdout);
    }
    return 0;
}
