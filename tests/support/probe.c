/*
 * What a program inside a step sees and can do, as one JSON object.
 *
 *   probe report [FILE]          everything: who it is, what it sees, the answer to every probe
 *   probe try NAME...            the answers to some probes only
 *   probe walk DIRECTORY...      the files below that can be opened for writing, one a line
 *   probe swap A B SECONDS STOP  exchange two names until a file named STOP is there; how often
 *   probe fcap FILE P I E        give FILE capabilities: permitted, inheritable (hex), effective (0, 1)
 *   probe caps                   the capabilities of this process, in one line
 *   probe read FILE              whether FILE can be read
 *   probe raw SOCKET TEXT        connect to a unix socket, send TEXT, print how many bytes come back
 *
 * The answer to a probe is an errno, 0 where it succeeded, 200 + n where signal n ended it. Each
 * runs in a process of its own and, where that is allowed, in a mount namespace of its own.
 * Two answers are not the kernel's: a search that finds nothing answers ENOENT, a file or
 * directory that is there but empty ENODATA.
 *
 * It tries to do harm, so it insists on a file named /this-is-for-probes in its root.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define MARK "/this-is-for-probes"
#define P "/p" /* a directory of ours */
#define COUNT(array) (sizeof(array) / sizeof *(array))
#define ANSWER(call) ((long)(call) < 0 ? errno : 0)
#define PROBE(id) static int probe_##id(void)

/* Since Linux 5.2 new calls have the same number everywhere. */
enum {
    OPEN_TREE = 428, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, FSPICK, PIDFD_OPEN, CLONE3, CLOSE_RANGE,
    OPENAT2, PIDFD_GETFD, FACCESSAT2, PROCESS_MADVISE, EPOLL_PWAIT2, MOUNT_SETATTR, QUOTACTL_FD,
    LANDLOCK_CREATE_RULESET, MEMFD_SECRET = 447, OPEN_TREE_ATTR = 467,
};
enum { TREE_CLONE = 1, EMPTY_PATH = 0x1000 };

/* -- JSON ----------------------------------------------------------------------------- */

static FILE *out;

static void text(const char *value)
{
    putc('"', out);
    for (const unsigned char *at = (const unsigned char *)value; *at; at++)
        if (*at == '"' || *at == '\\')
            fprintf(out, "\\%c", *at);
        else if (*at < 32 || *at > 126)
            fprintf(out, "\\u%04x", *at);
        else
            putc(*at, out);
    putc('"', out);
}

static const char *gap = "";

static void key(const char *name)
{
    fputs(gap, out);
    gap = ",\n";
    text(name);
    putc(':', out);
}

static void number(const char *name, long long value)
{
    key(name);
    fprintf(out, "%lld", value);
}

static void string(const char *name, const char *value)
{
    key(name);
    text(value);
}

static void open_list(const char *name, int bracket)
{
    key(name);
    putc(bracket, out);
    gap = "";
}

static void item(const char *value)
{
    fputs(gap, out);
    gap = ",";
    text(value);
}

static void close_list(int bracket)
{
    putc(bracket, out);
    gap = ",\n";
}

/* -- what is seen --------------------------------------------------------------------- */

static void status(void)
{
    static const char *wanted[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups"};
    char line[4096], *value;
    FILE *file = fopen("/proc/self/status", "re");
    open_list("status", '{');
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!(value = strstr(line, ":\t")))
            continue;
        *value = 0;
        for (size_t n = 0; n < COUNT(wanted); n++)
            if (!strcmp(line, wanted[n]))
                string(line, value + 2);
    }
    if (file)
        fclose(file);
    close_list('}');
}

static void lines(const char *name, const char *path)
{
    char line[8192];
    FILE *file = fopen(path, "re");
    open_list(name, '[');
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        item(line);
    }
    if (file)
        fclose(file);
    close_list(']');
}

static void entries(const char *name, const char *path)
{
    struct dirent *entry;
    DIR *folder = opendir(path);
    open_list(name, '[');
    while (folder && (entry = readdir(folder)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            item(entry->d_name);
    if (folder)
        closedir(folder);
    close_list(']');
}

static void links(const char *name, const char *path)
{
    char link[4096], full[4096];
    struct dirent *entry;
    DIR *folder = opendir(path);
    open_list(name, '{');
    while (folder && (entry = readdir(folder))) {
        snprintf(full, sizeof full, "%s/%s", path, entry->d_name);
        ssize_t size = readlink(full, link, sizeof link - 1);
        int fd = strcmp(name, "descriptors") ? -1 : atoi(entry->d_name);
        if (size < 0 || (fd > 2 && (fd == dirfd(folder) || fd == fileno(out)))) /* ours */
            continue;
        link[size] = 0;
        string(entry->d_name, link);
    }
    if (folder)
        closedir(folder);
    close_list('}');
}

static void limits(void)
{
    static const char *names[] = {"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"};
    open_list("rlimits", '{');
    for (size_t n = 0; n < COUNT(names); n++) {
        struct rlimit limit = {0, 0};
        getrlimit(n, &limit);
        key(names[n]);
        fprintf(out, "[%lld,%lld]", (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
    close_list('}');
}

static void mounts(void)
{
    char line[8192], *point[16];
    FILE *file = fopen("/proc/self/mountinfo", "re");
    open_list("mounts", '[');
    while (file && fgets(line, sizeof line, file)) {
        int count = 0, dash = 0;
        for (char *word = strtok(line, " \n"); word && count < 16; word = strtok(NULL, " \n")) {
            if (!dash && count > 5 && !strcmp(word, "-"))
                dash = count;
            point[count++] = word;
        }
        if (!dash || count < dash + 4)
            continue;
        fputs(gap, out);
        gap = "";
        putc('{', out);
        string("root", point[3]);
        string("point", point[4]);
        string("options", point[5]);
        string("shared", dash > 6 ? point[6] : "");
        string("type", point[dash + 1]);
        string("source", point[dash + 2]);
        string("super", point[dash + 3]);
        close_list('}');
    }
    if (file)
        fclose(file);
    close_list(']');
}

static void environment(void)
{
    open_list("environment", '[');
    for (char **at = environ; *at; at++) {
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*at, "="), *at);
        item(name);
    }
    close_list(']');
}

static void maps(void)
{
    char line[4096], last[4096] = "";
    FILE *file = fopen("/proc/self/maps", "re");
    open_list("maps", '[');
    while (file && fgets(line, sizeof line, file)) {
        char *path = strchr(line, '/');
        if (path && strcmp(path, last)) {
            strcpy(last, path);
            path[strcspn(path, "\n")] = 0;
            item(path);
        }
    }
    if (file)
        fclose(file);
    close_list(']');
}

static long first_number(const char *path)
{
    long value = -100000;
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%ld", &value) != 1)
            value = -100000;
        fclose(file);
    }
    return value;
}

static void see(void)
{
    char path[4096] = "";
    struct utsname name;
    mode_t mask = umask(0);
    umask(mask);
    uname(&name);
    number("pid", getpid());
    number("parent", getppid());
    number("session", getsid(0));
    status();
    links("descriptors", "/proc/self/fd");
    links("namespaces", "/proc/self/ns");
    mounts();
    limits();
    number("umask", mask);
    string("cwd", getcwd(path, sizeof path) ? path : strerror(errno));
    string("hostname", name.nodename);
    string("domainname", name.domainname);
    environment();
    number("keyring", ANSWER(syscall(SYS_keyctl, 0, -3, 0)));
    number("oom_score_adj", first_number("/proc/self/oom_score_adj"));
    number("tty", ANSWER(open("/dev/tty", O_RDWR | O_CLOEXEC)));
    lines("uid_map", "/proc/self/uid_map");
    lines("gid_map", "/proc/self/gid_map");
    lines("cgroup", "/proc/self/cgroup");
    entries("root", "/");
    entries("devices", "/dev");
    entries("proc", "/proc");
    maps();
}

/* -- mounts --------------------------------------------------------------------------- */

static int mounts_new(const char *type, const char *options)
{
    return ANSWER(mount("none", P, type, 0, options));
}

PROBE(mount_tmpfs) { return mounts_new("tmpfs", ""); }
PROBE(mount_proc) { return mounts_new("proc", ""); }
PROBE(mount_sysfs) { return mounts_new("sysfs", ""); }
PROBE(mount_devpts) { return mounts_new("devpts", "newinstance"); }
PROBE(mount_mqueue) { return mounts_new("mqueue", ""); }
PROBE(mount_cgroup) { return mounts_new("cgroup", "memory"); }
PROBE(mount_cgroup2) { return mounts_new("cgroup2", ""); }
PROBE(mount_devtmpfs) { return mounts_new("devtmpfs", ""); }
PROBE(mount_debugfs) { return mounts_new("debugfs", ""); }
PROBE(mount_securityfs) { return mounts_new("securityfs", ""); }
PROBE(mount_binfmt) { return mounts_new("binfmt_misc", ""); }
PROBE(mount_bpf) { return mounts_new("bpf", ""); }
PROBE(mount_overlay) { return mounts_new("overlay", "lowerdir=/:" P); }
PROBE(mount_fuse) { return mounts_new("fuse", "fd=0,rootmode=40000,user_id=0,group_id=0"); }
PROBE(mount_bind) { return ANSWER(mount("/proc", P, NULL, MS_BIND | MS_REC, NULL)); }
PROBE(mount_move) { return ANSWER(mount("/proc", P, NULL, MS_MOVE, NULL)); }
PROBE(mount_remount) { return ANSWER(mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL)); }
PROBE(mount_remount_proc) { return ANSWER(mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL)); }
PROBE(mount_shared) { return ANSWER(mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL)); }
PROBE(umount_mask) { return ANSWER(umount2("/proc/kcore", 0)); }
PROBE(umount_proc_sys) { return ANSWER(umount2("/proc/sys", 0)); }
PROBE(umount_proc) { return ANSWER(umount2("/proc", MNT_DETACH)); }
PROBE(umount_resolver) { return ANSWER(umount2("/etc/resolv.conf", MNT_DETACH)); }
PROBE(umount_root) { return ANSWER(umount2("/", MNT_DETACH)); }
PROBE(fs_open) { return ANSWER(syscall(FSOPEN, "tmpfs", 0)); }
PROBE(fs_config) { return ANSWER(syscall(FSCONFIG, -1, 6, NULL, NULL, 0)); }
PROBE(fs_mount) { return ANSWER(syscall(FSMOUNT, -1, 0, 0)); }
PROBE(fs_pick) { return ANSWER(syscall(FSPICK, AT_FDCWD, "/", 0)); }
PROBE(open_tree_plain) { return ANSWER(syscall(OPEN_TREE, AT_FDCWD, "/", 0)); }
PROBE(open_tree_clone) { return ANSWER(syscall(OPEN_TREE, AT_FDCWD, "/", TREE_CLONE)); }
PROBE(open_tree_attr) { return ANSWER(syscall(OPEN_TREE_ATTR, AT_FDCWD, "/", TREE_CLONE, NULL, 0)); }

