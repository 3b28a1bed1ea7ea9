/* Count the calls that change files below a folder, and kill the process or fail at one of them.
 *
 *     cc -shared -fPIC -O1 -o faults.so faults.c -ldl       and LD_PRELOAD=faults.so
 *
 * Every library is met at the calls of the C library that it makes, whatever language it is written in. Writes of stdio's own
 * buffers are not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, ONCE, FROM_THEN_ON, GONE };
enum { ALLOCATES = 1, CHANGES = 2, READS = 4 }; /* kinds of calls: takes space, changes names, reads */

static char root[PATH_MAX];
static int mode, fault, kinds;
static long at, count, seen[5];

void faults_arm(const char *folder, int how, long number, int error, int of_kinds) {
  snprintf(root, sizeof root, "%s", folder);
  mode = how, at = number, fault = error, kinds = of_kinds, count = 0;
  memset(seen, 0, sizeof seen);
}

long faults_count(int kind) { return seen[kind]; }

static int below(const char *path) {
  size_t length = strlen(root);
  if (!length || strncmp(path, root, length)) return 0;
  return path[length] == 0 || path[length] == '/' || !strncmp(path + length, ".gone", 5);
}

static int path_is_below(int folder, const char *path) {
  char place[PATH_MAX], joined[2 * PATH_MAX], link[64];
  if (mode == OFF || !path) return 0;
  if (path[0] == '/') return below(path);
  snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
  ssize_t length = readlink(link, place, sizeof place - 1);
  if (length < 0) return 0;
  place[length] = 0;
  snprintf(joined, sizeof joined, "%s/%s", place, path);
  return below(joined);
}

static int file_is_below(int file) {
  char place[PATH_MAX], link[64];
  if (mode == OFF) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, place, sizeof place - 1);
  if (length < 0) return 0;
  place[length] = 0;
  return below(place);
}

/* Return the error that a call is to fail with, or 0. A write that is cut off has written its first half. */
static int step(int kind, int file, const void *data, size_t size) {
  char gone[PATH_MAX + 8];
  seen[kind]++;
  if (!(kinds & kind)) return 0;
  long number = ++count;
  if (number < at || mode == COUNT) return 0;
  if (number > at) return mode == FROM_THEN_ON && (kind == ALLOCATES || fault == EROFS) ? fault : 0;
  if (size > 1 && data && mode != GONE) syscall(SYS_write, file, data, size / 2);
  if (mode == KILL) syscall(SYS_kill, getpid(), SIGKILL);
  if (mode == GONE) {
    snprintf(gone, sizeof gone, "%s.gone", root);
    syscall(SYS_rename, root, gone);
    return 0;
  }
  return fault;
}

#define REAL(name) ((typeof(name) *)dlsym(RTLD_NEXT, #name))
#define CHECK(is_below, ...)                       \
  if (is_below) {                                  \
    int error = step(__VA_ARGS__);                 \
    if (error) {                                   \
      errno = error;                               \
      return -1;                                   \
    }                                              \
  }

static int opening(int flags) { return flags & (O_CREAT | O_TRUNC) ? ALLOCATES : flags & (O_WRONLY | O_RDWR) ? CHANGES : READS; }

#define OPEN(name)                                                  \
  int name(const char *path, int flags, ...) {                      \
    va_list rest;                                                   \
    va_start(rest, flags);                                          \
    mode_t mode_ = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                   \
    CHECK(path_is_below(AT_FDCWD, path), opening(flags), -1, 0, 0)  \
    return REAL(name)(path, flags, mode_);                          \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                \
  int name(int folder, const char *path, int flags, ...) {          \
    va_list rest;                                                   \
    va_start(rest, flags);                                          \
    mode_t mode_ = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                   \
    CHECK(path_is_below(folder, path), opening(flags), -1, 0, 0)    \
    return REAL(name)(folder, path, flags, mode_);                  \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                 \
  FILE *name(const char *path, const char *how) {                   \
    if (path_is_below(AT_FDCWD, path)) {                            \
      int error = step(how[0] == 'r' ? READS : ALLOCATES, -1, 0, 0); \
      if (error) {                                                  \
        errno = error;                                              \
        return 0;                                                   \
      }                                                             \
    }                                                               \
    return REAL(name)(path, how);                                   \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *data, size_t size) {
  CHECK(file_is_below(file), ALLOCATES, file, data, size)
  return REAL(write)(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int number) {
  CHECK(file_is_below(file), ALLOCATES, -1, 0, 0)
  return REAL(writev)(file, parts, number);
}

#define PWRITE(name)                                                  \
  ssize_t name(int file, const void *data, size_t size, off_t start) { \
    CHECK(file_is_below(file), ALLOCATES, -1, 0, 0)                   \
    return REAL(name)(file, data, size, start);                       \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define READ(name, ...)                                            \
  {                                                                \
    CHECK(file_is_below(file), READS, -1, 0, 0)                    \
    return REAL(name)(__VA_ARGS__);                                \
  }
ssize_t read(int file, void *data, size_t size) READ(read, file, data, size)
ssize_t pread(int file, void *data, size_t size, off_t start) READ(pread, file, data, size, start)
ssize_t pread64(int file, void *data, size_t size, off_t start) READ(pread64, file, data, size, start)

#define OF_FILE(type, name, parameters, ...)           \
  type name parameters {                               \
    CHECK(file_is_below(file), ALLOCATES, -1, 0, 0)    \
    return REAL(name)(__VA_ARGS__);                    \
  }
OF_FILE(int, fsync, (int file), file)
OF_FILE(int, fdatasync, (int file), file)
OF_FILE(int, ftruncate, (int file, off_t size), file, size)
OF_FILE(int, ftruncate64, (int file, off_t size), file, size)
OF_FILE(ssize_t, copy_file_range, (int from, off64_t *a, int file, off64_t *b, size_t size, unsigned flags), from, a, file, b, size, flags)
OF_FILE(ssize_t, sendfile, (int file, int from, off_t *start, size_t size), file, from, start, size)
OF_FILE(ssize_t, sendfile64, (int file, int from, off64_t *start, size_t size), file, from, start, size)

#define OF_PATH(name, kind, folder, path, parameters, ...)    \
  int name parameters {                                       \
    CHECK(path_is_below(folder, path), kind, -1, 0, 0)        \
    return REAL(name)(__VA_ARGS__);                           \
  }
OF_PATH(mkdir, ALLOCATES, AT_FDCWD, path, (const char *path, mode_t how), path, how)
OF_PATH(mkdirat, ALLOCATES, folder, path, (int folder, const char *path, mode_t how), folder, path, how)
OF_PATH(rename, ALLOCATES, AT_FDCWD, to, (const char *from, const char *to), from, to)
OF_PATH(renameat, ALLOCATES, folder, to, (int a, const char *from, int folder, const char *to), a, from, folder, to)
OF_PATH(renameat2, ALLOCATES, folder, to, (int a, const char *from, int folder, const char *to, unsigned flags), a, from, folder, to, flags)
OF_PATH(link, ALLOCATES, AT_FDCWD, to, (const char *from, const char *to), from, to)
OF_PATH(symlink, ALLOCATES, AT_FDCWD, to, (const char *from, const char *to), from, to)
OF_PATH(unlink, CHANGES, AT_FDCWD, path, (const char *path), path)
OF_PATH(unlinkat, CHANGES, folder, path, (int folder, const char *path, int flags), folder, path, flags)
OF_PATH(rmdir, CHANGES, AT_FDCWD, path, (const char *path), path)
OF_PATH(truncate, ALLOCATES, AT_FDCWD, path, (const char *path, off_t size), path, size)
