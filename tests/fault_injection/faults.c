/* Makes the n-th operation on a folder fail, or kills the process there.
 *
 * To be preloaded (LD_PRELOAD), so that what is written from C++ is seen, too. It does nothing until
 * a process arms it by faults_arm; what that process forks afterwards is counted together with it.
 *
 * Operations are the calls that change files below the folder: opening a file to write, write and
 * its kin, truncate, rename, fsync and fdatasync, mkdir, unlink, rmdir, link and symlink. What is
 * written through stdio's FILE is seen when it is opened, not when it is flushed: the C library does
 * not come back here for that.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, WRITE, TRUNCATE, RENAME, SYNC, MKDIR, UNLINK, RMDIR, LINK };
static const char *const NAMES[] = {"open",  "write",  "truncate", "rename", "sync",
                                    "mkdir", "unlink", "rmdir",    "link"};

static char root[PATH_MAX];
static size_t root_length;
static long chosen;      /* the operation to strike at, from 1; 0: none */
static int action;       /* an errno, or 0 to kill */
static int log_file = -1;
static atomic_long *counted; /* shared with forks; NULL: not armed */

/* Starts counting. fault: "kill", "ENOSPC", "EIO" or "EACCES". log: gets a line an operation.
 * Returns 0, or -1 where an argument is wrong. */
int faults_arm(const char *folder, long n, const char *fault, const char *log) {
    static const struct { const char *name; int code; } KNOWN[] = {
        {"kill", 0}, {"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EACCES", EACCES}};
    int found = 0;
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (!strcmp(KNOWN[i].name, fault)) action = KNOWN[i].code, found = 1;
    if (!found || strlen(folder) >= sizeof root) return -1;
    strcpy(root, folder);
    root_length = strlen(root);
    chosen = n;
    log_file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (log_file < 0) return -1;
    /* Far from the numbers that the program gets, and may close. */
    int high = fcntl(log_file, F_DUPFD_CLOEXEC, 900);
    if (high >= 0) close(log_file), log_file = high;
    void *shared = mmap(NULL, sizeof *counted, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                        -1, 0);
    if (shared == MAP_FAILED) return -1;
    counted = shared;
    return 0;
}