PROBE(move_mount)
{
    int tree = syscall(OPEN_TREE, AT_FDCWD, "/proc", TREE_CLONE | AT_RECURSIVE);
    return ANSWER(syscall(MOVE_MOUNT, tree, "", AT_FDCWD, P, 4));
}

PROBE(mount_setattr)
{
    uint64_t attributes[4] = {0, 1, 0, 0}; /* clear read-only */
    return ANSWER(syscall(MOUNT_SETATTR, AT_FDCWD, "/sys", 0, attributes, sizeof attributes));
}

PROBE(pivot_root)
{
    mount("none", P, "tmpfs", 0, ""); /* else a success would be EINVAL */
    if (chdir(P))
        return errno;
    return ANSWER(syscall(SYS_pivot_root, ".", "."));
}

static int is_root(const struct stat *root, const char *path)
{
    struct stat found;
    if (stat(path, &found))
        return -1;
    return found.st_dev == root->st_dev && found.st_ino == root->st_ino;
}

PROBE(chroot_escape)
{
    struct stat root;
    int top = open("/", O_RDONLY | O_DIRECTORY);
    fstat(top, &root);
    mkdir(P "/c", 0755);
    if (chroot(P "/c") || fchdir(top))
        return errno;
    for (int n = 0; n < 64; n++)
        if (chdir(".."))
            return errno;
    if (chroot("."))
        return errno;
    return is_root(&root, "/") == 1 ? ENOENT : 0;
}

static int leads_out(const char *path)
{
    struct stat root;
    stat("/", &root);
    int same = is_root(&root, path);
    return same < 0 ? errno : same ? ENOENT : 0;
}

PROBE(proc_root) { return leads_out("/proc/1/root/"); }
PROBE(proc_root_up) { return leads_out("/proc/1/root/../../../.."); }
PROBE(proc_cwd_up) { return leads_out("/proc/1/cwd/../../../../.."); }
PROBE(proc_task_root) { return leads_out("/proc/thread-self/root/../.."); }

PROBE(map_files)
{
    struct dirent *entry;
    DIR *folder = opendir("/proc/self/map_files");
    while (folder && (entry = readdir(folder)))
        if (entry->d_name[0] != '.')
            return ANSWER(openat(dirfd(folder), entry->d_name, O_RDONLY));
    return folder ? ENOENT : errno;
}

/* -- namespaces ----------------------------------------------------------------------- */

PROBE(unshare_user) { return ANSWER(unshare(CLONE_NEWUSER)); }
PROBE(unshare_mnt) { return ANSWER(unshare(CLONE_NEWNS)); }
PROBE(unshare_net) { return ANSWER(unshare(CLONE_NEWNET)); }
PROBE(unshare_pid) { return ANSWER(unshare(CLONE_NEWPID)); }
PROBE(unshare_uts) { return ANSWER(unshare(CLONE_NEWUTS)); }
PROBE(unshare_ipc) { return ANSWER(unshare(CLONE_NEWIPC)); }
PROBE(unshare_cgroup) { return ANSWER(unshare(CLONE_NEWCGROUP)); }
PROBE(unshare_time) { return ANSWER(unshare(0x80)); }

static int clones(unsigned long flags)
{
    long pid = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, 0);
    if (!pid)
        _exit(0);
    return ANSWER(pid);
}

PROBE(clone_user) { return clones(CLONE_NEWUSER); }
PROBE(clone_mnt) { return clones(CLONE_NEWNS); }
PROBE(clone_net) { return clones(CLONE_NEWNET); }
PROBE(clone_pid) { return clones(CLONE_NEWPID); }
PROBE(clone_uts) { return clones(CLONE_NEWUTS); }
PROBE(clone_ipc) { return clones(CLONE_NEWIPC); }
PROBE(clone_cgroup) { return clones(CLONE_NEWCGROUP); }
PROBE(clone_all) { return clones(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET); }
PROBE(clone_plain) { return clones(0); }

static int clones3(uint64_t flags)
{
    uint64_t arguments[11] = {flags, 0, 0, 0, SIGCHLD};
    long pid = syscall(CLONE3, arguments, sizeof arguments);
    if (!pid)
        _exit(0);
    return ANSWER(pid);
}

