// Preloaded into the processes of one pod: what a test does to the pod's disk and clock, and who speaks.
//
// The clock and the disk: three numbers in the file $FAULTS/$POD_NAME, which change while the processes run. The network: all
// pods of a demo are on one loopback device, where a connection would leave from 127.0.0.1; it leaves from $POD_IP
// instead, so that a packet filter can tell the pods apart.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct faults {
    volatile int64_t clock_step_us;
    volatile int64_t disk_delay_us;
    volatile int64_t disk_hangs;
};

static const struct faults none;
static const struct faults *faults = &none;
static in_addr_t own = INADDR_ANY;

// A function of the C library itself.
#define REAL(name) ((__typeof__(&name))real(&name##_found, #name))
static void *real(void **found, const char *name) {
    if (!*found)
        *found = dlsym(RTLD_NEXT, name);
    return *found;
}

// podgres hands few variables on to PostgreSQL and its programs; those of the locale are among them.
#define PATH "LC_FAULTS"
#define ADDRESS "LC_FAULTS_ADDRESS"

static void hand_on(void) {
    const char *folder = getenv("FAULTS"), *pod = getenv("POD_NAME"), *address = getenv("POD_IP");
    char path[4096];
    if (folder && pod && address && snprintf(path, sizeof path, "%s/%s", folder, pod) < (int)sizeof path) {
        setenv(PATH, path, 1);
        setenv(ADDRESS, address, 1);
    }
}

__attribute__((constructor)) static void begin(void) {
    hand_on();
    const char *path = getenv(PATH), *address = getenv(ADDRESS);
    struct in_addr parsed;
    if (address && inet_aton(address, &parsed))
        own = parsed.s_addr;
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct faults), PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        faults = mapped;
    close(file);
}

// Disk: what waits for it cannot be interrupted, as little as if it waited in the kernel.

static void sleep_us(int64_t us) {
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&left, &left) && errno == EINTR)
        ;
}

static void disk(void) {
    int kept = errno;
    if (faults->disk_delay_us)
        sleep_us(faults->disk_delay_us);
    while (faults->disk_hangs)
        sleep_us(20000);
    errno = kept;
}

#define ON_DISK(type, name, parameters, arguments)                                                                    \
    static void *name##_found;                                                                                        \
    type name parameters {                                                                                            \
        disk();                                                                                                       \
        return REAL(name) arguments;                                                                                  \
    }

ON_DISK(int, fsync, (int fd), (fd))
ON_DISK(int, fdatasync, (int fd), (fd))
ON_DISK(int, sync_file_range, (int fd, off64_t at, off64_t size, unsigned flags), (fd, at, size, flags))
ON_DISK(ssize_t, pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at))
ON_DISK(ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at))
ON_DISK(ssize_t, pwritev, (int fd, const struct iovec *from, int count, off_t at), (fd, from, count, at))
ON_DISK(ssize_t, pwritev64, (int fd, const struct iovec *from, int count, off64_t at), (fd, from, count, at))
ON_DISK(int, rename, (const char *from, const char *to), (from, to))

static void *write_found;
ssize_t write(int fd, const void *from, size_t size) {
    struct stat found;
    // Standard output and error are the container's log, on another disk.
    if ((faults->disk_delay_us || faults->disk_hangs) && fd > 2 && !fstat(fd, &found) && S_ISREG(found.st_mode))
        disk();
    return REAL(write)(fd, from, size);
}

// Clock: the time of day only.

static void *clock_gettime_found, *gettimeofday_found;

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    int64_t step = faults->clock_step_us;
    if (step && !result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = (now->tv_sec * INT64_C(1000000) + step) * 1000 + now->tv_nsec;
        now->tv_sec = ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(gettimeofday)(now, zone);
    int64_t step = faults->clock_step_us;
    if (step && !result) {
        int64_t us = now->tv_sec * INT64_C(1000000) + now->tv_usec + step;
        now->tv_sec = us / 1000000;
        now->tv_usec = us % 1000000;
    }
    return result;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into)
        *into = now.tv_sec;
    return now.tv_sec;
}

// Network: the pod's own address as the source.

static void *bind_found, *connect_found;

int bind(int fd, const struct sockaddr *address, socklen_t size) {
    const struct sockaddr_in *asked = (const struct sockaddr_in *)address;
    int type = 0;
    socklen_t type_size = sizeof type;
    if (own && size >= sizeof *asked && asked->sin_family == AF_INET && asked->sin_addr.s_addr == INADDR_ANY &&
        !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) && type == SOCK_DGRAM) {
        struct sockaddr_in from = *asked;
        from.sin_addr.s_addr = own;
        return REAL(bind)(fd, (struct sockaddr *)&from, sizeof from);
    }
    return REAL(bind)(fd, address, size);
}

int connect(int fd, const struct sockaddr *address, socklen_t size) {
    struct sockaddr_in from = {0};
    socklen_t from_size = sizeof from;
    if (own && address->sa_family == AF_INET && !getsockname(fd, (struct sockaddr *)&from, &from_size) &&
        from.sin_family == AF_INET && from.sin_addr.s_addr == INADDR_ANY && !from.sin_port) {
        int on = 1;
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        from.sin_addr.s_addr = own;
        if (REAL(bind)(fd, (struct sockaddr *)&from, sizeof from))
            return -1;
    }
    return REAL(connect)(fd, address, size);
}
