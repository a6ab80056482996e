// Preloaded into a process (LD_PRELOAD), counts its calls to the operating system that concern
// files below one directory, and makes one of them fail, or kills the process there. It does nothing
// until faults_arm() is called, through ctypes; what a process forks is armed as it is.
//
// Python, torch, safetensors (Rust) and SQLite all make these calls through the C library's symbols.
// What the C library does inside itself is not seen: a file opened by fopen is, what is written by
// fwrite is not; none of them does that below a run's directory.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, COUNT, ONCE, LASTING, KILL, WHILE };
enum kind { READ, CREATE, WRITE, FSYNC, RENAME, FLOCK, LOCK, MKDIR, UNLINK, TRUNCATE, LINK };
static const char* const NAMES[] = {"read",  "create", "write",  "fsync",    "rename", "flock",
                                    "lock", "mkdir",  "unlink", "truncate", "link"};
// Two that such a call does meet. A write that meets the second has written half.
static const int ERRORS[][2] = {
    {EACCES, EIO},    {ENOSPC, EACCES}, {ENOSPC, EIO},    {EIO, ENOSPC},    {EACCES, ENOSPC},
    {ENOSYS, ENOLCK}, {ENOLCK, EIO},    {ENOSPC, EACCES}, {EACCES, EIO},    {EIO, ENOSPC},
    {EACCES, EIO}};

static volatile int mode = OFF, lasting = -1, choice;
static volatile long count, target;
static int log_fd = -1, is_quick;
static char root[PATH_MAX], flag[PATH_MAX];
static size_t root_length;

// `which`: the call, from 1. `error_choice`: 0 or 1, see ERRORS. `quick`: nothing is really flushed.
// `while_there`: with WHILE, the file during whose existence the disk is full.
void faults_arm(const char* directory, const char* log, int new_mode, long which, int error_choice,
                int quick, const char* while_there) {
  mode = OFF;
  snprintf(root, sizeof root, "%s/", directory);
  root_length = strlen(root);
  snprintf(flag, sizeof flag, "%s", while_there);
  const int opened = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
  log_fd = (int)syscall(SYS_fcntl, opened, F_DUPFD_CLOEXEC, 800);
  syscall(SYS_close, opened);
  count = 0;
  target = which;
  choice = error_choice;
  is_quick = quick;
  lasting = -1;
  mode = new_mode;
}

long faults_counted(void) { return count; }

static int is_below(const char* path) {
  const size_t length = strlen(path);
  return strncmp(path, root, root_length) == 0 ||
         (length + 1 == root_length && strncmp(path, root, length) == 0);
}

static const char* of_descriptor(int fd, char* buffer) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const long length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
  buffer[length < 0 ? 0 : length] = '\0';
  return buffer;
}

static const char* absolute(int directory, const char* path, char* buffer) {
  if (path == NULL || path[0] == '/') return path == NULL ? "" : path;
  if (directory == AT_FDCWD) {
    if (syscall(SYS_getcwd, buffer, PATH_MAX) < 0) return path;
  } else {
    of_descriptor(directory, buffer);
  }
  const size_t length = strlen(buffer);
  snprintf(buffer + length, PATH_MAX - length, "/%s", path);
  return buffer;
}

static int takes_space(enum kind kind) { return kind == CREATE || kind == WRITE || kind == MKDIR; }

static int picks(enum kind kind, long number) {
  switch (mode) {
    case ONCE:
    case KILL:
      return number == target;
    case LASTING:
      if (number == target) lasting = kind;
      if (lasting < 0) return 0;
      // A disk that is full is full for all.
      return kind == (enum kind)lasting ||
             (ERRORS[lasting][choice] == ENOSPC && takes_space(kind) && takes_space(lasting));
    case WHILE:
      return takes_space(kind) &&
             syscall(SYS_faccessat, AT_FDCWD, flag, F_OK) == 0;
    default:
      return 0;
  }
}

