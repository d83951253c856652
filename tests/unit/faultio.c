/* A shim under a data directory (LD_PRELOAD): does something bad at the FAULTIO_AT-th write or sync of data.mdb, of a
 * file below large/ or blobs/, or of such a directory.
 *
 * FAULTIO_DO: kill      die before it
 *             torn      write the first half, then die
 *             powercut  die, and take back a random part of the pages written since their file was synced, and of the
 *                       names below large/ and blobs/ that changed since their directory was
 *             eio, enospc   fail with it, this once
 *             short     write less than asked, this once
 *             eintr     be interrupted, this once
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096
#define FDS 1024
#define UNDO 65536
#define NAMES 1024

static char tracked[FDS]; /* 1: buffered, 2: O_DSYNC */
static long at, count;
static const char *deed = "";
static struct { ino_t file; int copy; off_t offset; char *old; } undo[UNDO]; /* copy: is open when its fd is closed */
static int undos;
static struct { char what, from[PATH_MAX], to[PATH_MAX]; } names[NAMES]; /* made: d, f; r: from where to where */
static int changes;

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);
static int (*real_open)(const char *, int, ...);
static int (*real_mkdir)(const char *, mode_t);
static int (*real_rename)(const char *, const char *);

__attribute__((constructor)) static void begin(void) {
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_write = dlsym(RTLD_NEXT, "write");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_open = dlsym(RTLD_NEXT, "open");
    real_mkdir = dlsym(RTLD_NEXT, "mkdir");
    real_rename = dlsym(RTLD_NEXT, "rename");
    if (getenv("FAULTIO_AT")) at = atol(getenv("FAULTIO_AT"));
    if (getenv("FAULTIO_DO")) deed = getenv("FAULTIO_DO");
    srand(getenv("FAULTIO_SEED") ? atoi(getenv("FAULTIO_SEED")) : 1);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int ends(const char *path, const char *with) {
    size_t n = strlen(path), m = strlen(with);
    return n >= m && !strcmp(path + n - m, with);
}

static int is_ours(const char *path) {
    return strstr(path, "/large/") || strstr(path, "/blobs/") || ends(path, "/large") || ends(path, "/blobs");
}

static void name_changed(char what, const char *from, const char *to) {
    if (changes == NAMES || !is_ours(to) || ends(to, "/lock")) return;
    names[changes].what = what;
    strcpy(names[changes].from, from);
    strcpy(names[changes++].to, to);
}

static int is_in(const char *path, const char *directory) {
    size_t n = strlen(directory);
    return !strncmp(path, directory, n) && path[n] == '/' && !strchr(path + n + 1, '/');
}

static void forget_names(const char *directory, const char *path) {
    int left = 0;
    for (int i = 0; i < changes; i++)
        if (!(directory && is_in(names[i].to, directory)) && !(path && !strcmp(names[i].to, path)))
            names[left++] = names[i];
    changes = left;
}

static int take_away(const char *path, const struct stat *about, int kind, struct FTW *place) {
    (void)about, (void)kind, (void)place;
    return remove(path), 0;
}

static void take_back_names(void) {
    for (int i = changes - 1; i >= 0; i--) {
        if (rand() % 2) continue;
        if (names[i].what == 'r') real_rename(names[i].to, names[i].from);
        else if (names[i].what == 'd') nftw(names[i].to, take_away, 16, FTW_DEPTH | FTW_PHYS);
        else unlink(names[i].to);
    }
}

int mkdir(const char *path, mode_t mode) {
    int done = real_mkdir(path, mode);
    if (done == 0) name_changed('d', "", path);
    return done;
}

int rename(const char *from, const char *to) {
    int was_there = access(to, F_OK) == 0;
    int done = real_rename(from, to);
    if (done == 0) forget_names(NULL, from);
    if (done == 0 && !was_there) name_changed('r', from, to);
    return done;
}

static int opened(int fd, const char *path, int flags) {
    int of_data = ends(path, "data.mdb") || is_ours(path);
    if (fd >= 0 && fd < FDS) tracked[fd] = of_data && !ends(path, "/lock") ? ((flags & O_DSYNC) ? 2 : 1) : 0;
    return fd;
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int is_new = (flags & O_CREAT) && access(path, F_OK) != 0;
    int fd = real_open(path, flags, va_arg(more, int));
    va_end(more);
    if (fd >= 0 && is_new) name_changed('f', "", path);
    return opened(fd, path, flags);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int is_new = (flags & O_CREAT) && access(path, F_OK) != 0;
    int fd = real_open(path, flags | O_LARGEFILE, va_arg(more, int));
    va_end(more);
    if (fd >= 0 && is_new) name_changed('f', "", path);
    return opened(fd, path, flags);
}

static int is_tracked(int fd) { return fd >= 0 && fd < FDS && tracked[fd]; }

static void power_cut(void) {
    for (int i = undos - 1; i >= 0; i--)
        if (rand() % 2) real_pwrite(undo[i].copy, undo[i].old, PAGE, undo[i].offset);
    take_back_names();
    die();
}

static ino_t file_of(int fd) {
    struct stat about;
    return fstat(fd, &about) == 0 ? about.st_ino : 0;
}

static void remember(int fd, off_t offset, size_t size) {
    if (tracked[fd] == 2) return;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int copy = real_open(link, O_RDWR | O_CLOEXEC); /* fd itself may be for writing alone */
    for (off_t page = offset / PAGE * PAGE; page < offset + (off_t)size && undos < UNDO; page += PAGE) {
        char *old = calloc(1, PAGE);
        if (pread(copy, old, PAGE, page) < 0) continue;
        undo[undos].file = file_of(fd);
        undo[undos].copy = copy;
        undo[undos].offset = page;
        undo[undos++].old = old;
    }
}

/* Whether the caller is to go on; else *result and errno are set. */
static int pass(int fd, const void *data, size_t size, off_t offset, ssize_t *result) {
    if (!is_tracked(fd) || ++count != at) return 1;
    if (!strcmp(deed, "kill")) die();
    if (!strcmp(deed, "powercut")) power_cut();
    if (!strcmp(deed, "torn")) {
        if (data) real_pwrite(fd, data, size / 2, offset);
        die();
    }
    *result = -1;
    if (!strcmp(deed, "eio")) return errno = EIO, 0;
    if (!strcmp(deed, "enospc")) return errno = ENOSPC, 0;
    if (!strcmp(deed, "eintr")) return errno = EINTR, 0;
    if (!strcmp(deed, "short") && data) return *result = real_pwrite(fd, data, size / 2, offset), 0;
    return 1;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    ssize_t result;
    if (!pass(fd, data, size, offset, &result)) return result;
    if (is_tracked(fd)) remember(fd, offset, size);
    return real_pwrite(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    ssize_t result;
    size_t size = 0;
    off_t offset = is_tracked(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
    for (int i = 0; i < n; i++) size += parts[i].iov_len;
    if (!pass(fd, parts[0].iov_base, parts[0].iov_len, offset, &result)) return result;
    if (is_tracked(fd)) remember(fd, offset, size);
    return real_writev(fd, parts, n);
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t result;
    off_t offset = is_tracked(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
    if (!pass(fd, data, size, offset, &result)) {
        if (result > 0) lseek(fd, result, SEEK_CUR);
        return result;
    }
    if (is_tracked(fd)) remember(fd, offset, size);
    return real_write(fd, data, size);
}

static void is_safe(int fd) {
    int left = 0;
    ino_t file = file_of(fd);
    for (int i = 0; i < undos; i++) {
        if (undo[i].file == file) free(undo[i].old);
        else undo[left++] = undo[i];
    }
    undos = left;
}

int fdatasync(int fd) {
    ssize_t result;
    if (!pass(fd, NULL, 0, 0, &result)) return (int)result;
    int done = real_fdatasync(fd);
    if (is_tracked(fd) && done == 0) is_safe(fd);
    return done;
}

int fsync(int fd) {
    ssize_t result;
    if (!pass(fd, NULL, 0, 0, &result)) return (int)result;
    int done = real_fsync(fd);
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (done == 0 && size > 0) path[size] = 0, forget_names(path, NULL);
    if (is_tracked(fd) && done == 0) is_safe(fd);
    return done;
}