PROBE(clone3_plain) { return clones3(0); }
PROBE(clone3_user) { return clones3(CLONE_NEWUSER); }
PROBE(clone3_time) { return clones3(0x80); }
PROBE(clone3_nothing) { return ANSWER(syscall(CLONE3, NULL, 0)); }

static int enters(const char *path)
{
    int fd = open(path, O_RDONLY);
    return fd < 0 ? errno : ANSWER(syscall(SYS_setns, fd, 0));
}

PROBE(setns_user) { return enters("/proc/1/ns/user"); }
PROBE(setns_mnt) { return enters("/proc/1/ns/mnt"); }
PROBE(setns_net) { return enters("/proc/1/ns/net"); }
PROBE(setns_pid) { return enters("/proc/1/ns/pid"); }
PROBE(setns_uts) { return enters("/proc/1/ns/uts"); }
PROBE(setns_ipc) { return enters("/proc/1/ns/ipc"); }
PROBE(setns_cgroup) { return enters("/proc/1/ns/cgroup"); }
PROBE(setns_time) { return enters("/proc/1/ns/time"); }
PROBE(setns_pidfd) { return ANSWER(syscall(SYS_setns, syscall(PIDFD_OPEN, getppid(), 0), CLONE_NEWNET | CLONE_NEWNS)); }

static int has_parent(const char *path)
{
    int fd = open(path, O_RDONLY);
    return fd < 0 ? errno : ANSWER(ioctl(fd, 0xb702)); /* NS_GET_PARENT */
}

PROBE(ns_parent_user) { return has_parent("/proc/self/ns/user"); }
PROBE(ns_parent_pid) { return has_parent("/proc/self/ns/pid"); }

PROBE(uid_map)
{
    int fd = open("/proc/self/uid_map", O_WRONLY);
    return fd < 0 ? errno : ANSWER(write(fd, "0 0 1\n", 6));
}

/* -- processes ------------------------------------------------------------------------ */

PROBE(kill_all) { return ANSWER(kill(-1, 0)); }

PROBE(kill_others)
{
    for (int pid = 2; pid < 32769; pid++)
        if (pid != getpid() && pid != getppid() && !kill(pid, 0))
            return 0;
    return ESRCH;
}

PROBE(kill_outside) { return ANSWER(kill(0x7ffffff0, 0)); }
PROBE(ptrace_parent) { return ANSWER(ptrace(PTRACE_SEIZE, getppid(), 0, 0)); }

PROBE(ptrace_child)
{
    pid_t pid = fork();
    if (!pid)
        for (;;)
            pause();
    int answer = ANSWER(ptrace(PTRACE_SEIZE, pid, 0, 0));
    kill(pid, SIGKILL);
    return answer;
}

static char here[16];

PROBE(vm_read)
{
    char there[16];
    struct iovec local = {there, 16}, remote = {here, 16};
    return ANSWER(process_vm_readv(getppid(), &local, 1, &remote, 1, 0));
}

PROBE(pidfd_open) { return ANSWER(syscall(PIDFD_OPEN, getppid(), 0)); }
PROBE(pidfd_getfd) { return ANSWER(syscall(PIDFD_GETFD, syscall(PIDFD_OPEN, getppid(), 0), 0, 0)); }
PROBE(kcmp) { return ANSWER(syscall(SYS_kcmp, getpid(), getppid(), 0, 0, 0)); }

PROBE(process_madvise)
{
    struct iovec range = {(void *)((uintptr_t)here & ~4095ul), 4096};
    return ANSWER(syscall(PROCESS_MADVISE, syscall(PIDFD_OPEN, getppid(), 0), &range, 1, MADV_COLD, 0));
}

PROBE(foreign_processes)
{
    struct dirent *entry;
    DIR *folder = opendir("/proc");
    while (folder && (entry = readdir(folder))) {
        int pid = atoi(entry->d_name);
        if (pid && pid != getpid() && pid != getppid())
            return 0;
    }
    return ENOENT;
}

PROBE(nice_up) { return ANSWER(setpriority(PRIO_PROCESS, 0, -20)); }
PROBE(nice_down) { return ANSWER(setpriority(PRIO_PROCESS, 0, 19)); }

PROBE(sched_fifo)
{
    struct sched_param parameter = {1};
    return ANSWER(sched_setscheduler(0, SCHED_RR, &parameter));
}

PROBE(sched_deadline)
{
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; }
        attributes = {48, 6, 0, 0, 0, 1000000, 10000000, 10000000};
    return ANSWER(syscall(SYS_sched_setattr, 0, &attributes, 0));
}

PROBE(io_realtime) { return ANSWER(syscall(SYS_ioprio_set, 1, 0, 1 << 13)); }

static int raises(int resource)
{
    struct rlimit limit;
    getrlimit(resource, &limit);
    if (limit.rlim_max == RLIM_INFINITY)
        return 0;
    limit.rlim_max++;
    return ANSWER(setrlimit(resource, &limit));
}

PROBE(limit_files) { return raises(RLIMIT_NOFILE); }
PROBE(limit_processes) { return raises(RLIMIT_NPROC); }
PROBE(limit_memlock) { return raises(RLIMIT_MEMLOCK); }
PROBE(limit_core) { return raises(RLIMIT_CORE); }
PROBE(limit_realtime) { return raises(RLIMIT_RTPRIO); }

PROBE(limit_parent)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_max++;
    return ANSWER(prlimit(getppid(), RLIMIT_NOFILE, &limit, NULL));
}

PROBE(limit_lower)
{
    struct rlimit limit = {64, 64};
    return ANSWER(setrlimit(RLIMIT_NOFILE, &limit));
}

static int oom(const char *value)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    return fd < 0 ? errno : ANSWER(write(fd, value, strlen(value)));
}

PROBE(oom_less)
{
    char value[32];
    snprintf(value, sizeof value, "%ld", first_number("/proc/self/oom_score_adj") - 1);
    return oom(value);
}

PROBE(oom_minus) { return oom("-1"); }
PROBE(oom_never) { return oom("-1000"); }
PROBE(oom_more) { return oom("1000"); }

/* -- privileges ----------------------------------------------------------------------- */

static int takes(int capability)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &head, data))
        return errno;
    data[capability / 32].permitted |= 1u << capability % 32;
    data[capability / 32].effective |= 1u << capability % 32;
    return ANSWER(syscall(SYS_capset, &head, data));
}

PROBE(cap_sys_admin) { return takes(CAP_SYS_ADMIN); }
PROBE(cap_sys_ptrace) { return takes(CAP_SYS_PTRACE); }
PROBE(cap_net_admin) { return takes(CAP_NET_ADMIN); }
PROBE(cap_dac_read_search) { return takes(CAP_DAC_READ_SEARCH); }
PROBE(cap_ambient) { return ANSWER(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0)); }
PROBE(cap_chown) { return takes(CAP_CHOWN); }
PROBE(keep_securebits) { return ANSWER(prctl(PR_SET_SECUREBITS, 0, 0, 0, 0)); }
PROBE(set_mm) { return ANSWER(prctl(PR_SET_MM, PR_SET_MM_START_BRK, (unsigned long)here, 0, 0)); }
PROBE(set_mm_exe) { return ANSWER(prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, open("/probe", O_RDONLY), 0, 0)); }
PROBE(personality_no_randomize) { return ANSWER(syscall(SYS_personality, 0x0040000)); }
PROBE(personality_read_implies_exec) { return ANSWER(syscall(SYS_personality, 0x0400000)); }
PROBE(personality_sticky) { return ANSWER(syscall(SYS_personality, 0x4000000)); }
PROBE(personality_ask) { return ANSWER(syscall(SYS_personality, 0xffffffff)); }
PROBE(personality_linux32) { return ANSWER(syscall(SYS_personality, 8)); }

