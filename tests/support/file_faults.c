// Preloaded into a program: counts the calls that change the file system below a directory, and at call N kills the
// process, before or after the call, or makes the call fail. file_faults.py compiles it and says what it is to do.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum effect { COUNT, KILL_BEFORE, KILL_AFTER, FAIL, FAIL_FROM };
enum { NAMED_CALLS = 4096, NAME_BYTES = 16 };

// In a file that the processes of a run share.
struct orders {
  int64_t calls;  // so far
  int64_t at;     // 1 is the first call
  int64_t effect;
  int64_t error;  // errno of the calls that fail
  char below[4096];
  char names[NAMED_CALLS][NAME_BYTES];  // of the first calls
};

static struct orders* orders;

__attribute__((constructor)) static void take_orders(void) {
  const char* path = getenv("FILE_FAULTS_ORDERS");
  const int descriptor = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (descriptor < 0) return;
  void* mapped = mmap(NULL, sizeof(struct orders), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  close(descriptor);
  if (mapped != MAP_FAILED) orders = mapped;
}

static bool is_below(const char* path) {
  const size_t length = strlen(orders->below);
  return strncmp(path, orders->below, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static bool descriptor_is_below(int descriptor) {
  char link[64];
  char target[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, target, sizeof target - 1);
  if (length < 0) return false;
  target[length] = 0;
  return is_below(target);
}

static bool path_is_below(int directory, const char* path) {
  if (path[0] == '/') return is_below(path);
  if (directory != AT_FDCWD) return descriptor_is_below(directory);
  char current[PATH_MAX];
  return getcwd(current, sizeof current) != NULL && is_below(current);
}

struct call {
  bool fails;
  bool is_last;
};

static void die(void) {
  kill(getpid(), SIGKILL);
  _exit(128 + SIGKILL);  // the first process of a container is not killed from inside
}

static struct call begin(const char* name, bool counts) {
  const struct call passes = {false, false};
  if (!counts) return passes;
  const int64_t number = __atomic_add_fetch(&orders->calls, 1, __ATOMIC_SEQ_CST);
  if (number <= NAMED_CALLS) strncpy(orders->names[number - 1], name, NAME_BYTES - 1);
  const int64_t effect = orders->effect;
  if (number < orders->at || (number > orders->at && effect != FAIL_FROM)) return passes;
  if (effect == KILL_BEFORE) die();
  if (effect == FAIL || effect == FAIL_FROM) {
    errno = (int)orders->error;
    return (struct call){true, false};
  }
  return (struct call){false, effect == KILL_AFTER};
}

static void end(struct call call) {
  if (call.is_last) die();
}

#define AT(directory, path) (orders && path_is_below(directory, path))
#define ON(descriptor) (orders && descriptor_is_below(descriptor))

#define REPLACE(type, name, parameters, arguments, counts)         \
  type name parameters {                                           \
    static type(*real) parameters;                                 \
    if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
    const struct call call = begin(#name, counts);                 \
    if (call.fails) return (type) - 1;                             \
    const type result = real arguments;                            \
    end(call);                                                     \
    return result;                                                 \
  }

REPLACE(ssize_t, write, (int fd, const void* data, size_t size), (fd, data, size), ON(fd))
REPLACE(ssize_t, pwrite, (int fd, const void* data, size_t size, off_t at), (fd, data, size, at), ON(fd))
REPLACE(ssize_t, pwrite64, (int fd, const void* data, size_t size, off_t at), (fd, data, size, at), ON(fd))
REPLACE(ssize_t, writev, (int fd, const struct iovec* parts, int count), (fd, parts, count), ON(fd))
REPLACE(ssize_t, pwritev, (int fd, const struct iovec* parts, int count, off_t at), (fd, parts, count, at), ON(fd))
REPLACE(ssize_t, sendfile, (int to, int from, off_t* at, size_t size), (to, from, at, size), ON(to))
REPLACE(ssize_t, sendfile64, (int to, int from, off_t* at, size_t size), (to, from, at, size), ON(to))
REPLACE(ssize_t, copy_file_range, (int from, off_t* at, int to, off_t* to_at, size_t size, unsigned flags),
        (from, at, to, to_at, size, flags), ON(to))
REPLACE(int, fsync, (int fd), (fd), ON(fd))
REPLACE(int, fdatasync, (int fd), (fd), ON(fd))
REPLACE(int, ftruncate, (int fd, off_t size), (fd, size), ON(fd))
REPLACE(int, ftruncate64, (int fd, off_t size), (fd, size), ON(fd))
REPLACE(int, fchmod, (int fd, mode_t mode), (fd, mode), ON(fd))
REPLACE(int, chmod, (const char* path, mode_t mode), (path, mode), AT(AT_FDCWD, path))
REPLACE(int, mkdir, (const char* path, mode_t mode), (path, mode), AT(AT_FDCWD, path))
REPLACE(int, mkdirat, (int fd, const char* path, mode_t mode), (fd, path, mode), AT(fd, path))
REPLACE(int, rmdir, (const char* path), (path), AT(AT_FDCWD, path))
REPLACE(int, unlink, (const char* path), (path), AT(AT_FDCWD, path))
REPLACE(int, unlinkat, (int fd, const char* path, int flags), (fd, path, flags), AT(fd, path))
REPLACE(int, rename, (const char* from, const char* to), (from, to), AT(AT_FDCWD, to))
REPLACE(int, renameat, (int fd, const char* from, int to_fd, const char* to), (fd, from, to_fd, to), AT(to_fd, to))
REPLACE(int, renameat2, (int fd, const char* from, int to_fd, const char* to, unsigned flags),
        (fd, from, to_fd, to, flags), AT(to_fd, to))
REPLACE(int, link, (const char* from, const char* to), (from, to), AT(AT_FDCWD, to))
REPLACE(int, linkat, (int fd, const char* from, int to_fd, const char* to, int flags), (fd, from, to_fd, to, flags),
        AT(to_fd, to))

static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; }

#define OPENS(name, parameters, last, counts, ...)                                                \
  int name parameters {                                                                           \
    static int(*real) parameters;                                                                 \
    if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);                                 \
    va_list rest;                                                                                 \
    va_start(rest, last);                                                                         \
    const mode_t mode = mode_of(flags, rest);                                                     \
    va_end(rest);                                                                                 \
    const struct call call = begin(#name, (flags & (O_CREAT | O_TRUNC | __O_TMPFILE)) && counts); \
    if (call.fails) return -1;                                                                    \
    const int result = real(__VA_ARGS__, mode);                                                   \
    end(call);                                                                                    \
    return result;                                                                                \
  }

OPENS(open, (const char* path, int flags, ...), flags, AT(AT_FDCWD, path), path, flags)
OPENS(open64, (const char* path, int flags, ...), flags, AT(AT_FDCWD, path), path, flags)
OPENS(openat, (int fd, const char* path, int flags, ...), flags, AT(fd, path), fd, path, flags)
OPENS(openat64, (int fd, const char* path, int flags, ...), flags, AT(fd, path), fd, path, flags)
