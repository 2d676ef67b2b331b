/*
 * What a step that is isolated by chroot alone can reach outside of its root, and inside of it.
 *
 *   chroot_probe all FACTS OUT     try everything, one line "NAME ANSWER" for each in the file OUT
 *   chroot_probe try FACTS NAME... the answers to some, on standard output
 *   chroot_probe victim TEXT       a process to be attacked: prints where TEXT is in its memory, and waits
 *   chroot_probe true              nothing
 *   chroot_probe leave WHAT...     leave processes that want to stay, do harm, or hang; see leave_one()
 *   chroot_probe mode NUMBER       access(2) with an odd mode
 *   chroot_probe chmod PATH        leave the root and give a file outside of it the mode 04777
 *
 * FACTS is a file of lines "NAME VALUE" that says what there is to reach:
 *
 *   outside   a folder outside of the root, absolute, with: file (0600, a text), folder, program, socket (a
 *             unix socket somebody listens on)
 *   shared    another one, in /dev/shm, with file, and numbers (a folder with a file for each of 0 to 63)
 *   victim    the pid of a victim, address where its text is
 *   abstract  the name of an abstract socket that somebody listens on
 *   terminal  the number of somebody else's pseudo-terminal
 *   key       the key of a System V shared memory segment
 *   null      the inode of this machine's /dev/null, null_device the device that it is on
 *
 * The answer is an errno, 0 where the attempt succeeded, 200 + n where signal n ended it, and 199 where
 * it succeeded and did not have the effect. Each runs in a process of its own, for at most five seconds.
 *
 * It tries to do harm, so it insists on a file named /this-is-for-probes in its root.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define MARK "/this-is-for-probes"
#define P "/p" /* a directory of ours, world-writable */
#define COUNT(array) (sizeof(array) / sizeof *(array))
#define ANSWER(call) ((long)(call) < 0 ? errno : 0)
#define PROBE(id) static int probe_##id(void)
#define NO_EFFECT 199

enum { PIDFD_OPEN = 434, PIDFD_GETFD = 438, OPENAT2 = 437, FACCESSAT2 = 439, CLONE3 = 435, URING_SETUP = 425 };

static const char *outside = "/", *shared = "/", *abstract_name = "";
static long victim, address, terminal, key, null, null_device;
static pid_t first, supervisor; /* the process that runs the probes, and who has started it */

static const char *out_of(const char *name) /* relative to where leave() leads */
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", outside, name);
    return path + 1;
}

/* Leave a root that was entered by chroot: the oldest way. It needs CAP_SYS_CHROOT and nothing else. */
static int leave(void)
{
    struct stat found;
    mkdir(P, 0777);
    mkdir(P "/x", 0755);
    if (chroot(P "/x"))
        return errno;
    for (int n = 0; n < 64; n++)
        if (chdir(".."))
            return errno;
    return stat(out_of("file"), &found) ? NO_EFFECT : 0;
}

#define LEAVE() do { int left_ = leave(); if (left_) return left_; } while (0)

static int open_and_close(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static int reads(const char *path) /* whether there is something to read */
{
    char byte;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), answer;
    if (fd < 0)
        return errno;
    ssize_t size = read(fd, &byte, 1);
    answer = size < 0 ? errno : size ? 0 : ENODATA;
    close(fd);
    return answer;
}

static int reads_link(const char *path)
{
    char text[64];
    return ANSWER(readlink(path, text, sizeof text));
}

static int of_process(long pid, const char *name, int (*how)(const char *))
{
    char path[128];
    snprintf(path, sizeof path, "/proc/%ld/%s", pid, name);
    return how(path);
}

static int connect_to(struct sockaddr_un *name, socklen_t size, int type)
{
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0), answer;
    answer = ANSWER(connect(fd, (struct sockaddr *)name, size));
    close(fd);
    return answer;
}

static int connect_to_path(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof name.sun_path)
        return ENAMETOOLONG;
    strcpy(name.sun_path, path);
    return connect_to(&name, sizeof name, SOCK_STREAM);
}

static int bind_to_path(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), answer;
    if (strlen(path) >= sizeof name.sun_path)
        return ENAMETOOLONG;
    strcpy(name.sun_path, path);
    answer = ANSWER(bind(fd, (struct sockaddr *)&name, sizeof name));
    close(fd);
    return answer;
}

static int connect_to_abstract(const char *text)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    size_t length = strlen(text);
    memcpy(name.sun_path + 1, text, length);
    return connect_to(&name, offsetof(struct sockaddr_un, sun_path) + 1 + length, SOCK_STREAM);
}

