/* Between a process and the files under CHAOS_ROOT: kills it at an operation, lets operations fail, and writes down to
 * CHAOS_TRACE how much of each file was made to last. Loaded with LD_PRELOAD; see faulty_files.py.
 *
 * Lines of the trace: S inode size (an fsync of so many bytes succeeded), T inode size (cut to that size), U inode
 * (removed), F what path (an operation was made to fail), K what path (the process was killed at one). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))
#define MAX_POISONED 64

static const char *root, *kinds;
static size_t root_length;
static int trace = -1;
static long kill_at, fail_at, fail_count, fail_errno, kill_after_fail, kill_parent, seen, die_at;
static ino_t poisoned[MAX_POISONED];
static int poisoned_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

__attribute__((constructor)) static void begin(void) {
    root = getenv("CHAOS_ROOT");
    if (!root) return;
    root_length = strlen(root);
    kinds = getenv("CHAOS_KINDS");
    if (!kinds) kinds = "swn";
    kill_at = number("CHAOS_KILL_AT");
    fail_at = number("CHAOS_FAIL_AT");
    fail_count = number("CHAOS_FAIL_COUNT");
    fail_errno = number("CHAOS_FAIL_ERRNO");
    kill_after_fail = number("CHAOS_KILL_AFTER_FAIL");
    kill_parent = number("CHAOS_KILL_PARENT");
    const char *path = getenv("CHAOS_TRACE");
    if (path) trace = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void note(const char *format, ...) {
    char line[512];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    if (trace >= 0 && length > 0) syscall(SYS_write, trace, line, (size_t)length);
}

static int is_ours(const char *path) {
    return root && strncmp(path, root, root_length) == 0 && path[root_length] == '/' && !strstr(path, "store.lock");
}

static int path_of(int fd, char *path, size_t size) {
    char link[64];
    if (!root) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static void die(const char *what, const char *path) {
    note("K %s %s\n", what, path);
    if (kill_parent) kill(getppid(), SIGKILL);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What becomes of this operation: 0 it happens, 1 it fails, 2 the process dies in it. */
static int fate(char kind, const char *what, const char *path) {
    if (!strchr(kinds, kind)) return 0;
    pthread_mutex_lock(&lock);
    long place = ++seen;
    int fails = fail_at && place >= fail_at && place < fail_at + fail_count;
    if (fails && kill_after_fail && !die_at) die_at = place + kill_after_fail;
    int dies = (kill_at && place == kill_at) || (die_at && place >= die_at);
    pthread_mutex_unlock(&lock);
    if (dies) return 2;
    if (fails) note("F %s %s\n", what, path);
    return fails;
}

static int is_poisoned(ino_t inode) {
    for (int at = 0; at < poisoned_count; at++)
        if (poisoned[at] == inode) return 1;
    return 0;
}

static int sync_with(int fd, const char *what, int (*call)(int)) {
    char path[4096];
    struct stat before;
    if (!path_of(fd, path, sizeof path) || fstat(fd, &before) != 0) return call(fd);
    int found = fate('s', what, path);
    if (found == 2) die(what, path);
    if (found == 1) { /* after a failed fsync the kernel may have dropped the pages: no later one saves them */
        pthread_mutex_lock(&lock);
        if (poisoned_count < MAX_POISONED) poisoned[poisoned_count++] = before.st_ino;
        pthread_mutex_unlock(&lock);
        errno = (int)fail_errno;
        return -1;
    }
    int result = call(fd);
    if (result == 0 && S_ISREG(before.st_mode) && !is_poisoned(before.st_ino))
        note("S %lu %lld\n", (unsigned long)before.st_ino, (long long)before.st_size);
    return result;
}

int fsync(int fd) { return sync_with(fd, "fsync", REAL(fsync)); }
int fdatasync(int fd) { return sync_with(fd, "fdatasync", REAL(fdatasync)); }

ssize_t write(int fd, const void *bytes, size_t count) {
    char path[4096];
    ssize_t (*call)(int, const void *, size_t) = REAL(write);
    if (!root || !path_of(fd, path, sizeof path)) return call(fd, bytes, count);
    int found = fate('w', "write", path);
    if (!found) return call(fd, bytes, count);
    if (call(fd, bytes, count / 2) < 0) return -1;
    if (found == 2) die("write", path);
    errno = (int)fail_errno;
    return -1;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    char path[4096];
    ssize_t (*call)(int, const void *, size_t, off64_t) = REAL(pwrite64);
    if (!root || !path_of(fd, path, sizeof path)) return call(fd, bytes, count, at);
    int found = fate('w', "pwrite", path);
    if (!found) return call(fd, bytes, count, at);
    if (call(fd, bytes, count / 2, at) < 0) return -1;
    if (found == 2) die("pwrite", path);
    errno = (int)fail_errno;
    return -1;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

int ftruncate64(int fd, off64_t size) {
    char path[4096];
    struct stat before;
    int (*call)(int, off64_t) = REAL(ftruncate64);
    if (!path_of(fd, path, sizeof path) || fstat(fd, &before) != 0) return call(fd, size);
    int found = fate('n', "ftruncate", path);
    if (found == 2) die("ftruncate", path);
    if (found == 1) {
        errno = (int)fail_errno;
        return -1;
    }
    note("T %lu %lld\n", (unsigned long)before.st_ino, (long long)size);
    return call(fd, size);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static void note_gone(const char *path) {
    struct stat gone;
    if (stat(path, &gone) == 0 && gone.st_nlink == 1) note("U %lu\n", (unsigned long)gone.st_ino);
}

static int name_with(const char *what, const char *from, const char *to, int (*call)(const char *)) {
    if (!is_ours(from)) return to ? REAL(rename)(from, to) : call(from);
    int found = fate('n', what, from);
    if (found == 2) die(what, from);
    if (found == 1) {
        errno = (int)fail_errno;
        return -1;
    }
    note_gone(to ? to : from);
    return to ? REAL(rename)(from, to) : call(from);
}

int rename(const char *from, const char *to) { return name_with("rename", from, to, NULL); }
int unlink(const char *path) { return name_with("unlink", path, NULL, REAL(unlink)); }
int remove(const char *path) { return name_with("unlink", path, NULL, REAL(remove)); }