// The errno with which this call has to fail, or 0.
static int fault(enum kind kind, const char* path, const char* other) {
  if (mode == OFF || !is_below(path)) return 0;
  const long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  const int picked = picks(kind, number);
  const int error = !picked || mode == KILL ? 0 : mode == WHILE ? ENOSPC : ERRORS[kind][choice];
  char line[2 * PATH_MAX + 64];
  const int length = snprintf(line, sizeof line, "%ld\t%s\t%d\t%s\t%s\n", number, NAMES[kind],
                              picked ? (error ? error : -1) : 0, path, other);
  if (mode != WHILE || picked) syscall(SYS_write, log_fd, line, length);
  if (picked && mode == KILL) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
  return error;
}

static int fault_at(enum kind kind, int directory, const char* path) {
  char buffer[PATH_MAX];
  return mode == OFF ? 0 : fault(kind, absolute(directory, path, buffer), "");
}

static int fault_of(enum kind kind, int fd) {
  char buffer[PATH_MAX];
  return mode == OFF ? 0 : fault(kind, of_descriptor(fd, buffer), "");
}

static int fault_between(enum kind kind, int from, const char* old, int to, const char* new) {
  char first[PATH_MAX], second[PATH_MAX];
  if (mode == OFF) return 0;
  return fault(kind, absolute(from, old, first), absolute(to, new, second));
}

#define NEXT(name)                                              \
  static __typeof__(&name) next = NULL;                         \
  if (next == NULL) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(error, value)  \
  do {                      \
    const int no = (error); \
    if (no) {               \
      errno = no;           \
      return value;         \
    }                       \
  } while (0)

static enum kind opening(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT) ? CREATE : READ;
}

#define PERMISSIONS(flags)                                  \
  mode_t permissions = 0;                                   \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {                  \
    va_list more;                                           \
    va_start(more, flags);                                  \
    permissions = va_arg(more, mode_t);                     \
    va_end(more);                                           \
  }

#define OPEN(name)                                            \
  int name(const char* path, int flags, ...) {                \
    NEXT(name);                                               \
    PERMISSIONS(flags)                                        \
    FAIL(fault_at(opening(flags), AT_FDCWD, path), -1);       \
    return next(path, flags, permissions);                    \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                            \
  int name(int directory, const char* path, int flags, ...) {   \
    NEXT(name);                                                 \
    PERMISSIONS(flags)                                          \
    FAIL(fault_at(opening(flags), directory, path), -1);        \
    return next(directory, path, flags, permissions);           \
  }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name)                                   \
  int name(const char* path, mode_t permissions) {    \
    NEXT(name);                                       \
    FAIL(fault_at(CREATE, AT_FDCWD, path), -1);       \
    return next(path, permissions);                   \
  }
CREAT(creat)
CREAT(creat64)

#define FOPEN(name)                                                               \
  FILE* name(const char* path, const char* how) {                                 \
    NEXT(name);                                                                   \
    FAIL(fault_at(strpbrk(how, "wa+") ? CREATE : READ, AT_FDCWD, path), NULL);    \
    return next(path, how);                                                       \
  }
FOPEN(fopen)
FOPEN(fopen64)

// Half of the bytes are written before an error that is not about space.
static size_t written_before(int error, size_t length) {
  return error && error != ENOSPC ? length / 2 : 0;
}

ssize_t write(int fd, const void* bytes, size_t length) {
  NEXT(write);
  const int error = fault_of(WRITE, fd);
  const size_t half = written_before(error, length);
  if (half && next(fd, bytes, half) < 0) return -1;
  FAIL(error, -1);
  return next(fd, bytes, length);
}

#define PWRITE(name, offset_type)                                                     \
  ssize_t name(int fd, const void* bytes, size_t length, offset_type offset) {        \
    NEXT(name);                                                                       \
    const int error = fault_of(WRITE, fd);                                            \
    const size_t half = written_before(error, length);                                \
    if (half && next(fd, bytes, half, offset) < 0) return -1;                         \
    FAIL(error, -1);                                                                  \
    return next(fd, bytes, length, offset);                                           \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec* parts, int number) {
  NEXT(writev);
  FAIL(fault_of(WRITE, fd), -1);
  return next(fd, parts, number);
}