static int execute(const char *path)
{
    pid_t pid = fork();
    int status;
    if (pid == 0) {
        execl(path, "probe", "true", NULL);
        _exit(errno);
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 200 + WTERMSIG(status);
}

static int made(const char *path) /* anew: another step may have left it, as somebody else */
{
    unlink(path);
    return open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

/* -- files: outside, after leaving, and the same inside -------------------------------- */

PROBE(escape_chroot) { return leave(); }
PROBE(outside_read) { LEAVE(); return reads(out_of("file")); }
PROBE(outside_write) { LEAVE(); return open_and_close(out_of("file"), O_WRONLY); }
PROBE(outside_append) { LEAVE(); return open_and_close(out_of("file"), O_WRONLY | O_APPEND); }
PROBE(outside_truncate) { LEAVE(); return ANSWER(truncate(out_of("file"), 5)); }
PROBE(outside_create) { LEAVE(); return open_and_close(out_of("made"), O_WRONLY | O_CREAT | O_EXCL); }
PROBE(outside_unnamed) { LEAVE(); return open_and_close(out_of("folder"), O_RDWR | O_TMPFILE); }
PROBE(outside_list) { LEAVE(); return open_and_close(out_of("folder"), O_RDONLY | O_DIRECTORY); }
PROBE(outside_mkdir) { LEAVE(); return ANSWER(mkdir(out_of("made-folder"), 0700)); }
PROBE(outside_symlink) { LEAVE(); return ANSWER(symlink("/", out_of("made-link"))); }
PROBE(outside_fifo) { LEAVE(); return ANSWER(mkfifo(out_of("made-fifo"), 0600)); }
PROBE(outside_node) { LEAVE(); return ANSWER(mknod(out_of("made-node"), S_IFCHR | 0600, makedev(1, 3))); }
PROBE(outside_bind) { LEAVE(); return chdir(outside + 1) ? errno : bind_to_path("made-socket"); }
PROBE(outside_unlink) { LEAVE(); return ANSWER(unlink(out_of("to-unlink"))); }
PROBE(outside_rmdir) { LEAVE(); return ANSWER(rmdir(out_of("to-rmdir"))); }
PROBE(outside_execute) { LEAVE(); return execute(out_of("program")); }

PROBE(outside_root) { LEAVE(); return chroot(".") ? errno : reads(out_of("file") - 1); }

PROBE(outside_rename)
{
    LEAVE();
    return chdir(outside + 1) ? errno : ANSWER(rename("to-rename", "renamed"));
}

PROBE(outside_link)
{
    LEAVE();
    return chdir(outside + 1) ? errno : ANSWER(link("file", "made-hardlink"));
}

PROBE(outside_steal) /* a link of a file outside in the root, where it could be read */
{
    int inside = open(P, O_PATH | O_DIRECTORY | O_CLOEXEC);
    LEAVE();
    return ANSWER(linkat(AT_FDCWD, out_of("file"), inside, "stolen", 0));
}

PROBE(outside_smuggle) /* a file of the root outside */
{
    int inside = open(P, O_PATH | O_DIRECTORY | O_CLOEXEC);
    close(made(P "/smuggled"));
    LEAVE();
    return ANSWER(linkat(inside, "smuggled", AT_FDCWD, out_of("smuggled"), 0));
}

PROBE(outside_stat) { struct stat found; LEAVE(); return ANSWER(stat(out_of("file"), &found)); }
PROBE(outside_access) { LEAVE(); return ANSWER(access(out_of("file"), R_OK)); }
PROBE(outside_chdir) { LEAVE(); return ANSWER(chdir(outside + 1)); }
PROBE(outside_chmod) { LEAVE(); return ANSWER(chmod(out_of("to-chmod"), 0640)); }
PROBE(outside_chown) { LEAVE(); return ANSWER(chown(out_of("to-chmod"), 12, 12)); }
PROBE(outside_utime) { LEAVE(); return ANSWER(utimensat(AT_FDCWD, out_of("to-chmod"), NULL, 0)); }
PROBE(outside_attribute) { LEAVE(); return ANSWER(setxattr(out_of("to-chmod"), "user.probe", "x", 1, 0)); }
PROBE(outside_path_only) { LEAVE(); return open_and_close(out_of("file"), O_PATH); }
PROBE(outside_watch) { LEAVE(); return ANSWER(inotify_add_watch(inotify_init1(IN_CLOEXEC), out_of("file"), IN_OPEN)); }
PROBE(outside_connect) { LEAVE(); return chdir(outside + 1) ? errno : connect_to_path("socket"); }
PROBE(outside_mount) { LEAVE(); return ANSWER(mount(out_of("folder"), out_of("folder"), NULL, MS_BIND, NULL)) ? errno : ANSWER(umount2(out_of("folder"), MNT_DETACH)); }

/* What is open by its path alone, opened again by way of /proc: the one who answers there is not confined. */
static int reopened(int fd, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return flags & O_ACCMODE ? open_and_close(path, flags) : reads(path);
}

PROBE(outside_reopen_read) { LEAVE(); return reopened(open(out_of("file"), O_PATH | O_CLOEXEC), O_RDONLY); }
PROBE(outside_reopen_write) { LEAVE(); return reopened(open(out_of("file"), O_PATH | O_CLOEXEC), O_WRONLY); }

PROBE(outside_reopen_list)
{
    char path[64];
    LEAVE();
    snprintf(path, sizeof path, "/proc/self/fd/%d", open(out_of("folder"), O_PATH | O_DIRECTORY | O_CLOEXEC));
    return open_and_close(path, O_RDONLY | O_DIRECTORY);
}

PROBE(shared_reopen_read)
{
    char path[4100];
    LEAVE();
    snprintf(path, sizeof path, "%s/file", shared + 1);
    return reopened(open(path, O_PATH | O_CLOEXEC), O_RDONLY);
}

static int reopens_of_victim(const char *name)
{
    char path[64];
    LEAVE();
    snprintf(path, sizeof path, "proc/%ld/%s", victim, name);
    return reopened(open(path, O_PATH | O_CLOEXEC), O_RDONLY);
}

PROBE(victim_reopen_cmdline) { return reopens_of_victim("cmdline"); }
PROBE(victim_reopen_environ) { return reopens_of_victim("environ"); }
PROBE(victim_reopen_memory) { return reopens_of_victim("mem"); }

PROBE(terminal_reopen) /* the terminal of somebody else, where what is typed could be read */
{
    char path[64];
    LEAVE();
    snprintf(path, sizeof path, "dev/pts/%ld", terminal);
    int fd = open(path, O_PATH | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open_and_close(path, O_RDONLY | O_NOCTTY | O_NONBLOCK);
}

static int swapped_spot, swapped_between[2];

static void *swap(void *unused)
{
    for (;;) {
        dup2(swapped_between[0], swapped_spot);
        dup2(swapped_between[1], swapped_spot);
    }
    return unused;
}

/* While one thread asks for it, another puts something else at the descriptor: what was looked at is not
 * what is opened. */
static int race_reopen(int allowed, int wanted, int flags)
{
    struct stat aim, found;
    struct timespec now, end;
    pthread_t thread;
    char path[64];
    if (allowed < 0 || wanted < 0 || fstat(wanted, &aim))
        return EBADF;
    swapped_between[0] = allowed, swapped_between[1] = wanted, swapped_spot = dup(allowed);
    snprintf(path, sizeof path, "/proc/self/fd/%d", swapped_spot);
    if (pthread_create(&thread, NULL, swap, NULL))
        return EAGAIN;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += 2;
    do {
        int fd = open(path, flags | O_CLOEXEC);
        if (fd >= 0 && !fstat(fd, &found) && found.st_ino == aim.st_ino && found.st_dev == aim.st_dev)
            return 0;
        if (fd >= 0)
            close(fd);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec);
    return EACCES;
}

PROBE(outside_reopen_race)
{
    int inside = made(P "/raced");
    LEAVE();
    return race_reopen(inside, open(out_of("file"), O_PATH | O_CLOEXEC), O_RDWR);
}

PROBE(setting_reopen_race) /* more access to a setting of the kernel than it was opened with */
{
    int inside = made(P "/raced");
    return race_reopen(inside, open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC), O_RDWR);
}

PROBE(own_read) { return reads(MARK); }
PROBE(own_write) { return write(made(P "/w"), "x", 1) == 1 ? open_and_close(P "/w", O_WRONLY | O_TRUNC) : errno; }
PROBE(own_truncate) { close(made(P "/t")); return ANSWER(truncate(P "/t", 5)); }
PROBE(own_unnamed) { return open_and_close(P, O_RDWR | O_TMPFILE); }
PROBE(own_list) { return open_and_close(P, O_RDONLY | O_DIRECTORY); }
PROBE(own_mkdir) { return mkdir(P "/m", 0700) ? errno : ANSWER(rmdir(P "/m")); }
PROBE(own_symlink) { return symlink("/", P "/l") ? errno : ANSWER(unlink(P "/l")); }
PROBE(own_fifo) { return mkfifo(P "/f", 0600) ? errno : ANSWER(unlink(P "/f")); }
PROBE(own_node) { return mknod(P "/n", S_IFCHR | 0600, makedev(1, 3)) ? errno : ANSWER(unlink(P "/n")); }
PROBE(own_rename) { close(made(P "/r")); return ANSWER(rename(P "/r", P "/r2")); }
PROBE(own_link) { close(made(P "/h")); unlink(P "/h2"); return ANSWER(link(P "/h", P "/h2")); }
PROBE(own_chmod) { close(made(P "/c")); return ANSWER(chmod(P "/c", 0640)); }
PROBE(own_attribute) { close(made(P "/a")); return ANSWER(setxattr(P "/a", "user.probe", "x", 1, 0)); }
PROBE(own_execute) { return execute("/probe"); }
PROBE(own_executable) { return execute("/proc/self/exe"); }
PROBE(own_chroot) { mkdir(P "/y", 0755); return ANSWER(chroot(P "/y")); }

PROBE(own_socket)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = P "/s"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unlink(P "/s");
    if (bind(fd, (struct sockaddr *)&name, sizeof name) || listen(fd, 1))
        return errno;
    return connect_to_path(P "/s");
}

PROBE(own_abstract)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0own-abstract"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&name, offsetof(struct sockaddr_un, sun_path) + 13) || listen(fd, 1))
        return errno;
    return connect_to_abstract("own-abstract");
}