/* -- keys, the kernel, the machine ----------------------------------------------------- */

enum { PROCESS_KEYRING = -2, SESSION_KEYRING = -3 };

PROBE(keyctl_id) { return ANSWER(syscall(SYS_keyctl, 0, SESSION_KEYRING, 0)); }
PROBE(keyctl_join) { return ANSWER(syscall(SYS_keyctl, 1, NULL)); }
PROBE(keyctl_read) { return ANSWER(syscall(SYS_keyctl, 11, SESSION_KEYRING, here, sizeof here)); }
PROBE(keyctl_search) { return ANSWER(syscall(SYS_keyctl, 10, SESSION_KEYRING, "user", "pybuild-test", 0)); }
PROBE(keyctl_persistent) { return ANSWER(syscall(SYS_keyctl, 22, -1, PROCESS_KEYRING)); }
PROBE(add_key) { return ANSWER(syscall(SYS_add_key, "user", "pybuild-test", "x", 1, PROCESS_KEYRING)); }
PROBE(request_key) { return ANSWER(syscall(SYS_request_key, "user", "pybuild-test", 0, PROCESS_KEYRING)); }

PROBE(bpf_map)
{
    uint32_t attributes[32] = {2, 4, 4, 1}; /* an array of one word */
    return ANSWER(syscall(SYS_bpf, 0, attributes, sizeof attributes));
}

PROBE(bpf_program)
{
    static uint64_t code[] = {0x00000000000000b7, 0x0000000000000095}; /* r0 = 0; exit */
    struct { uint32_t type, count; uint64_t code, license; uint32_t rest[24]; }
        attributes = {1, 2, (uintptr_t)code, (uintptr_t) "GPL", {0}};
    return ANSWER(syscall(SYS_bpf, 5, &attributes, sizeof attributes));
}

PROBE(bpf_next_id)
{
    uint32_t attributes[4] = {0};
    return ANSWER(syscall(SYS_bpf, 11, attributes, sizeof attributes));
}

PROBE(perf_event)
{
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .exclude_kernel = 1};
    return ANSWER(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0));
}

PROBE(user_fault) { return ANSWER(syscall(SYS_userfaultfd, 1)); }
PROBE(uring_setup)
{
    char parameters[120] = {0};
    return ANSWER(syscall(SYS_io_uring_setup, 1, parameters));
}
PROBE(uring_enter) { return ANSWER(syscall(SYS_io_uring_enter, -1, 0, 0, 0, NULL, 0)); }
PROBE(uring_register) { return ANSWER(syscall(SYS_io_uring_register, -1, 0, NULL, 0)); }
PROBE(fanotify) { return ANSWER(syscall(SYS_fanotify_init, 0x200, O_RDONLY)); }
PROBE(kexec) { return ANSWER(syscall(SYS_kexec_load, 0, 0, NULL, 0)); }
PROBE(kexec_file)
{
#ifdef SYS_kexec_file_load
    return ANSWER(syscall(SYS_kexec_file_load, -1, -1, 0, "", 8));
#else
    return EPERM;
#endif
}
PROBE(module_init) { return ANSWER(syscall(SYS_init_module, "", 0, "")); }
PROBE(module_file) { return ANSWER(syscall(SYS_finit_module, -1, "", 0)); }
PROBE(module_delete) { return ANSWER(syscall(SYS_delete_module, "pybuild_has_none", O_NONBLOCK)); }
PROBE(reboot_switch) { return ANSWER(syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL)); }
PROBE(swap_on) { return ANSWER(swapon(P "/none", 0)); }
PROBE(swap_off) { return ANSWER(swapoff(P "/none")); }
PROBE(accounting) { return ANSWER(acct(NULL)); }
PROBE(quota) { return ANSWER(syscall(SYS_quotactl, 0x80000700, "/dev/null", 0, here)); }
PROBE(quota_fd) { return ANSWER(syscall(QUOTACTL_FD, open("/", O_RDONLY), 0x80000700, 0, here)); }
PROBE(set_time) { return ANSWER(syscall(SYS_settimeofday, NULL, NULL)); }

PROBE(set_clock)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return ANSWER(syscall(SYS_clock_settime, CLOCK_REALTIME, &now));
}

static int tunes(int clock)
{
    struct timex now = {0};
    if (adjtimex(&now) < 0)
        return errno;
    now.modes = ADJ_TICK;
    return ANSWER(clock < 0 ? adjtimex(&now) : clock_adjtime(clock, &now));
}

PROBE(adjust_time) { return tunes(-1); }
PROBE(adjust_clock) { return tunes(CLOCK_REALTIME); }

PROBE(ask_time)
{
    struct timex now = {0};
    return ANSWER(adjtimex(&now));
}

PROBE(set_hostname) { return ANSWER(sethostname("owned", 5)); }
PROBE(set_domainname) { return ANSWER(setdomainname("owned", 5)); }
PROBE(kernel_log) { return ANSWER(syscall(SYS_syslog, 3, here, sizeof here)); }
PROBE(hang_up) { return ANSWER(vhangup()); }
PROBE(dcookie) { return ANSWER(syscall(212, 0, here, sizeof here)); }
PROBE(set_mempolicy) { return ANSWER(syscall(SYS_set_mempolicy, 0, NULL, 0)); }
PROBE(move_pages) { return ANSWER(syscall(SYS_move_pages, getppid(), 0, NULL, NULL, NULL, 0)); }
PROBE(migrate_pages) { return ANSWER(syscall(SYS_migrate_pages, getppid(), 0, NULL, NULL)); }

struct handle { unsigned int bytes; int type; unsigned char data[128]; };

static int handle_of(struct handle *handle)
{
    int mount_id;
    handle->bytes = sizeof handle->data;
    return ANSWER(syscall(SYS_name_to_handle_at, AT_FDCWD, "/etc/hosts", handle, &mount_id, 0));
}

PROBE(name_to_handle)
{
    struct handle handle;
    return handle_of(&handle);
}

PROBE(open_by_handle)
{
    struct handle handle = {8, 1, {2}}; /* the root inode of many file systems */
    handle_of(&handle);
    return ANSWER(syscall(SYS_open_by_handle_at, open("/etc/hosts", O_RDONLY), &handle, O_RDONLY));
}

PROBE(open_by_handle_root)
{
    struct handle handle = {8, 1, {2}};
    return ANSWER(syscall(SYS_open_by_handle_at, open("/etc/resolv.conf", O_RDONLY), &handle, O_RDONLY));
}

PROBE(freeze) { return ANSWER(ioctl(open("/", O_RDONLY), 0xC0045877, 0)); }

/* -- terminals ------------------------------------------------------------------------- */

static int pushes(unsigned long request, char *value)
{
    for (int fd = 0; fd < 3; fd++)
        if (!ioctl(fd, request, value))
            return 0;
    return errno;
}

PROBE(tiocsti) { return pushes(TIOCSTI, "x"); }
PROBE(tioclinux) { return pushes(TIOCLINUX, "\3"); }
PROBE(tiocsctty) { return pushes(TIOCSCTTY, NULL); }
PROBE(tty) { return ANSWER(open("/dev/tty", O_RDWR)); }
PROBE(ptmx) { return ANSWER(open("/dev/ptmx", O_RDWR | O_NOCTTY)); }

/* -- sockets --------------------------------------------------------------------------- */

static int makes(uint64_t domain, int type, int protocol)
{
    return ANSWER(syscall(SYS_socket, domain, type, protocol));
}

