/*
 * A hostile program loader. An image that has it where this machine's python3 wants its loader
 * and executes /proc/self/exe runs it with the host's interpreter as its own /proc/self/exe
 * (CVE-2019-5736). It prints where that link leads and the errno of opening it for writing, of
 * giving it the mode it has, of doing so by way of a descriptor, and of giving it to root; it
 * writes nothing to it.
 *
 * There is no C library in here, because nothing has prepared the process for one.
 */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static long call(long number, long a, long b, long c, long d, long e)
{
#if defined(__x86_64__)
    long answer;
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(answer) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth) : "rcx", "r11", "memory");
    return answer;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
#endif
}

static char line[4200] = "loaded: ";
static long used = 8;

static void add(char byte) { line[used++] = byte; }

static void add_number(long answer)
{
    char digits[8];
    int count = 0;
    unsigned value = answer < 0 ? -answer : 0;
    add(' ');
    do
        digits[count++] = '0' + value % 10;
    while (value /= 10);
    while (count)
        add(digits[--count]);
}

void _start(void)
{
    static char self[] = "/proc/self/exe";
    static struct stat found;
    long size = call(SYS_readlinkat, AT_FDCWD, (long)self, (long)(line + used), 4000, 0);
    used += size > 0 ? size : 0;
    call(SYS_newfstatat, AT_FDCWD, (long)self, (long)&found, 0, 0);
    add_number(call(SYS_openat, AT_FDCWD, (long)self, O_WRONLY | O_CLOEXEC, 0, 0));
    add_number(call(SYS_fchmodat, AT_FDCWD, (long)self, found.st_mode & 07777, 0, 0));
    add_number(call(SYS_fchmod, call(SYS_openat, AT_FDCWD, (long)self, O_RDONLY, 0, 0), found.st_mode & 07777, 0, 0, 0));
    add_number(call(SYS_fchownat, AT_FDCWD, (long)self, 0, 0, 0));
    add('\n');
    call(SYS_write, 1, (long)line, used, 0, 0);
    call(SYS_exit_group, 0, 0, 0, 0, 0);
}