PROBE(own_reopen_write) { close(made(P "/o")); return reopened(open(P "/o", O_RDONLY | O_CLOEXEC), O_RDWR); }
PROBE(own_reopen_path) { return reopened(open(MARK, O_PATH | O_CLOEXEC), O_RDONLY); }

PROBE(own_reopen_memory)
{
    int fd = memfd_create("own", MFD_CLOEXEC);
    return write(fd, "x", 1) != 1 ? errno : reopened(fd, O_RDONLY);
}

PROBE(own_reopen_pipe)
{
    int ends[2];
    return pipe2(ends, O_CLOEXEC) || write(ends[1], "x", 1) != 1 ? errno : reopened(ends[0], O_RDONLY);
}

/* -- /proc, /sys and /dev ------------------------------------------------------------- */

PROBE(victim_environ) { return of_process(victim, "environ", reads); }
PROBE(victim_cmdline) { return of_process(victim, "cmdline", reads); }
PROBE(victim_status) { return of_process(victim, "status", reads); }
PROBE(victim_maps) { return of_process(victim, "maps", reads); }
PROBE(victim_task) { char name[64]; snprintf(name, sizeof name, "task/%ld/environ", victim); return of_process(victim, name, reads); }
PROBE(victim_exe) { return of_process(victim, "exe", reads_link); }
PROBE(victim_cwd) { return of_process(victim, "cwd", reads_link); }
PROBE(victim_fd) { return of_process(victim, "fd/0", reads_link); }
PROBE(victim_root) { char name[4096]; snprintf(name, sizeof name, "root%s/file", outside); return of_process(victim, name, reads); }
PROBE(victim_namespace) { return of_process(victim, "ns/pid", reads_link); }

PROBE(victim_memory)
{
    char path[64], byte;
    snprintf(path, sizeof path, "/proc/%ld/mem", victim);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? errno : ANSWER(pread(fd, &byte, 1, address));
}

PROBE(supervisor_environ) { return of_process(supervisor, "environ", reads); }
PROBE(supervisor_cmdline) { return of_process(supervisor, "cmdline", reads); }

/* Nobody else's processes are listed: any folder of /proc that is none of ours. */
PROBE(foreign_listed)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    if (!proc)
        return errno;
    while ((entry = readdir(proc))) {
        long pid = atol(entry->d_name);
        if (pid > 1 && pid != first && pid != getpid())
            return 0;
    }
    return ENOENT;
}

/* The environment or command line of anybody, by looking at every number near the ones we know. */
static int anybody(const char *what)
{
    long places[] = {first, victim, supervisor};
    for (size_t n = 0; n < COUNT(places); n++)
        for (long pid = places[n] - 40; pid < places[n] + 40; pid++)
            if (pid > 1 && pid != first && pid != getpid() && of_process(pid, what, reads) == 0)
                return 0;
    return ENOENT;
}

PROBE(anybodys_environ) { return anybody("environ"); }
PROBE(anybodys_cmdline) { return anybody("cmdline"); }

PROBE(own_environ) { return reads("/proc/self/environ"); }
PROBE(own_cmdline) { return reads("/proc/self/cmdline"); }
PROBE(own_status) { return reads("/proc/self/status"); }
PROBE(own_maps) { return reads("/proc/self/maps"); }
PROBE(own_first) { return reads("/proc/1/status"); }
PROBE(listed_environ) /* that of a process with another id, in a folder of /proc that was listed for us */
{
    char name[32];
    int ready[2], answer;
    pid_t pid;
    if (pipe(ready) || (pid = fork()) < 0)
        return errno;
    if (pid == 0) {
        dup2(ready[1], 1);
        execl("/probe", "probe", "victim", "x", NULL);
        _exit(1);
    }
    if (read(ready[0], name, 1) != 1 || setresgid(1234, 1234, 1234) || setresuid(1234, 1234, 1234)) {
        answer = errno;
    } else {
        snprintf(name, sizeof name, "/proc/%d", pid);
        int folder = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        answer = folder < 0 ? errno : ANSWER(openat(folder, "environ", O_RDONLY | O_CLOEXEC));
    }
    return answer; /* who runs us ends the other */
}