PROBE(socket_alg) { return makes(38, SOCK_SEQPACKET, 0); }
PROBE(socket_alg_upper) { return makes(38 | 1ull << 32, SOCK_SEQPACKET, 0); }
PROBE(socket_vsock) { return makes(40, SOCK_STREAM, 0); }
PROBE(socket_vsock_upper) { return makes(40 | 1ull << 32, SOCK_STREAM, 0); }
PROBE(socket_vsock_top) { return makes(40 | 0x80000000ull << 32, SOCK_STREAM, 0); }
PROBE(socket_unknown) { return makes(46, SOCK_STREAM, 0); }
PROBE(socket_dead) { return makes(25, SOCK_RAW, 0); }
PROBE(socket_unix) { return makes(AF_UNIX, SOCK_STREAM, 0); }
PROBE(socket_inet) { return makes(AF_INET, SOCK_STREAM, 0); }
PROBE(socket_inet6) { return makes(AF_INET6, SOCK_DGRAM, 0); }
PROBE(socket_netlink) { return makes(AF_NETLINK, SOCK_RAW, 0); }
PROBE(socket_packet) { return makes(AF_PACKET, SOCK_RAW, 0); }
PROBE(socket_icmp) { return makes(AF_INET, SOCK_RAW, IPPROTO_ICMP); }

PROBE(abstract_socket)
{
    struct sockaddr_un name = {AF_UNIX, "\0pybuild-probe-canary"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return ANSWER(connect(fd, (struct sockaddr *)&name, offsetof(struct sockaddr_un, sun_path) + 21));
}

PROBE(low_port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(80), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    return ANSWER(bind(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&name, sizeof name));
}

PROBE(link_down)
{
    struct ifreq request = {.ifr_name = "lo"};
    return ANSWER(ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &request));
}

/* -- files ----------------------------------------------------------------------------- */

static int rename_back(const char *path)
{
    if (rename(path, P "/moved"))
        return errno;
    return rename(P "/moved", path) ? errno : 0;
}

static int replace(const char *path)
{
    close(open(P "/new", O_WRONLY | O_CREAT, 0644));
    return ANSWER(rename(P "/new", path));
}

static int remove_file(const char *path)
{
    if (unlink(path))
        return errno;
    close(open(path, O_WRONLY | O_CREAT, 0644));
    return 0;
}

PROBE(rename_resolver) { return rename_back("/etc/resolv.conf"); }
PROBE(rename_hosts) { return rename_back("/etc/hosts"); }
PROBE(replace_resolver) { return replace("/etc/resolv.conf"); }
PROBE(replace_hosts) { return replace("/etc/hosts"); }
PROBE(unlink_resolver) { return remove_file("/etc/resolv.conf"); }
PROBE(unlink_hosts) { return remove_file("/etc/hosts"); }
PROBE(chmod_resolver) { return ANSWER(chmod("/etc/resolv.conf", 0777)); }
PROBE(truncate_hosts) { return ANSWER(truncate("/etc/hosts", 0)); }
PROBE(chmod_null) { return ANSWER(chmod("/dev/null", 0666)); } /* as it is */
PROBE(touch_null)
{
    struct stat found;
    stat("/dev/null", &found);
    return ANSWER(utimensat(AT_FDCWD, "/dev/null", (struct timespec[]){found.st_atim, found.st_mtim}, 0));
}
PROBE(rename_proc) { return rename_back("/proc"); }
PROBE(mknod_whiteout) { return ANSWER(mknod(P "/whiteout", S_IFCHR, 0)); }
PROBE(fifo) { return ANSWER(mkfifo(P "/fifo", 0644)); }

static const char *made(void)
{
    close(open(P "/file", O_WRONLY | O_CREAT, 0644));
    return P "/file";
}

PROBE(set_owner) { return ANSWER(chown(made(), 5, 6)); }
PROBE(set_mode) { return ANSWER(chmod(made(), 06755)); }
PROBE(set_capability)
{
    uint32_t value[5] = {htole32(0x02000001), 1 << CAP_NET_BIND_SERVICE};
    return ANSWER(setxattr(made(), "security.capability", value, sizeof value, 0));
}
PROBE(set_attribute) { return ANSWER(setxattr(made(), "user.pybuild", "x", 1, 0)); }
PROBE(set_trusted) { return ANSWER(setxattr(made(), "trusted.overlay.opaque", "y", 1, 0)); }
PROBE(be_another) { return ANSWER(setresuid(5, 5, 5)); }
PROBE(be_in_groups)
{
    gid_t groups[] = {5, 6};
    return ANSWER(setgroups(2, groups));
}
PROBE(change_root) { return ANSWER(chroot(P)); }
PROBE(landlock) { return ANSWER(syscall(LANDLOCK_CREATE_RULESET, NULL, 0, 1)); }
PROBE(filter)
{
    uint32_t action = 0x7fff0000;
    return ANSWER(syscall(SYS_seccomp, 2, 0, &action));
}
PROBE(openat2)
{
    uint64_t how[3] = {O_RDONLY, 0, 0};
    return ANSWER(syscall(OPENAT2, AT_FDCWD, "/", how, sizeof how));
}
PROBE(faccess) { return ANSWER(syscall(FACCESSAT2, AT_FDCWD, "/", R_OK, 0)); }
PROBE(close_range) { return ANSWER(syscall(CLOSE_RANGE, 100, 200, 0)); }
PROBE(memory_file) { return ANSWER(memfd_create("x", 0)); }
PROBE(shared_memory)
{
    int answer = ANSWER(open("/dev/shm/x", O_RDWR | O_CREAT, 0600));
    unlink("/dev/shm/x");
    return answer;
}

/* -- system call numbers ---------------------------------------------------------------- */

PROBE(number_400) { return ANSWER(syscall(400)); }
PROBE(number_471) { return ANSWER(syscall(471, 0, 0, 0)); }
PROBE(number_5000) { return ANSWER(syscall(5000)); }
PROBE(number_high) { return ANSWER(syscall(0x3fffffff)); }

#ifdef __x86_64__
#define X32 0x40000000
PROBE(x32_getpid) { return ANSWER(syscall(X32 | SYS_getpid)); }
PROBE(x32_unshare) { return ANSWER(syscall(X32 | SYS_unshare, CLONE_NEWUSER)); }
PROBE(x32_mount) { return ANSWER(syscall(X32 | SYS_mount, "none", P, "tmpfs", 0, "")); }
PROBE(x32_keyctl) { return ANSWER(syscall(X32 | SYS_keyctl, 0, SESSION_KEYRING, 0)); }
PROBE(x32_bpf) { return ANSWER(syscall(X32 | SYS_bpf, 0, here, 0)); }
PROBE(x32_socket) { return ANSWER(syscall(X32 | SYS_socket, 38, SOCK_SEQPACKET, 0)); }
PROBE(x32_vsock) { return ANSWER(syscall(X32 | SYS_socket, 40, SOCK_STREAM, 0)); }
PROBE(x32_setns) { return ANSWER(syscall(X32 | SYS_setns, -1, 0)); }
PROBE(x32_clone3) { return ANSWER(syscall(X32 | CLONE3, NULL, 0)); }
PROBE(x32_ptrace) { return ANSWER(syscall(X32 | 521, PTRACE_SEIZE, getppid(), 0, 0)); }
PROBE(x32_last) { return ANSWER(syscall(X32 | 547, -1, 0, 0, 0)); }
PROBE(iopl) { return ANSWER(syscall(SYS_iopl, 3)); }
PROBE(ioperm) { return ANSWER(syscall(SYS_ioperm, 0x80, 1, 1)); }
PROBE(uselib) { return ANSWER(syscall(SYS_uselib, "/probe")); }
PROBE(ustat) { return ANSWER(syscall(SYS_ustat, 0, here)); }
PROBE(sysfs) { return ANSWER(syscall(SYS_sysfs, 3)); }
PROBE(sysctl) { return ANSWER(syscall(156, here)); }