static int is_below(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int of_descriptor(int descriptor, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int absolute(int folder, const char *path, char *result) {
    if (path[0] == '/') return snprintf(result, PATH_MAX, "%s", path) < PATH_MAX;
    char base[PATH_MAX];
    if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !of_descriptor(folder, base)) return 0;
    return snprintf(result, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

/* Whether a fault that has begun concerns an operation after it, too. A full disk stays full: there
 * is no room for data or new names, while what is there can be renamed and removed. Rights that are
 * gone stay gone, but files that are open can be written. An I/O error is that of one block. */
static int goes_on(enum kind kind, const char *path) {
    switch (kind) {
        case OPEN: return action == EACCES || (action == ENOSPC && access(path, F_OK));
        case WRITE: return action == ENOSPC;
        case MKDIR: case LINK: return action == ENOSPC || action == EACCES;
        case RENAME: case UNLINK: case RMDIR: return action == EACCES;
        default: return 0;
    }
}

/* Counts an operation. Returns the error that it is to fail with, or 0; or does not return. */
static int struck(enum kind kind, const char *path) {
    if (!is_below(path)) return 0;
    long n = atomic_fetch_add(counted, 1) + 1;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", n, NAMES[kind], path);
    syscall(SYS_write, log_file, line, length);
    if (!chosen || n < chosen) return 0;
    if (!action) {
        if (n == chosen) kill(getpid(), SIGKILL);
        return 0;
    }
    return n == chosen || goes_on(kind, path) ? action : 0;
}

static int fails_at(enum kind kind, int folder, const char *path) {
    if (!counted || !path) return 0;
    char buffer[PATH_MAX];
    int before = errno;
    int error = absolute(folder, path, buffer) ? struck(kind, buffer) : 0;
    errno = error ? error : before;
    return error;
}

static int fails_on(enum kind kind, int descriptor) {
    if (!counted) return 0;
    char buffer[PATH_MAX];
    int before = errno;
    int error = of_descriptor(descriptor, buffer) ? struck(kind, buffer) : 0;
    errno = error ? error : before;
    return error;
}

/* The C library's own function of this name and type. */
#define REAL(name)                                                        \
    static __typeof__(name) *real;                                        \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define MODE(last)                                                        \
    mode_t mode = 0;                                                      \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {            \
        va_list rest;                                                     \
        va_start(rest, last);                                             \
        mode = va_arg(rest, mode_t);                                      \
        va_end(rest);                                                     \
    }

#define OPENS(name)                                                       \
    int name(const char *path, int flags, ...) {                          \
        REAL(name);                                                       \
        MODE(flags)                                                       \
        if (writes(flags) && fails_at(OPEN, AT_FDCWD, path)) return -1;   \
        return real(path, flags, mode);                                   \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                    \
    int name(int folder, const char *path, int flags, ...) {              \
        REAL(name);                                                       \
        MODE(flags)                                                       \
        if (writes(flags) && fails_at(OPEN, folder, path)) return -1;     \
        return real(folder, path, flags, mode);                           \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define CREATES(name)                                                     \
    int name(const char *path, mode_t mode) {                             \
        REAL(name);                                                       \
        if (fails_at(OPEN, AT_FDCWD, path)) return -1;                    \
        return real(path, mode);                                          \
    }
CREATES(creat)
CREATES(creat64)

#define OPENS_STREAM(name)                                                \
    FILE *name(const char *restrict path, const char *restrict mode) {    \
        REAL(name);                                                       \
        if (strpbrk(mode, "wa+") && fails_at(OPEN, AT_FDCWD, path)) return NULL; \
        return real(path, mode);                                          \
    }
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)

#define ON_DESCRIPTOR(result, kind, name, parameters, ...)                \
    result name parameters {                                              \
        REAL(name);                                                       \
        if (fails_on(kind, descriptor)) return -1;                        \
        return real(__VA_ARGS__);                                         \
    }
ON_DESCRIPTOR(ssize_t, WRITE, write, (int descriptor, const void *data, size_t size),
              descriptor, data, size)
ON_DESCRIPTOR(ssize_t, WRITE, pwrite, (int descriptor, const void *data, size_t size, off_t at),
              descriptor, data, size, at)
ON_DESCRIPTOR(ssize_t, WRITE, pwrite64, (int descriptor, const void *data, size_t size, off64_t at),
              descriptor, data, size, at)
ON_DESCRIPTOR(ssize_t, WRITE, writev, (int descriptor, const struct iovec *parts, int count),
              descriptor, parts, count)
ON_DESCRIPTOR(ssize_t, WRITE, pwritev,
              (int descriptor, const struct iovec *parts, int count, off_t at),
              descriptor, parts, count, at)
ON_DESCRIPTOR(ssize_t, WRITE, pwritev64,
              (int descriptor, const struct iovec *parts, int count, off64_t at),
              descriptor, parts, count, at)
ON_DESCRIPTOR(ssize_t, WRITE, pwritev2,
              (int descriptor, const struct iovec *parts, int count, off_t at, int flags),
              descriptor, parts, count, at, flags)
ON_DESCRIPTOR(ssize_t, WRITE, pwritev64v2,
              (int descriptor, const struct iovec *parts, int count, off64_t at, int flags),
              descriptor, parts, count, at, flags)
ON_DESCRIPTOR(ssize_t, WRITE, sendfile, (int descriptor, int from, off_t *at, size_t size),
              descriptor, from, at, size)
ON_DESCRIPTOR(ssize_t, WRITE, sendfile64, (int descriptor, int from, off64_t *at, size_t size),
              descriptor, from, at, size)
ON_DESCRIPTOR(int, TRUNCATE, ftruncate, (int descriptor, off_t size), descriptor, size)
ON_DESCRIPTOR(int, TRUNCATE, ftruncate64, (int descriptor, off64_t size), descriptor, size)
ON_DESCRIPTOR(int, SYNC, fsync, (int descriptor), descriptor)
ON_DESCRIPTOR(int, SYNC, fdatasync, (int descriptor), descriptor)

ssize_t copy_file_range(int from, off64_t *from_at, int descriptor, off64_t *at, size_t size,
                        unsigned flags) {
    REAL(copy_file_range);
    if (fails_on(WRITE, descriptor)) return -1;
    return real(from, from_at, descriptor, at, size, flags);
}

#define ON_PATH(kind, name, parameters, folder, path, ...)                \
    int name parameters {                                                 \
        REAL(name);                                                       \
        if (fails_at(kind, folder, path)) return -1;                      \
        return real(__VA_ARGS__);                                         \
    }
ON_PATH(TRUNCATE, truncate, (const char *path, off_t size), AT_FDCWD, path, path, size)
ON_PATH(TRUNCATE, truncate64, (const char *path, off64_t size), AT_FDCWD, path, path, size)
/* Of the two paths of a renaming or link the new one counts: it is the one that appears. */
ON_PATH(RENAME, rename, (const char *old, const char *new), AT_FDCWD, new, old, new)
ON_PATH(RENAME, renameat, (int a, const char *old, int b, const char *new), b, new, a, old, b, new)
ON_PATH(RENAME, renameat2, (int a, const char *old, int b, const char *new, unsigned flags),
        b, new, a, old, b, new, flags)
ON_PATH(LINK, link, (const char *old, const char *new), AT_FDCWD, new, old, new)
ON_PATH(LINK, linkat, (int a, const char *old, int b, const char *new, int flags),
        b, new, a, old, b, new, flags)
ON_PATH(LINK, symlink, (const char *old, const char *new), AT_FDCWD, new, old, new)
ON_PATH(LINK, symlinkat, (const char *old, int b, const char *new), b, new, old, b, new)
ON_PATH(MKDIR, mkdir, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
ON_PATH(MKDIR, mkdirat, (int folder, const char *path, mode_t mode), folder, path,
        folder, path, mode)
ON_PATH(UNLINK, unlink, (const char *path), AT_FDCWD, path, path)
ON_PATH(RMDIR, rmdir, (const char *path), AT_FDCWD, path, path)

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    if (fails_at(flags & AT_REMOVEDIR ? RMDIR : UNLINK, folder, path)) return -1;
    return real(folder, path, flags);
}

int remove(const char *path) {
    REAL(remove);
    if (fails_at(UNLINK, AT_FDCWD, path)) return -1;
    return real(path);
}