PROBE(own_thread) { return reads("/proc/thread-self/status"); }
PROBE(own_fd) { return reads_link("/proc/self/fd/1"); }
PROBE(own_namespace) { return reads_link("/proc/self/ns/pid"); }
PROBE(own_score) { return open_and_close("/proc/self/oom_score_adj", O_RDWR); }
PROBE(own_by_number) { return of_process(getpid(), "environ", reads); }

PROBE(proc_memory) { return open_and_close("/proc/self/mem", O_RDWR); }
PROBE(proc_thread_memory) { return open_and_close("/proc/thread-self/mem", O_RDWR); }
PROBE(proc_task_memory) { char path[64]; snprintf(path, sizeof path, "/proc/self/task/%d/mem", getpid()); return open_and_close(path, O_RDWR); }
PROBE(proc_dotted_memory) { return open_and_close("/proc/./self//task/../mem", O_RDWR); }
PROBE(proc_map_files) { return open_and_close("/proc/self/map_files", O_RDONLY | O_DIRECTORY); }
PROBE(proc_pagemap) { return open_and_close("/proc/self/pagemap", O_RDONLY); }
PROBE(proc_namespace) { return open_and_close("/proc/self/ns/mnt", O_RDONLY); }
PROBE(proc_kcore) { return reads("/proc/kcore"); }
PROBE(proc_timers) { return reads("/proc/timer_list"); }
PROBE(proc_keys) { return reads("/proc/keys"); }
PROBE(proc_trigger) { return open_and_close("/proc/sysrq-trigger", O_WRONLY); }
PROBE(proc_setting) { return open_and_close("/proc/sys/kernel/core_pattern", O_WRONLY); }
PROBE(proc_setting_by_link) { unlink(P "/set"); symlink("/proc/sys/kernel/core_pattern", P "/set"); return open_and_close(P "/set", O_WRONLY); }
PROBE(proc_setting_up) { return open_and_close("/proc/self/../sys/kernel/core_pattern", O_RDWR); }
PROBE(proc_setting_reopen) { return reopened(open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC), O_RDWR); }
PROBE(proc_root_up) { char path[4200]; snprintf(path, sizeof path, "/proc/self/root/../../../../../../..%s/file", outside); return reads(path); }
PROBE(proc_cwd_up) { char path[4200]; if (chdir("/")) return errno; snprintf(path, sizeof path, "/proc/self/cwd/../../../../../../..%s/file", outside); return reads(path); }
PROBE(proc_cwd_outside) { char path[4200]; LEAVE(); snprintf(path, sizeof path, "/proc/self/cwd/%s/file", outside + 1); return reads(path); }
PROBE(proc_read_setting) { return reads("/proc/sys/kernel/ostype"); }
PROBE(proc_read_memory) { return reads("/proc/meminfo"); }
PROBE(sys_write) { return open_and_close("/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY); }
PROBE(sys_firmware) { return ANSWER(access("/sys/firmware/acpi", F_OK)); }
PROBE(sys_up) { char path[4200]; snprintf(path, sizeof path, "/sys/../..%s/file", outside); return reads(path); }
PROBE(sys_read) { return reads("/sys/devices/system/cpu/online"); }

static int master(void) { return open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC); }

static int unlocked(int fd, unsigned *number)
{
    int locked = 0;
    return fd < 0 || ioctl(fd, TIOCSPTLCK, &locked) || ioctl(fd, TIOCGPTN, number) ? errno : 0;
}

PROBE(terminal_foreign) { char path[64]; snprintf(path, sizeof path, "/dev/pts/%ld", terminal); return open_and_close(path, O_RDWR | O_NOCTTY); }

PROBE(own_terminal)
{
    unsigned number;
    char path[64];
    int answer = unlocked(master(), &number);
    snprintf(path, sizeof path, "/dev/pts/%u", number);
    return answer ? answer : open_and_close(path, O_RDWR | O_NOCTTY);
}

PROBE(own_terminal_reopen)
{
    unsigned number;
    char path[64];
    int answer = unlocked(master(), &number);
    snprintf(path, sizeof path, "/dev/pts/%u", number);
    return answer ? answer : reopened(open(path, O_RDWR | O_NOCTTY | O_CLOEXEC), O_WRONLY | O_NOCTTY);
}

PROBE(terminal_up) /* a file outside that is called as a terminal of ours is */
{
    char path[4200];
    unsigned number = 0;
    int answer = unlocked(master(), &number);
    snprintf(path, sizeof path, "/dev/pts/../..%s/numbers/%u", shared, number);
    return answer ? answer : open_and_close(path, O_RDWR);
}

PROBE(terminal_up_process) /* what a process outside has open */
{
    char path[4200];
    unsigned number = 0;
    int answer = unlocked(master(), &number);
    snprintf(path, sizeof path, "/dev/pts/../../proc/%ld/fd/%u", victim, number);
    return answer ? answer : open_and_close(path, O_RDONLY | O_NONBLOCK);
}

PROBE(terminal_reused) /* a terminal of ours that we have closed: who is the next to get its number? */
{
    unsigned number = 0;
    char path[64];
    for (int n = 0; n < 36; n++) {
        if (n % 12 == 0) {
            int fd = master(), answer = unlocked(fd, &number);
            close(fd);
            if (answer)
                return answer;
            snprintf(path, sizeof path, "/dev/pts/%u", number);
        }
        if (open_and_close(path, O_RDWR | O_NOCTTY) == 0)
            return 0;
        usleep(40000);
    }
    return errno;
}

PROBE(null_mode) /* standard input is the null device, but not that of this machine */
{
    struct stat found;
    if (fstat(0, &found))
        return errno;
    return found.st_ino == (ino_t)null && found.st_dev == (dev_t)null_device ? ANSWER(fchmod(0, found.st_mode & 07777)) : ENODEV;
}

PROBE(own_null) { char byte; int fd = open("/dev/null", O_WRONLY | O_CLOEXEC); return fd < 0 || write(fd, "x", 1) != 1 ? errno : read(0, &byte, 1) ? NO_EFFECT : 0; }
PROBE(terminals_mode) { struct stat found; int fd = master(); return fstat(fd, &found) ? errno : ANSWER(fchmod(fd, found.st_mode & 07777)); }

static int device(mode_t kind, dev_t number)
{
    unlink(P "/device");
    int answer = ANSWER(mknod(P "/device", kind | 0600, number));
    if (!answer)
        answer = open_and_close(P "/device", O_RDONLY | O_NONBLOCK);
    unlink(P "/device");
    return answer;
}

PROBE(disk) { return device(S_IFBLK, makedev(7, 200)); /* a loop device that is not there */ }
PROBE(kernel_log_device) { return device(S_IFCHR, makedev(1, 11)); }

/* -- processes ------------------------------------------------------------------------ */

static long pidfd(long pid) { return syscall(PIDFD_OPEN, pid, 0); }

PROBE(kill_victim) { return ANSWER(kill(victim, 0)); }
PROBE(kill_supervisor) { return ANSWER(kill(supervisor, 0)); }
PROBE(kill_first) { return ANSWER(kill(1, 0)); }
PROBE(kill_thread) { return ANSWER(syscall(SYS_tgkill, victim, victim, 0)); }
PROBE(kill_by_pidfd) { return ANSWER(syscall(424, pidfd(victim), 0, NULL, 0)); }
PROBE(queue_signal) { union sigval value = {0}; return ANSWER(sigqueue(victim, 0, value)); }
PROBE(getfd_victim) { return ANSWER(syscall(PIDFD_GETFD, pidfd(victim), 0, 0)); }
PROBE(trace_victim) { return ANSWER(ptrace(PTRACE_SEIZE, (pid_t)victim, NULL, NULL)); }
PROBE(trace_supervisor) { return ANSWER(ptrace(PTRACE_SEIZE, supervisor, NULL, NULL)); }
PROBE(compare_victim) { return ANSWER(syscall(SYS_kcmp, victim, victim, 0, 0, 0)); }

PROBE(read_victim)
{
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)address, 1};
    return ANSWER(process_vm_readv(victim, &here, 1, &there, 1, 0));
}