/* The 32-bit entry. This program is linked low, so its own data has 32-bit addresses. */
static int old(long call, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e)
{
    long answer;
    __asm__ volatile("int $0x80"
                     : "=a"(answer)
                     : "0"(call), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
                     : "r8", "r9", "r10", "r11", "memory");
    return (int)answer < 0 ? -(int)answer : 0;
}

static char low_none[] = "none", low_tmpfs[] = "tmpfs", low_path[] = P, low_user[] = "user";
static uint32_t low_words[32];

static int old_socket(uint32_t domain, uint32_t type)
{
    low_words[0] = domain;
    low_words[1] = type;
    low_words[2] = 0;
    return old(102, 1, (uintptr_t)low_words, 0, 0, 0);
}

PROBE(old_getpid) { return old(20, 0, 0, 0, 0, 0); }
PROBE(old_socket_unix) { return old(359, AF_UNIX, SOCK_STREAM, 0, 0, 0); }
PROBE(old_unshare) { return old(310, CLONE_NEWUSER, 0, 0, 0, 0); }
PROBE(old_mount) { return old(21, (uintptr_t)low_none, (uintptr_t)low_path, (uintptr_t)low_tmpfs, 0, 0); }
PROBE(old_umount) { return old(22, (uintptr_t)low_path, 0, 0, 0, 0); }
PROBE(old_umount2) { return old(52, (uintptr_t)low_path, MNT_DETACH, 0, 0, 0); }
PROBE(old_keyctl) { return old(288, 0, (uint32_t)SESSION_KEYRING, 0, 0, 0); }
PROBE(old_add_key) { return old(286, (uintptr_t)low_user, (uintptr_t)low_none, (uintptr_t)low_none, 1, (uint32_t)PROCESS_KEYRING); }
PROBE(old_bpf)
{
    low_words[0] = 2, low_words[1] = 4, low_words[2] = 4, low_words[3] = 1;
    return old(357, 0, (uintptr_t)low_words, sizeof low_words, 0, 0);
}
PROBE(old_socketcall_alg) { return old_socket(38, SOCK_SEQPACKET); }
PROBE(old_socketcall_vsock) { return old_socket(40, SOCK_STREAM); }
PROBE(old_socket_alg) { return old(359, 38, SOCK_SEQPACKET, 0, 0, 0); }
PROBE(old_socket_vsock) { return old(359, 40, SOCK_STREAM, 0, 0, 0); }
PROBE(old_clone)
{
    long answer;
    __asm__ volatile("int $0x80" : "=a"(answer) : "0"(120l), "b"((long)CLONE_NEWUSER | SIGCHLD), "c"(0l), "d"(0l), "S"(0l), "D"(0l)
                     : "r8", "r9", "r10", "r11", "memory");
    if (!answer)
        _exit(0);
    return (int)answer < 0 ? -(int)answer : 0;
}
PROBE(old_clone3) { return old(435, 0, 0, 0, 0, 0); }
PROBE(old_setns) { return old(346, (uint32_t)-1, 0, 0, 0, 0); }
PROBE(old_pivot_root) { return old(217, (uintptr_t)low_path, (uintptr_t)low_path, 0, 0, 0); }
PROBE(old_fsopen) { return old(430, (uintptr_t)low_tmpfs, 0, 0, 0, 0); }
PROBE(old_open_tree) { return old(428, (uint32_t)AT_FDCWD, (uintptr_t)low_path, TREE_CLONE, 0, 0); }
PROBE(old_uring) { return old(425, 1, (uintptr_t)low_words, 0, 0, 0); }
PROBE(old_personality) { return old(136, 0x0040000, 0, 0, 0, 0); }
PROBE(old_reboot) { return old(88, 0xfee1dead, 672274793, 0, 0, 0); }
PROBE(old_iopl) { return old(110, 3, 0, 0, 0, 0); }
PROBE(old_stime)
{
    low_words[0] = time(NULL);
    return old(25, (uintptr_t)low_words, 0, 0, 0, 0);
}
PROBE(old_vm86) { return old(166, 0, 0, 0, 0, 0); }
PROBE(old_handle) { return old(342, (uint32_t)-1, (uintptr_t)low_words, 0, 0, 0); }
PROBE(old_471) { return old(471, 0, 0, 0, 0, 0); }
PROBE(old_5000) { return old(5000, 0, 0, 0, 0, 0); }
#endif

#define ENTRY(id) {#id, probe_##id}