#define SENDFILE(name, offset_type)                                                   \
  ssize_t name(int to, int from, offset_type* offset, size_t length) {                \
    NEXT(name);                                                                       \
    FAIL(fault_of(WRITE, to), -1);                                                    \
    return next(to, from, offset, length);                                            \
  }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t* start, int to, off64_t* end, size_t length,
                        unsigned flags) {
  NEXT(copy_file_range);
  FAIL(fault_of(WRITE, to), -1);
  return next(from, start, to, end, length, flags);
}

#define FLUSH(name)                                     \
  int name(int fd) {                                    \
    NEXT(name);                                         \
    FAIL(fault_of(FSYNC, fd), -1);                      \
    return mode != OFF && is_quick ? 0 : next(fd);      \
  }
FLUSH(fsync)
FLUSH(fdatasync)

#define TRUNCATE_TO(name, offset_type)          \
  int name(int fd, offset_type length) {        \
    NEXT(name);                                 \
    FAIL(fault_of(TRUNCATE, fd), -1);           \
    return next(fd, length);                    \
  }
TRUNCATE_TO(ftruncate, off_t)
TRUNCATE_TO(ftruncate64, off64_t)

int rename(const char* old, const char* new) {
  NEXT(rename);
  FAIL(fault_between(RENAME, AT_FDCWD, old, AT_FDCWD, new), -1);
  return next(old, new);
}

int renameat(int from, const char* old, int to, const char* new) {
  NEXT(renameat);
  FAIL(fault_between(RENAME, from, old, to, new), -1);
  return next(from, old, to, new);
}

int renameat2(int from, const char* old, int to, const char* new, unsigned flags) {
  NEXT(renameat2);
  FAIL(fault_between(RENAME, from, old, to, new), -1);
  return next(from, old, to, new, flags);
}

int flock(int fd, int operation) {
  NEXT(flock);
  if (!(operation & 8)) FAIL(fault_of(FLOCK, fd), -1);  // 8: LOCK_UN, which no file system refuses
  return next(fd, operation);
}

#define FCNTL(name)                                                                         \
  int name(int fd, int command, ...) {                                                      \
    NEXT(name);                                                                             \
    va_list more;                                                                           \
    va_start(more, command);                                                                \
    void* argument = va_arg(more, void*);                                                   \
    va_end(more);                                                                           \
    const int sets = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || \
                     command == F_OFD_SETLKW;                                               \
    if (sets && ((struct flock*)argument)->l_type != F_UNLCK) FAIL(fault_of(LOCK, fd), -1); \
    return next(fd, command, argument);                                                     \
  }
FCNTL(fcntl)
FCNTL(fcntl64)

#define ONE_PATH(name, kind)                        \
  int name(const char* path) {                      \
    NEXT(name);                                     \
    FAIL(fault_at(kind, AT_FDCWD, path), -1);       \
    return next(path);                              \
  }
ONE_PATH(unlink, UNLINK)
ONE_PATH(rmdir, UNLINK)

int unlinkat(int directory, const char* path, int flags) {
  NEXT(unlinkat);
  FAIL(fault_at(UNLINK, directory, path), -1);
  return next(directory, path, flags);
}

int mkdir(const char* path, mode_t permissions) {
  NEXT(mkdir);
  FAIL(fault_at(MKDIR, AT_FDCWD, path), -1);
  return next(path, permissions);
}

int mkdirat(int directory, const char* path, mode_t permissions) {
  NEXT(mkdirat);
  FAIL(fault_at(MKDIR, directory, path), -1);
  return next(directory, path, permissions);
}

int link(const char* old, const char* new) {
  NEXT(link);
  FAIL(fault_between(LINK, AT_FDCWD, old, AT_FDCWD, new), -1);
  return next(old, new);
}

int linkat(int from, const char* old, int to, const char* new, int flags) {
  NEXT(linkat);
  FAIL(fault_between(LINK, from, old, to, new), -1);
  return next(from, old, to, new, flags);
}

int symlink(const char* target_path, const char* path) {
  NEXT(symlink);
  FAIL(fault_at(LINK, AT_FDCWD, path), -1);
  return next(target_path, path);
}