PROBE(write_victim)
{
    char byte = 'x';
    struct iovec here = {&byte, 1}, there = {(void *)address, 1};
    return ANSWER(process_vm_writev(victim, &here, 1, &there, 1, 0));
}

PROBE(own_trace)
{
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            pause();
    int answer = ANSWER(ptrace(PTRACE_SEIZE, pid, NULL, NULL));
    kill(pid, SIGKILL);
    return answer;
}

PROBE(own_kill)
{
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            pause();
    return ANSWER(kill(pid, SIGKILL));
}

PROBE(own_process_read)
{
    char byte = 'x', there = 'y';
    struct iovec to = {&byte, 1}, from = {&there, 1};
    return ANSWER(process_vm_readv(getpid(), &to, 1, &from, 1, 0));
}

/* A signal by way of a descriptor: whether it came is to be seen at the victim alone. */
PROBE(signal_by_owner)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) || fcntl(ends[0], F_SETOWN, victim) || fcntl(ends[0], F_SETSIG, SIGUSR2)
        || fcntl(ends[0], F_SETFL, O_ASYNC) || write(ends[1], "x", 1) != 1)
        return errno;
    return 0;
}

PROBE(limit_victim)
{
    struct rlimit limit;
    return prlimit(victim, RLIMIT_CORE, NULL, &limit) ? errno : ANSWER(prlimit(victim, RLIMIT_CORE, &limit, NULL));
}

PROBE(limit_supervisor)
{
    struct rlimit limit;
    return prlimit(supervisor, RLIMIT_CORE, NULL, &limit) ? errno : ANSWER(prlimit(supervisor, RLIMIT_CORE, &limit, NULL));
}

PROBE(limit_anybody) /* of all that are near, but for the caller and who has started it */
{
    struct rlimit limit;
    for (pid_t pid = first - 4; pid < first + 40; pid++)
        if (pid != first && pid != getpid() && !prlimit(pid, RLIMIT_CORE, NULL, &limit))
            return 0;
    return ESRCH;
}

PROBE(own_limit)
{
    struct rlimit limit;
    return prlimit(0, RLIMIT_CORE, NULL, &limit) ? errno : ANSWER(prlimit(0, RLIMIT_CORE, &limit, NULL));
}

PROBE(nice_victim) { errno = 0; int now = getpriority(PRIO_PROCESS, victim); return errno ? errno : ANSWER(setpriority(PRIO_PROCESS, victim, now)); }
/* Of all processes of one user: here of one who has no others. */
static int nobody(void) { return getuid() == 0 ? ANSWER(setresuid(61234, 61234, 61234)) : 0; }
PROBE(nice_user) { int answer = nobody(); return answer ? answer : ANSWER(setpriority(PRIO_USER, 0, 1)); }
PROBE(own_nice) { return ANSWER(setpriority(PRIO_PROCESS, 0, 0)); }
PROBE(schedule_victim) { struct sched_param plain = {0}; return ANSWER(sched_setscheduler(victim, SCHED_OTHER, &plain)); }
PROBE(pin_victim) { cpu_set_t all; return sched_getaffinity(victim, sizeof all, &all) ? errno : ANSWER(sched_setaffinity(victim, sizeof all, &all)); }
PROBE(own_pin) { cpu_set_t all; return sched_getaffinity(0, sizeof all, &all) ? errno : ANSWER(sched_setaffinity(0, sizeof all, &all)); }
PROBE(disk_priority_victim) { return ANSWER(syscall(SYS_ioprio_set, 1, victim, 2 << 13 | 4)); }

static pid_t hand(void) /* the process that we may signal, and have not started */
{
    for (pid_t pid = first - 4; pid < first + 40; pid++)
        if (pid != first && pid != getpid() && kill(pid, 0) == 0)
            return pid;
    return 0;
}

PROBE(kill_hand) { return hand() ? 0 : ESRCH; }

/* -- sockets, shared memory ------------------------------------------------------------ */

PROBE(abstract_connect) { return connect_to_abstract(abstract_name); }

PROBE(abstract_send)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    size_t length = strlen(abstract_name);
    memcpy(name.sun_path + 1, abstract_name, length);
    memcpy(name.sun_path + 1 + length, "-d", 2);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return ANSWER(sendto(fd, "x", 1, 0, (struct sockaddr *)&name, offsetof(struct sockaddr_un, sun_path) + 3 + length));
}