static const struct { const char *name; int (*run)(void); } probes[] = {
    ENTRY(mount_tmpfs), ENTRY(mount_proc), ENTRY(mount_sysfs), ENTRY(mount_devpts), ENTRY(mount_mqueue),
    ENTRY(mount_cgroup), ENTRY(mount_cgroup2), ENTRY(mount_devtmpfs), ENTRY(mount_debugfs),
    ENTRY(mount_securityfs), ENTRY(mount_binfmt), ENTRY(mount_bpf), ENTRY(mount_overlay), ENTRY(mount_fuse),
    ENTRY(mount_bind), ENTRY(mount_move), ENTRY(mount_remount), ENTRY(mount_remount_proc), ENTRY(mount_shared),
    ENTRY(umount_mask), ENTRY(umount_proc_sys), ENTRY(umount_proc), ENTRY(umount_resolver), ENTRY(umount_root),
    ENTRY(fs_open), ENTRY(fs_config), ENTRY(fs_mount), ENTRY(fs_pick), ENTRY(open_tree_plain),
    ENTRY(open_tree_clone), ENTRY(open_tree_attr), ENTRY(move_mount), ENTRY(mount_setattr), ENTRY(pivot_root),
    ENTRY(chroot_escape), ENTRY(proc_root), ENTRY(proc_root_up), ENTRY(proc_cwd_up), ENTRY(proc_task_root),
    ENTRY(map_files),

    ENTRY(unshare_user), ENTRY(unshare_mnt), ENTRY(unshare_net), ENTRY(unshare_pid), ENTRY(unshare_uts),
    ENTRY(unshare_ipc), ENTRY(unshare_cgroup), ENTRY(unshare_time),
    ENTRY(clone_user), ENTRY(clone_mnt), ENTRY(clone_net), ENTRY(clone_pid), ENTRY(clone_uts), ENTRY(clone_ipc),
    ENTRY(clone_cgroup), ENTRY(clone_all), ENTRY(clone_plain),
    ENTRY(clone3_plain), ENTRY(clone3_user), ENTRY(clone3_time), ENTRY(clone3_nothing),
    ENTRY(setns_user), ENTRY(setns_mnt), ENTRY(setns_net), ENTRY(setns_pid), ENTRY(setns_uts), ENTRY(setns_ipc),
    ENTRY(setns_cgroup), ENTRY(setns_time), ENTRY(setns_pidfd), ENTRY(ns_parent_user), ENTRY(ns_parent_pid),
    ENTRY(uid_map),

    ENTRY(kill_all), ENTRY(kill_others), ENTRY(kill_outside), ENTRY(ptrace_parent), ENTRY(ptrace_child),
    ENTRY(vm_read), ENTRY(pidfd_open), ENTRY(pidfd_getfd), ENTRY(kcmp), ENTRY(process_madvise),
    ENTRY(foreign_processes), ENTRY(nice_up), ENTRY(nice_down), ENTRY(sched_fifo), ENTRY(sched_deadline),
    ENTRY(io_realtime), ENTRY(limit_files), ENTRY(limit_processes), ENTRY(limit_memlock), ENTRY(limit_core),
    ENTRY(limit_realtime), ENTRY(limit_parent), ENTRY(limit_lower), ENTRY(oom_less), ENTRY(oom_minus), ENTRY(oom_never),
    ENTRY(oom_more),

    ENTRY(cap_sys_admin), ENTRY(cap_sys_ptrace), ENTRY(cap_net_admin), ENTRY(cap_dac_read_search),
    ENTRY(cap_ambient), ENTRY(cap_chown), ENTRY(keep_securebits), ENTRY(set_mm), ENTRY(set_mm_exe),
    ENTRY(personality_no_randomize), ENTRY(personality_read_implies_exec), ENTRY(personality_sticky),
    ENTRY(personality_ask), ENTRY(personality_linux32),

    ENTRY(keyctl_id), ENTRY(keyctl_join), ENTRY(keyctl_read), ENTRY(keyctl_search), ENTRY(keyctl_persistent),
    ENTRY(add_key), ENTRY(request_key), ENTRY(bpf_map), ENTRY(bpf_program), ENTRY(bpf_next_id),
    ENTRY(perf_event), ENTRY(user_fault), ENTRY(uring_setup), ENTRY(uring_enter), ENTRY(uring_register),
    ENTRY(fanotify), ENTRY(kexec), ENTRY(kexec_file), ENTRY(module_init), ENTRY(module_file),
    ENTRY(module_delete), ENTRY(reboot_switch), ENTRY(swap_on), ENTRY(swap_off), ENTRY(accounting),
    ENTRY(quota), ENTRY(quota_fd), ENTRY(set_time), ENTRY(set_clock), ENTRY(adjust_time), ENTRY(adjust_clock),
    ENTRY(ask_time), ENTRY(set_hostname), ENTRY(set_domainname), ENTRY(kernel_log), ENTRY(hang_up),
    ENTRY(dcookie), ENTRY(set_mempolicy), ENTRY(move_pages), ENTRY(migrate_pages), ENTRY(name_to_handle),
    ENTRY(open_by_handle), ENTRY(open_by_handle_root), ENTRY(freeze),

    ENTRY(tiocsti), ENTRY(tioclinux), ENTRY(tiocsctty), ENTRY(tty), ENTRY(ptmx),

    ENTRY(socket_alg), ENTRY(socket_alg_upper), ENTRY(socket_vsock), ENTRY(socket_vsock_upper),
    ENTRY(socket_vsock_top), ENTRY(socket_unknown), ENTRY(socket_dead), ENTRY(socket_unix), ENTRY(socket_inet),
    ENTRY(socket_inet6), ENTRY(socket_netlink), ENTRY(socket_packet), ENTRY(socket_icmp),
    ENTRY(abstract_socket), ENTRY(low_port), ENTRY(link_down),

    ENTRY(rename_resolver), ENTRY(rename_hosts), ENTRY(replace_resolver), ENTRY(replace_hosts),
    ENTRY(unlink_resolver), ENTRY(unlink_hosts), ENTRY(chmod_resolver), ENTRY(truncate_hosts),
    ENTRY(chmod_null), ENTRY(touch_null), ENTRY(rename_proc), ENTRY(mknod_whiteout), ENTRY(fifo), ENTRY(set_owner), ENTRY(set_mode),
    ENTRY(set_capability), ENTRY(set_attribute), ENTRY(set_trusted), ENTRY(be_another), ENTRY(be_in_groups),
    ENTRY(change_root), ENTRY(landlock), ENTRY(filter), ENTRY(openat2), ENTRY(faccess), ENTRY(close_range),
    ENTRY(memory_file), ENTRY(shared_memory),

    ENTRY(number_400), ENTRY(number_471), ENTRY(number_5000), ENTRY(number_high),
#ifdef __x86_64__
    ENTRY(x32_getpid), ENTRY(x32_unshare), ENTRY(x32_mount), ENTRY(x32_keyctl), ENTRY(x32_bpf),
    ENTRY(x32_socket), ENTRY(x32_vsock), ENTRY(x32_setns), ENTRY(x32_clone3), ENTRY(x32_ptrace),
    ENTRY(x32_last), ENTRY(iopl), ENTRY(ioperm), ENTRY(uselib), ENTRY(ustat), ENTRY(sysfs), ENTRY(sysctl),
    ENTRY(old_getpid), ENTRY(old_socket_unix), ENTRY(old_unshare), ENTRY(old_mount), ENTRY(old_umount),
    ENTRY(old_umount2), ENTRY(old_keyctl), ENTRY(old_add_key), ENTRY(old_bpf), ENTRY(old_socketcall_alg),
    ENTRY(old_socketcall_vsock), ENTRY(old_socket_alg), ENTRY(old_socket_vsock), ENTRY(old_clone),
    ENTRY(old_clone3), ENTRY(old_setns), ENTRY(old_pivot_root), ENTRY(old_fsopen), ENTRY(old_open_tree),
    ENTRY(old_uring), ENTRY(old_personality), ENTRY(old_reboot), ENTRY(old_iopl), ENTRY(old_stime),
    ENTRY(old_vm86), ENTRY(old_handle), ENTRY(old_471), ENTRY(old_5000),
#endif
};

/* -- probes that are a path ------------------------------------------------------------- */

static const char *const writable[] = {
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/sysrq", "/proc/sys/kernel/panic", "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/kernel/shmmax", "/proc/sys/kernel/randomize_va_space", "/proc/sys/vm/drop_caches",
    "/proc/sys/vm/overcommit_memory", "/proc/sys/fs/file-max", "/proc/sys/user/max_user_namespaces",
    "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/core/somaxconn", "/proc/sys/fs/mqueue/msg_max",
    "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/mtrr", "/proc/slabinfo",
    "/sys/kernel/uevent_helper", "/sys/kernel/profiling", "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/release_agent",
    "/sys/class/net/lo/mtu", "/sys/devices/system/cpu/cpu0/online", "/etc/resolv.conf", "/etc/hosts",
};

static const char *const writes_allowed[] = {"/proc/self/comm", "/proc/self/coredump_filter", "/dev/null"};

static const char *const readable[] = {
    "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/timer_stats", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/interrupts", "/proc/acpi", "/proc/scsi", "/proc/asound", "/proc/kmsg",
    "/proc/kpagecount", "/proc/kpageflags", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/sysrq-trigger",
    "/proc/sys/fs/binfmt_misc/register", "/sys/firmware", "/sys/devices/virtual/powercap",
    "/sys/devices/system/cpu/cpu0/thermal_throttle", "/sys/fs/selinux", "/sys/kernel/debug",
    "/sys/kernel/tracing", "/sys/kernel/security", "/sys/fs/bpf", "/sys/fs/pstore", "/sys/fs/cgroup",
};

static const char *const reads_allowed[] = {
    "/proc/version", "/proc/meminfo", "/proc/cpuinfo", "/proc/mounts", "/proc/1/status", "/proc/self/environ",
    "/proc/sys/kernel/osrelease", "/proc/sys/net/core/somaxconn", "/sys/class/net", "/sys/devices/system/cpu",
    "/dev/urandom", "/dev/zero", "/etc/resolv.conf", "/etc/hosts",
};

static const char *const absent[] = {
    "/dev/kmsg", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/fuse", "/dev/kvm", "/dev/console", "/dev/tty0",
    "/dev/loop-control", "/dev/loop0", "/dev/vda", "/dev/sda", "/dev/net/tun", "/dev/vsock", "/dev/vhost-vsock",
    "/dev/vhost-net", "/dev/rtc0", "/dev/hwrng", "/dev/watchdog", "/dev/mapper/control", "/dev/input",
    "/dev/initctl", "/dev/log", "/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock",
};

