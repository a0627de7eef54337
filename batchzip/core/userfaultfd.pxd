from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include "native.h"
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <linux/userfaultfd.h>
    #include <stdio.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/ioctl.h>

    /* What headers older than the kernel lack: Linux 5.11, 5.13, 5.19, 6.4, 6.6 and 6.7. */
    #define BZ_USER_MODE_ONLY 1
    #define BZ_MISSING_SHMEM (1 << 5)
    #define BZ_MINOR_SHMEM (1 << 10)
    #define BZ_THREAD_ID (1 << 8)
    #define BZ_WP_SHMEM (1 << 12)
    #define BZ_POISON (1 << 14)
    #define BZ_WP_ASYNC (1 << 15)
    #define BZ_CONTINUE_WP 2
    #define BZ_REGISTER_MINOR 4
    #define BZ_FAULT_WRITE 1
    #define BZ_NEW _IO(0xAA, 0x00) /* USERFAULTFD_IOC_NEW of /dev/userfaultfd */
    struct bz_filling {
        struct uffdio_range range;
        uint64_t mode;
        int64_t done;
    };
    #define BZ_CONTINUE _IOWR(0xAA, 0x07, struct bz_filling)
    #define BZ_POISON_RANGE _IOWR(0xAA, 0x08, struct bz_filling)

    /* Agree on features; those that are wanted and missing are left out. */
    static int bz_uffd_open_api(int fd, uint64_t *features) {
        struct uffdio_api api = {.api = UFFD_API, .features = *features};
        if (ioctl(fd, UFFDIO_API, &api)) return -errno;
        *features = api.features;
        return 0;
    }
    static int bz_uffd_register(int fd, uint8_t *base, uint64_t bytes, int protects) {
        struct uffdio_register what = {
            .range = {(uintptr_t)base, bytes},
            .mode = UFFDIO_REGISTER_MODE_MISSING | BZ_REGISTER_MINOR |
                    (protects ? UFFDIO_REGISTER_MODE_WP : 0),
        };
        return ioctl(fd, UFFDIO_REGISTER, &what) ? -errno : 0;
    }
    /* Each of these maps whole pages and wakes whoever waits for them. A change of the mappings of
     * the process stops it in the middle (EAGAIN); it goes on from there. */
    static int bz_uffd_copy(int fd, uint8_t *to, const uint8_t *from, uint64_t bytes, int protect) {
        while (bytes) {
            struct uffdio_copy copy = {(uintptr_t)to, (uintptr_t)from, bytes,
                                       protect ? UFFDIO_COPY_MODE_WP : 0, 0};
            if (!ioctl(fd, UFFDIO_COPY, &copy)) return 0;
            if (errno != EAGAIN) return -errno;
            if (copy.copy > 0) {
                to += copy.copy;
                from += copy.copy;
                bytes -= copy.copy;
            }
        }
        return 0;
    }
    static int bz_uffd_zero(int fd, uint8_t *to, uint64_t bytes) {
        while (bytes) {
            struct uffdio_zeropage zero = {{(uintptr_t)to, bytes}, 0, 0};
            if (!ioctl(fd, UFFDIO_ZEROPAGE, &zero)) return 0;
            if (errno != EAGAIN) return -errno;
            if (zero.zeropage > 0) {
                to += zero.zeropage;
                bytes -= zero.zeropage;
            }
        }
        return 0;
    }
    static int bz_uffd_wake(int fd, uint8_t *base, uint64_t bytes) {
        struct uffdio_range range = {(uintptr_t)base, bytes};
        return ioctl(fd, UFFDIO_WAKE, &range) ? -errno : 0;
    }
    /* Map pages that are in the file; those that are mapped already stay so. */
    static int bz_uffd_continue(int fd, uint8_t *base, uint64_t bytes, int protect, uint64_t page) {
        int mapped = 0;
        while (bytes) {
            struct bz_filling what = {{(uintptr_t)base, bytes}, protect ? BZ_CONTINUE_WP : 0, 0};
            if (!ioctl(fd, BZ_CONTINUE, &what)) break;
            if (errno == EEXIST) {
                mapped = 1;
                what.done = page;
            } else if (errno != EAGAIN) {
                return -errno;
            }
            if (what.done > 0) {
                base += what.done;
                bytes -= what.done;
            }
        }
        return mapped;
    }
    static int bz_uffd_poison(int fd, uint8_t *base, uint64_t bytes) {
        /* A marker of an earlier protection is in the way; without protection there is none. */
        struct uffdio_writeprotect lift = {{(uintptr_t)base, bytes}, UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
        struct bz_filling what = {{(uintptr_t)base, bytes}, 0, 0};
        ioctl(fd, UFFDIO_WRITEPROTECT, &lift);
        return ioctl(fd, BZ_POISON_RANGE, &what) ? -errno : 0;
    }
    /* Faults wake one thread each: whoever polls the userfaultfd itself is woken by all of them. */
    static int bz_uffd_watch(int fd, int stop) {
        struct epoll_event fault = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
        struct epoll_event end = {.events = EPOLLIN, .data.fd = stop};
        int watch = epoll_create1(EPOLL_CLOEXEC);
        if (watch < 0) return -errno;
        if (epoll_ctl(watch, EPOLL_CTL_ADD, fd, &fault) ||
            epoll_ctl(watch, EPOLL_CTL_ADD, stop, &end)) {
            int failed = errno;
            close(watch);
            return -failed;
        }
        return watch;
    }
    /* Wait for a fault. Return whether there is one; 0: `stop` rang, or the descriptors are gone. */
    static int bz_uffd_next(int fd, int watch, uint64_t *address, int *is_write, uint32_t *thread) {
        struct uffd_msg message;
        struct epoll_event event;
        for (;;) {
            /* An edge is told once, so what there is is read before the thread sleeps. */
            ssize_t got = read(fd, &message, sizeof message);
            if (got == sizeof message) {
                if (message.event != UFFD_EVENT_PAGEFAULT) continue;
                *address = message.arg.pagefault.address;
                *is_write = (message.arg.pagefault.flags & BZ_FAULT_WRITE) != 0;
                *thread = message.arg.pagefault.feat.ptid; /* 0 without THREAD_ID */
                return 1;
            }
            if (got >= 0 || (errno != EAGAIN && errno != EINTR)) return 0;
            int events = epoll_wait(watch, &event, 1, -1);
            if (events < 0 ? errno != EINTR : events && event.data.fd != fd) return 0;
        }
    }
    """
    enum: O_CLOEXEC, O_NONBLOCK, O_RDWR, O_RDONLY, SYS_userfaultfd, UFFD_API
    enum: BZ_USER_MODE_ONLY, BZ_NEW
    uint64_t MISSING_SHMEM "BZ_MISSING_SHMEM"
    uint64_t MINOR_SHMEM "BZ_MINOR_SHMEM"
    uint64_t THREAD_ID "BZ_THREAD_ID"
    uint64_t WP_SHMEM "BZ_WP_SHMEM"
    uint64_t POISON "BZ_POISON"
    uint64_t WP_ASYNC "BZ_WP_ASYNC"
    int bz_uffd_open_api(int, uint64_t *) nogil
    int bz_uffd_register(int, uint8_t *, uint64_t, bint) nogil
    int bz_uffd_copy(int, uint8_t *, const uint8_t *, uint64_t, bint) nogil
    int bz_uffd_zero(int, uint8_t *, uint64_t) nogil
    int bz_uffd_wake(int, uint8_t *, uint64_t) nogil
    int bz_uffd_continue(int, uint8_t *, uint64_t, bint, uint64_t) nogil
    int bz_uffd_poison(int, uint8_t *, uint64_t) nogil
    int bz_uffd_watch(int, int) nogil
    bint bz_uffd_next(int, int, uint64_t *, bint *, uint32_t *) nogil

cdef int open_userfaultfd(uint64_t *features, int *way) except -1