static int made_socket(int domain, int type, int protocol)
{
    int fd = socket(domain, type | SOCK_CLOEXEC, protocol);
    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

PROBE(socket_inet) { return made_socket(AF_INET, SOCK_STREAM, 0); }
PROBE(socket_inet_datagram) { return made_socket(AF_INET, SOCK_DGRAM, 0); }
PROBE(socket_inet6) { return made_socket(AF_INET6, SOCK_STREAM, 0); }
PROBE(socket_packet) { return made_socket(AF_PACKET, SOCK_RAW, 0); }
PROBE(socket_crypto) { return made_socket(38, SOCK_SEQPACKET, 0); }
PROBE(socket_machine) { return made_socket(40, SOCK_STREAM, 0); }
PROBE(socket_netlink) { return made_socket(AF_NETLINK, SOCK_RAW, 0); }
PROBE(own_pair) { int pair[2]; return ANSWER(socketpair(AF_UNIX, SOCK_STREAM, 0, pair)); }
PROBE(memory_foreign) { return ANSWER(shmget((key_t)key, 0, 0)); }

PROBE(own_memory)
{
    int id = shmget(IPC_PRIVATE, 4096, 0600);
    return id < 0 ? errno : ANSWER(shmctl(id, IPC_RMID, NULL));
}

/* -- system calls --------------------------------------------------------------------- */

PROBE(uring) { char parameters[256] = {0}; return ANSWER(syscall(URING_SETUP, 1, parameters)); }
PROBE(open_2) { uint64_t how[3] = {0}; return ANSWER(syscall(OPENAT2, AT_FDCWD, MARK, how, sizeof how)); }
PROBE(clone_3) { return ANSWER(syscall(CLONE3, NULL, 0)); }
PROBE(new_user) { return ANSWER(unshare(CLONE_NEWUSER)); }
PROBE(new_mounts) { return ANSWER(unshare(CLONE_NEWNS)); }
static int mounts(const char *kind) { return mount("none", P, kind, 0, NULL) ? errno : ANSWER(umount2(P, MNT_DETACH)); }

PROBE(mount_memory) { return mounts("tmpfs"); }
PROBE(mount_proc) { return mounts("proc"); }
PROBE(pivot) { return ANSWER(syscall(SYS_pivot_root, P, P)); }
PROBE(set_namespace) { return ANSWER(setns(open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), 0)); }
PROBE(keyring) { return ANSWER(syscall(SYS_keyctl, 0, -3, 0)); }
PROBE(bpf) { char attributes[128] = {0}; return ANSWER(syscall(SYS_bpf, 0, attributes, sizeof attributes)); }
PROBE(user_fault) { return ANSWER(syscall(SYS_userfaultfd, 0)); }
PROBE(by_handle) { char handle[16] = {8}; return ANSWER(syscall(SYS_open_by_handle_at, AT_FDCWD, handle, 0)); }
PROBE(fault_address) { return ANSWER(syscall(SYS_openat, AT_FDCWD, (void *)8, O_RDONLY)); }
PROBE(high_address) { return ANSWER(syscall(SYS_openat, AT_FDCWD, (void *)-4096L, O_RDONLY)); }
PROBE(fault_result) { return ANSWER(syscall(SYS_newfstatat, AT_FDCWD, "/proc/self/status", (void *)8, 0)); }

PROBE(long_path)
{
    static char path[10000] = "/proc/self/";
    memset(path + 11, 'x', sizeof path - 12);
    return open_and_close(path, O_RDONLY);
}

PROBE(path_at_end_of_page) /* nothing is mapped behind the path */
{
    static const char path[] = "/proc/self/status";
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    memcpy(page + 4096 - sizeof path, path, sizeof path);
    return reads(page + 4096 - sizeof path);
}

PROBE(own_filter)
{
    struct sock_filter code[] = {BPF_STMT(BPF_RET, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, code};
    return ANSWER(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) ? errno : reads("/proc/self/status");
}

PROBE(own_listener)
{
    struct sock_filter code[] = {BPF_STMT(BPF_RET, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, code};
    return ANSWER(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
}

PROBE(own_landlock) /* a sandbox of its own within the one it is in */
{
    uint64_t handled = LANDLOCK_ACCESS_FS_WRITE_FILE;
    int rules = syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0);
    if (rules < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_landlock_restrict_self, rules, 0))
        return errno;
    return open_and_close(P "/w", O_WRONLY) == EACCES ? 0 : NO_EFFECT;
}

PROBE(looser_landlock) /* rules of its own that allow what the outer ones do not */
{
    struct landlock_path_beneath_attr beneath = {LANDLOCK_ACCESS_FS_READ_FILE, open("/", O_PATH | O_CLOEXEC)};
    uint64_t handled = LANDLOCK_ACCESS_FS_READ_FILE;
    int rules = syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0);
    if (leave() == 0)
        beneath.parent_fd = open(outside + 1, O_PATH | O_CLOEXEC);
    if (rules < 0 || syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0)
        || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_landlock_restrict_self, rules, 0))
        return errno;
    return reads(out_of("file"));
}

PROBE(dumpable) { return prctl(PR_SET_DUMPABLE, 0) ? errno : reads("/proc/self/status"); }

/* Calls of 32-bit programs: made from here, with memory below 4 GiB. */
#ifdef __x86_64__
static long old(long number, long a, long b, long c, long d)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d)
        : "memory", "r8", "r9", "r10", "r11");
    return result;
}

static char *low(const char *text)
{
    static char *page;
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    return strcpy(page, text);
}

static int old_answer(long result) { return result < 0 ? (int)-result : 0; }

PROBE(old_open) { return old_answer(old(5, (long)low(MARK), O_RDONLY, 0, 0)); }
PROBE(old_outside) { LEAVE(); return old_answer(old(5, (long)low(out_of("file")), O_RDONLY, 0, 0)); }
PROBE(old_memory) { return old_answer(old(5, (long)low("/proc/self/mem"), O_RDWR, 0, 0)); }
PROBE(old_own) { return old_answer(old(5, (long)low("/proc/self/status"), O_RDONLY, 0, 0)); }
PROBE(old_socket) { return old_answer(old(359, AF_INET, SOCK_DGRAM, 0, 0)); }
PROBE(old_socketcall) { uint32_t *page = (uint32_t *)low(""); page[0] = AF_INET, page[1] = SOCK_DGRAM, page[2] = 0; return old_answer(old(102, 1, (long)page, 0, 0)); }
PROBE(old_uring) { return old_answer(old(425, 1, (long)low(""), 0, 0)); }
PROBE(old_open_2) { return old_answer(old(437, AT_FDCWD, (long)low(MARK), (long)low(""), 24)); }
PROBE(old_kill) { return old_answer(old(37, victim, 0, 0, 0)); }
PROBE(old_disk) { char *path = low(P "/old"); unlink(path); int answer = old_answer(old(14, (long)path, S_IFBLK | 0600, makedev(7, 200), 0)); unlink(path); return answer; }
PROBE(old_limit) { return old_answer(old(340, victim, RLIMIT_CORE, 0, (long)low(""))); }
PROBE(x32_open) { return ANSWER(syscall(0x40000000 | SYS_openat, AT_FDCWD, MARK, O_RDONLY)); }
#endif