static const struct { const char *name; mode_t type; unsigned major, minor; } nodes[] = {
    {"node mem", S_IFCHR, 1, 1}, {"node port", S_IFCHR, 1, 4}, {"node null", S_IFCHR, 1, 3},
    {"node kmsg", S_IFCHR, 1, 11}, {"node tty0", S_IFCHR, 4, 0}, {"node console", S_IFCHR, 5, 1},
    {"node fuse", S_IFCHR, 10, 229}, {"node loop-control", S_IFCHR, 10, 237}, {"node tun", S_IFCHR, 10, 200},
    {"node loop0", S_IFBLK, 7, 0}, {"node sda", S_IFBLK, 8, 0}, {"node vda", S_IFBLK, 254, 0},
    {"node nvme", S_IFBLK, 259, 0},
};

static int for_writing(const char *path) { return ANSWER(open(path, O_WRONLY | O_CLOEXEC)); }

static int for_reading(const char *path)
{
    char byte;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return errno;
    ssize_t size = read(fd, &byte, 1);
    if (size < 0 && errno == EISDIR) {
        DIR *folder = fdopendir(fd);
        struct dirent *entry;
        while ((entry = readdir(folder)))
            if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
                return 0;
        return ENODATA;
    }
    return size < 0 ? errno : size ? 0 : ENODATA;
}

static int makes_node(size_t n)
{
    if (mknod(P "/node", nodes[n].type | 0666, makedev(nodes[n].major, nodes[n].minor)))
        return errno;
    int answer = ANSWER(open(P "/node", O_RDONLY | O_NONBLOCK | O_NOCTTY));
    unlink(P "/node");
    return answer;
}

/* -- running them ----------------------------------------------------------------------- */

enum kind { CALL, WRITE, READ, OPEN, NODE };

static int ask(enum kind kind, size_t n, const char *path)
{
    int status;
    fflush(out);
    pid_t pid = fork();
    if (pid < 0)
        return errno;
    if (!pid) {
        setsid();
        alarm(10);
        unshare(CLONE_NEWNS);
        switch (kind) {
        case CALL: status = probes[n].run(); break;
        case WRITE: status = for_writing(path); break;
        case READ: status = for_reading(path); break;
        case OPEN: status = ANSWER(open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY)); break;
        default: status = makes_node(n);
        }
        _exit(status > 199 ? 199 : status);
    }
    while (waitpid(pid, &status, 0) < 0)
        ;
    while (waitpid(-1, NULL, 0) > 0) /* those that it left behind, if we are process 1 */
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 200 + WTERMSIG(status);
}

static char **wanted;

static int is_wanted(const char *name)
{
    for (char **at = wanted; at && *at; at++)
        if (!strcmp(*at, name))
            return 1;
    return !wanted;
}

static void give(const char *name, enum kind kind, size_t n, const char *path)
{
    if (is_wanted(name))
        number(name, ask(kind, n, path));
}

static void give_paths(const char *verb, enum kind kind, const char *const *paths, size_t count)
{
    char name[256];
    for (size_t n = 0; n < count; n++) {
        snprintf(name, sizeof name, "%s %s", verb, paths[n]);
        give(name, kind, n, paths[n]);
    }
}

static void answers(void)
{
    mkdir(P, 0777);
    open_list("probes", '{');
    for (size_t n = 0; n < COUNT(probes); n++)
        give(probes[n].name, CALL, n, NULL);
    for (size_t n = 0; n < COUNT(nodes); n++)
        give(nodes[n].name, NODE, n, NULL);
    give_paths("write", WRITE, writable, COUNT(writable));
    give_paths("may write", WRITE, writes_allowed, COUNT(writes_allowed));
    give_paths("read", READ, readable, COUNT(readable));
    give_paths("may read", READ, reads_allowed, COUNT(reads_allowed));
    give_paths("open", OPEN, absent, COUNT(absent));
    close_list('}');
}

/* -- other things to do ------------------------------------------------------------------ */

static void walk(const char *path, dev_t device)
{
    struct dirent *entry;
    struct stat found;
    if (lstat(path, &found) || found.st_dev != device)
        return;
    if (S_ISREG(found.st_mode)) {
        int fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0) {
            puts(path);
            close(fd);
        }
        return;
    }
    DIR *folder = S_ISDIR(found.st_mode) ? opendir(path) : NULL;
    while (folder && (entry = readdir(folder))) {
        char inner[4096];
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        /* processes come and go, and may write to their own files */
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && !(!strcmp(path, "/proc") && atoi(entry->d_name)))
            walk(inner, device);
    }
    if (folder)
        closedir(folder);
}

static int swap(char **arguments)
{
    long count = 0, refused = 0;
    time_t end = time(NULL) + atol(arguments[2]);
    while (time(NULL) < end && access(arguments[3], F_OK))
        for (int n = 0; n < 100; n++)
            if (syscall(SYS_renameat2, AT_FDCWD, arguments[0], AT_FDCWD, arguments[1], 2))
                refused++;
            else
                count++;
    printf("swapped %ld, refused %ld\n", count, refused);
    return 0;
}

static int give_capabilities(char **arguments)
{
    uint64_t permitted = strtoull(arguments[1], NULL, 16), inheritable = strtoull(arguments[2], NULL, 16);
    uint32_t value[5] = {
        0x02000000 | (atoi(arguments[3]) ? 1 : 0), (uint32_t)permitted, (uint32_t)inheritable,
        (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32),
    };
    int failed = setxattr(arguments[0], "security.capability", value, sizeof value, 0);
    if (failed)
        perror(arguments[0]);
    return failed ? 1 : 0;
}

static int show_capabilities(void)
{
    char line[256];
    FILE *file = fopen("/proc/self/status", "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "Cap", 3)) {
            line[strcspn(line, "\n")] = 0;
            printf("%.6s=%s ", line, line + 8);
        }
    puts("");
    return 0;
}

static int talk(const char *path, const char *words)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct timeval patience = {2, 0};
    char answer[4096];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(name.sun_path, path, sizeof name.sun_path - 1);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&name, sizeof name) || write(fd, words, strlen(words)) < 0) {
        perror(path);
        return 1;
    }
    shutdown(fd, SHUT_WR);
    printf("%zd bytes\n", read(fd, answer, sizeof answer));
    return 0;
}

int main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "";
    struct stat found;
    out = stdout;
    if (!strcmp(what, "caps"))
        return show_capabilities();
    if (!strcmp(what, "fcap") && count == 6)
        return give_capabilities(arguments + 2);
    if (!strcmp(what, "swap") && count == 6)
        return swap(arguments + 2);
    if (!strcmp(what, "read") && count == 3) {
        puts(for_reading(arguments[2]) ? "denied" : "read");
        return 0;
    }
    if (!strcmp(what, "raw") && count == 4)
        return talk(arguments[2], arguments[3]);
    if (!strcmp(what, "walk")) {
        for (int n = 2; n < count; n++)
            if (!stat(arguments[n], &found))
                walk(arguments[n], found.st_dev);
        return 0;
    }
    if (access(MARK, F_OK)) {
        fputs("probe: not here: there is no " MARK "\n", stderr);
        return 2;
    }
    if (!strcmp(what, "report") && count < 4) {
        if (count == 3 && !(out = fopen(arguments[2], "we"))) {
            perror(arguments[2]);
            return 1;
        }
        putc('{', out);
        gap = "\n";
        see();
    } else if (!strcmp(what, "try")) {
        wanted = arguments + 2;
        putc('{', out);
        gap = "\n";
    } else {
        fputs("probe: report [FILE] | try NAME... | walk DIRECTORY... | swap A B SECONDS STOP | fcap FILE P I E | caps | read FILE | raw SOCKET TEXT\n", stderr);
        return 2;
    }
    answers();
    fputs("}\n", out);
    return fclose(out) ? 1 : 0;
}
