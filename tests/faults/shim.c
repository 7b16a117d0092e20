/* Makes writes to one file fail on demand, in a process started with LD_PRELOAD=this library.
 *
 * TOONDB_FAULT_FILE    ends the path of the file that fails, for example "/data.mdb"
 * TOONDB_FAULT_CONTROL a file that holds one line while there is a fault, and is empty or absent otherwise:
 *
 *     CALLS ERRNO [SKIP [MIN_BYTES]]
 *
 * CALLS is a set of letters: s = fdatasync, fsync and msync; w = every write; m = writes below 4096 bytes at an
 * offset below 32 KiB (LMDB writes a meta page so); p = a short write: half of it succeeds. The first SKIP calls
 * that match go through, and so do writes of fewer than MIN_BYTES. The control file is read at every call.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long matched;
static char last_line[128];

static int is_target(int fd)
{
    const char *suffix = getenv("TOONDB_FAULT_FILE");
    char name[64], path[4096];
    ssize_t length;
    size_t wanted;
    if (!suffix)
        return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    wanted = strlen(suffix);
    return (size_t)length >= wanted && !strcmp(path + length - wanted, suffix);
}

/* The errno to fail with, 0 to go on. `half` is set when half of the write shall succeed. */
static int fault(int fd, char call, size_t size, off_t offset, int *half)
{
    const char *control = getenv("TOONDB_FAULT_CONTROL");
    char line[128] = "", calls[16] = "";
    int number = 0, control_fd, saved = errno, matches;
    long skip = 0, at_least = 0;
    ssize_t length;
    if (!control || !is_target(fd))
        return 0;
    control_fd = open(control, O_RDONLY | O_CLOEXEC);
    if (control_fd < 0) {
        errno = saved;
        return 0;
    }
    length = read(control_fd, line, sizeof line - 1);
    close(control_fd);
    errno = saved;
    if (length <= 0 || sscanf(line, "%15s %d %ld %ld", calls, &number, &skip, &at_least) < 2)
        return 0;
    if (strcmp(line, last_line)) { /* a new fault counts from its own beginning */
        strcpy(last_line, line);
        matched = 0;
    }
    if (call == 's')
        matches = strchr(calls, 's') != NULL;
    else
        matches = size >= (size_t)at_least
            && (strchr(calls, 'w') || strchr(calls, 'p') || (strchr(calls, 'm') && size < 4096 && offset < 32768));
    if (!matches || matched++ < skip)
        return 0;
    if (half)
        *half = strchr(calls, 'p') != NULL;
    return number;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fdatasync(int fd)
{
    int number = fault(fd, 's', 0, 0, NULL);
    if (number) {
        errno = number;
        return -1;
    }
    return REAL(fdatasync)(fd);
}

int fsync(int fd)
{
    int number = fault(fd, 's', 0, 0, NULL);
    if (number) {
        errno = number;
        return -1;
    }
    return REAL(fsync)(fd);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    int half = 0, number = fault(fd, 'w', size, offset, &half);
    if (number && !half) {
        errno = number;
        return -1;
    }
    return REAL(pwrite)(fd, data, number ? size / 2 : size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return pwrite(fd, data, size, (off_t)offset);
}

ssize_t write(int fd, const void *data, size_t size)
{
    int half = 0, number = fault(fd, 'w', size, lseek(fd, 0, SEEK_CUR), &half);
    if (number && !half) {
        errno = number;
        return -1;
    }
    return REAL(write)(fd, data, number ? size / 2 : size);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    size_t size = 0;
    int half = 0, number;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    number = fault(fd, 'w', size, offset, &half);
    if (number && !half) {
        errno = number;
        return -1;
    }
    return REAL(pwritev)(fd, parts, number ? count / 2 : count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    size_t size = 0;
    int half = 0, number;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    number = fault(fd, 'w', size, lseek(fd, 0, SEEK_CUR), &half);
    if (number && !half) {
        errno = number;
        return -1;
    }
    return REAL(writev)(fd, parts, number ? count / 2 : count);
}