/* -- running them --------------------------------------------------------------------- */

typedef struct {
    const char *name;
    int (*run)(void);
} Probe;

#define ENTRY(id) {#id, probe_##id}
static const Probe probes[] = {
    ENTRY(escape_chroot), ENTRY(outside_read), ENTRY(outside_write), ENTRY(outside_append), ENTRY(outside_truncate),
    ENTRY(outside_create), ENTRY(outside_unnamed), ENTRY(outside_list), ENTRY(outside_mkdir), ENTRY(outside_symlink),
    ENTRY(outside_fifo), ENTRY(outside_node), ENTRY(outside_bind), ENTRY(outside_unlink), ENTRY(outside_rmdir),
    ENTRY(outside_execute), ENTRY(outside_root), ENTRY(outside_rename), ENTRY(outside_link), ENTRY(outside_steal), ENTRY(outside_smuggle),
    ENTRY(outside_stat), ENTRY(outside_access), ENTRY(outside_chdir), ENTRY(outside_chmod), ENTRY(outside_chown),
    ENTRY(outside_utime), ENTRY(outside_attribute), ENTRY(outside_path_only), ENTRY(outside_watch),
    ENTRY(outside_connect), ENTRY(outside_mount), ENTRY(outside_reopen_read), ENTRY(outside_reopen_write),
    ENTRY(outside_reopen_list), ENTRY(outside_reopen_race), ENTRY(shared_reopen_read), ENTRY(victim_reopen_cmdline), ENTRY(victim_reopen_environ),
    ENTRY(victim_reopen_memory), ENTRY(terminal_reopen), ENTRY(setting_reopen_race),
    ENTRY(own_read), ENTRY(own_write), ENTRY(own_truncate), ENTRY(own_unnamed), ENTRY(own_list), ENTRY(own_mkdir),
    ENTRY(own_symlink), ENTRY(own_fifo), ENTRY(own_node), ENTRY(own_rename), ENTRY(own_link), ENTRY(own_chmod),
    ENTRY(own_attribute), ENTRY(own_execute), ENTRY(own_executable), ENTRY(own_chroot), ENTRY(own_socket),
    ENTRY(own_abstract), ENTRY(own_reopen_write), ENTRY(own_reopen_path), ENTRY(own_reopen_memory), ENTRY(own_reopen_pipe),
    ENTRY(victim_environ), ENTRY(victim_cmdline), ENTRY(victim_status), ENTRY(victim_maps), ENTRY(victim_task),
    ENTRY(victim_exe), ENTRY(victim_cwd), ENTRY(victim_fd), ENTRY(victim_root), ENTRY(victim_namespace),
    ENTRY(victim_memory), ENTRY(supervisor_environ), ENTRY(supervisor_cmdline), ENTRY(foreign_listed),
    ENTRY(anybodys_environ), ENTRY(anybodys_cmdline), ENTRY(own_environ), ENTRY(own_cmdline), ENTRY(own_status),
    ENTRY(own_maps), ENTRY(own_first), ENTRY(listed_environ), ENTRY(own_thread), ENTRY(own_fd), ENTRY(own_namespace), ENTRY(own_score),
    ENTRY(own_by_number), ENTRY(proc_memory), ENTRY(proc_thread_memory), ENTRY(proc_task_memory),
    ENTRY(proc_dotted_memory), ENTRY(proc_map_files), ENTRY(proc_pagemap), ENTRY(proc_namespace), ENTRY(proc_kcore),
    ENTRY(proc_timers), ENTRY(proc_keys), ENTRY(proc_trigger), ENTRY(proc_setting), ENTRY(proc_setting_by_link),
    ENTRY(proc_setting_up), ENTRY(proc_setting_reopen), ENTRY(proc_root_up), ENTRY(proc_cwd_up),
    ENTRY(proc_cwd_outside), ENTRY(proc_read_setting), ENTRY(proc_read_memory), ENTRY(sys_write), ENTRY(sys_firmware),
    ENTRY(sys_up), ENTRY(sys_read), ENTRY(terminal_foreign), ENTRY(own_terminal), ENTRY(own_terminal_reopen), ENTRY(terminal_up),
    ENTRY(terminal_reused), ENTRY(terminal_up_process), ENTRY(null_mode), ENTRY(own_null), ENTRY(terminals_mode), ENTRY(disk),
    ENTRY(kernel_log_device), ENTRY(kill_victim), ENTRY(kill_supervisor), ENTRY(kill_first), ENTRY(kill_thread),
    ENTRY(kill_by_pidfd), ENTRY(queue_signal), ENTRY(getfd_victim), ENTRY(trace_victim), ENTRY(trace_supervisor),
    ENTRY(compare_victim), ENTRY(read_victim), ENTRY(write_victim), ENTRY(own_trace), ENTRY(own_kill),
    ENTRY(own_process_read), ENTRY(signal_by_owner), ENTRY(limit_victim), ENTRY(limit_supervisor), ENTRY(limit_anybody), ENTRY(own_limit),
    ENTRY(nice_victim), ENTRY(own_nice), ENTRY(nice_user), ENTRY(schedule_victim), ENTRY(pin_victim), ENTRY(own_pin),
    ENTRY(disk_priority_victim), ENTRY(kill_hand), ENTRY(abstract_connect), ENTRY(abstract_send), ENTRY(socket_inet),
    ENTRY(socket_inet_datagram), ENTRY(socket_inet6), ENTRY(socket_packet), ENTRY(socket_crypto), ENTRY(socket_machine),
    ENTRY(socket_netlink), ENTRY(own_pair), ENTRY(memory_foreign), ENTRY(own_memory), ENTRY(uring), ENTRY(open_2),
    ENTRY(clone_3), ENTRY(new_user), ENTRY(new_mounts), ENTRY(mount_memory), ENTRY(mount_proc), ENTRY(pivot),
    ENTRY(set_namespace), ENTRY(keyring), ENTRY(bpf), ENTRY(user_fault), ENTRY(by_handle), ENTRY(fault_address),
    ENTRY(high_address), ENTRY(fault_result), ENTRY(long_path), ENTRY(path_at_end_of_page), ENTRY(own_filter),
    ENTRY(own_listener), ENTRY(own_landlock), ENTRY(looser_landlock), ENTRY(dumpable),
#ifdef __x86_64__
    ENTRY(old_open), ENTRY(old_outside), ENTRY(old_memory), ENTRY(old_own), ENTRY(old_socket), ENTRY(old_socketcall),
    ENTRY(old_uring), ENTRY(old_open_2), ENTRY(old_kill), ENTRY(old_limit), ENTRY(old_disk), ENTRY(x32_open),
#endif
};

