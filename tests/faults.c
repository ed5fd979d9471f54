/* Preloaded by tests: system calls on some files fail.
 *
 * FAULT_CALL: "read", "write", "fsync" or "truncate". FAULT_PATH: part of the paths. FAULT_ERRNO: the error.
 * FAULT_AFTER: the number of calls that succeed before.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long calls;

static int fails(const char *call, int file) {
    const char *expected = getenv("FAULT_CALL");
    char link[64], path[4096];
    if (!expected || strcmp(call, expected))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (!strstr(path, getenv("FAULT_PATH")) || __atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST) < atol(getenv("FAULT_AFTER")))
        return 0;
    errno = atoi(getenv("FAULT_ERRNO"));
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pread(int file, void *data, size_t size, off_t at) {
    return fails("read", file) ? -1 : REAL(pread)(file, data, size, at);
}
ssize_t pread64(int file, void *data, size_t size, off64_t at) {
    return fails("read", file) ? -1 : REAL(pread64)(file, data, size, at);
}
ssize_t write(int file, const void *data, size_t size) {
    return fails("write", file) ? -1 : REAL(write)(file, data, size);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    return fails("write", file) ? -1 : REAL(pwrite)(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    return fails("write", file) ? -1 : REAL(pwrite64)(file, data, size, at);
}
int fsync(int file) { return fails("fsync", file) ? -1 : REAL(fsync)(file); }
int ftruncate(int file, off_t size) { return fails("truncate", file) ? -1 : REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return fails("truncate", file) ? -1 : REAL(ftruncate64)(file, size); }