static int attempt(const Probe *probe)
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        alarm(5);
        _exit(probe->run());
    }
    setpgid(pid, pid);
    waitpid(pid, &status, 0);
    kill(-pid, SIGKILL); /* and what it has left */
    if (WIFSIGNALED(status))
        return 200 + WTERMSIG(status);
    return WEXITSTATUS(status);
}

static void read_facts(const char *path)
{
    char name[64];
    static char value[4096];
    FILE *file = fopen(path, "re");
    while (file && fscanf(file, "%63s %4095s", name, value) == 2) {
        if (!strcmp(name, "outside"))
            outside = strdup(value);
        else if (!strcmp(name, "shared"))
            shared = strdup(value);
        else if (!strcmp(name, "abstract"))
            abstract_name = strdup(value);
        else if (!strcmp(name, "victim"))
            victim = atol(value);
        else if (!strcmp(name, "address"))
            address = strtol(value, NULL, 0);
        else if (!strcmp(name, "terminal"))
            terminal = atol(value);
        else if (!strcmp(name, "key"))
            key = strtol(value, NULL, 0);
        else if (!strcmp(name, "null"))
            null = atol(value);
        else if (!strcmp(name, "null_device"))
            null_device = atol(value);
    }
    if (file)
        fclose(file);
}

/* A process to be attacked, which keeps every signal that can be kept, so that it shows what came. */
static void be_victim(const char *text)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    for (int fd = 3; fd < 64; fd++)
        dup2(0, fd);
    printf("%p\n", (const void *)text);
    fflush(stdout);
    for (;;)
        pause();
}

static void *flood(void *unused)
{
    struct stat found;
    for (unsigned n = 0;; n++) {
        syscall(SYS_openat, AT_FDCWD, (void *)(uintptr_t)(n * 4096ul), O_RDONLY);
        stat("/proc/self/status", &found);
        close(open("/proc/self/fd/0", O_RDONLY | O_CLOEXEC));
        close_range(3, ~0u, 0);
    }
    return unused;
}

static void become_daemon(void)
{
    setsid();
    if (fork())
        _exit(0);
    prctl(PR_SET_PDEATHSIG, 0);
    for (int number = 1; number < 65; number++)
        signal(number, SIG_IGN);
    for (int fd = 0; fd < 64; fd++)
        close(fd);
}

/* What a step may leave behind; everything ends by itself after 20 seconds. */
static int leave_one(const char *what)
{
    time_t end = time(NULL) + 20;
    pthread_t thread;
    if (!strcmp(what, "hand")) { /* kill who would kill us, were it to be found */
        pid_t found = hand();
        return found ? kill(found, SIGKILL) : 0;
    }
    if (!strcmp(what, "out")) /* of the root, all the way */
        return leave() == NO_EFFECT ? chroot(".") : -1;
    if (!strcmp(what, "stop")) /* oneself */
        return raise(SIGSTOP);
    if (!strcmp(what, "trace")) /* be traced by who has started us, and stop */
        return ptrace(PTRACE_TRACEME, 0, NULL, NULL) ? -1 : raise(SIGUSR1);
    if (fork())
        return 0;
    if (!strcmp(what, "daemon")) {
        become_daemon();
        while (time(NULL) < end)
            sleep(1);
    } else if (!strcmp(what, "stopped")) {
        become_daemon();
        raise(SIGSTOP);
    } else if (!strcmp(what, "chain")) { /* never the same process for long */
        become_daemon();
        while (time(NULL) < end)
            if (fork())
                break;
    } else if (!strcmp(what, "bomb")) {
        while (time(NULL) < end)
            fork();
    } else if (!strcmp(what, "flood")) {
        for (int n = 0; n < 8; n++)
            pthread_create(&thread, NULL, flood, NULL);
        sleep(20);
    }
    _exit(0);
}

int main(int count, char **words)
{
    FILE *out = stdout;
    if (count == 2 && !strcmp(words[1], "true"))
        return 0;
    if (count == 3 && !strcmp(words[1], "victim"))
        be_victim(words[2]);
    if (count == 3 && !strcmp(words[1], "mode"))
        return ANSWER(syscall(SYS_access, "/proc/self/status", strtoul(words[2], NULL, 0)));
    if (count == 3 && !strcmp(words[1], "chmod") && !access(MARK, F_OK)) {
        outside = words[2]; /* not there as a folder */
        return leave() == NO_EFFECT ? ANSWER(chmod(words[2] + 1, 04777)) : 1;
    }
    if (count > 2 && !strcmp(words[1], "leave") && !access(MARK, F_OK)) {
        first = getpid();
        for (int place = 2; place < count; place++)
            if (leave_one(words[place]))
                return 1;
        usleep(100000);
        return 0;
    }
    if (count < 4 || access(MARK, F_OK)) {
        fprintf(stderr, "only in a root made for it: chroot_probe all FACTS OUT | try FACTS NAME...\n");
        return 2;
    }
    first = getpid();
    supervisor = getppid();
    read_facts(words[2]);
    int some = !strcmp(words[1], "try");
    if (!some && !(out = fopen(words[3], "we")))
        return 2;
    for (size_t n = 0; n < COUNT(probes); n++) {
        int wanted = !some;
        for (int place = 3; some && place < count; place++)
            wanted |= !strcmp(words[place], probes[n].name);
        if (wanted) {
            fprintf(out, "%s %d\n", probes[n].name, attempt(&probes[n]));
            fflush(out);
        }
    }
    return fclose(out) ? 1 : 0;
}
