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

    /* Constants that older headers lack: Linux 5.11, 5.13, 5.19, 6.4, 6.6 and 6.7. */
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

    /* Negotiate features. Requested features that the kernel lacks are cleared. */
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
    static int bz_uffd_wake(int fd, uint8_t *base, uint64_t bytes) {
        struct uffdio_range range = {(uintptr_t)base, bytes};
        return ioctl(fd, UFFDIO_WAKE, &range) ? -errno : 0;
    }
    /* Fill some machine pages, and wake the threads that wait for them. Return the bytes filled or
     * a negative errno. UFFDIO_COPY copies from `from`. The other calls share one argument type. */
    static int64_t bz_uffd_fill_some(int fd, unsigned long call, uint8_t *to, const uint8_t *from,
                                     uint64_t bytes, uint64_t mode) {
        struct uffdio_copy copy = {(uintptr_t)to, (uintptr_t)from, bytes, mode, 0};
        struct bz_filling other = {{(uintptr_t)to, bytes}, mode, 0};
        int copies = call == UFFDIO_COPY;
        if (!ioctl(fd, call, copies ? (void *)&copy : (void *)&other)) return bytes;
        int64_t done = copies ? copy.copy : other.done;
        return errno == EAGAIN && done > 0 ? done : -errno;
    }
    /* Fill all of them. The kernel's errors are handled as follows:
     *   EAGAIN  The kernel stopped in the middle: continue from there. Or it asks for another try:
     *           try BZ_TRIES times, then return, so that the caller can try later.
     *   ENOENT  The pages are in several mappings, because the program locked or protected some of
     *           them (mlock, mprotect, madvise): fill one page at a time.
     *   EEXIST  For CONTINUE and POISON, a page is already mapped or marked: treat it as success.
     *   EFAULT  For CONTINUE, a page is not in the file, because the program removed it
     *           (MADV_REMOVE): fill it with zeros.
     * The caller handles any other errno, and EEXIST for COPY and ZEROPAGE. */
    #define BZ_TRIES 100
    static int bz_uffd_fill(int fd, unsigned long call, uint8_t *to, const uint8_t *from,
                            uint64_t bytes, uint64_t mode, uint64_t page) {
        uint64_t most = bytes;
        int tries = 0;
        while (bytes) {
            int64_t done = bz_uffd_fill_some(fd, call, to, from, bytes < most ? bytes : most, mode);
            if (done == -ENOENT && most > page) {
                most = page;
                continue;
            }
            if (done == -EAGAIN && tries++ < BZ_TRIES) {
                sched_yield();
                continue;
            }
            if (done == -EEXIST && (call == BZ_CONTINUE || call == BZ_POISON_RANGE)) {
                bz_uffd_wake(fd, to, page);
                done = page;
            }
            if (done == -EFAULT && call == BZ_CONTINUE)
                done = bz_uffd_fill_some(fd, UFFDIO_ZEROPAGE, to, NULL, page, 0);
            if (done < 0) return (int)done;
            to += done;
            if (from) from += done;
            bytes -= done;
        }
        return 0;
    }
    static int bz_uffd_copy(int fd, uint8_t *to, const uint8_t *from, uint64_t bytes, int protect,
                            uint64_t page) {
        uint64_t mode = protect ? UFFDIO_COPY_MODE_WP : 0;
        return bz_uffd_fill(fd, UFFDIO_COPY, to, from, bytes, mode, page);
    }
    static int bz_uffd_zero(int fd, uint8_t *to, uint64_t bytes, uint64_t page) {
        return bz_uffd_fill(fd, UFFDIO_ZEROPAGE, to, NULL, bytes, 0, page);
    }
    /* Map pages that are in the file. Pages that are mapped already stay mapped. */
    static int bz_uffd_continue(int fd, uint8_t *to, uint64_t bytes, int protect, uint64_t page) {
        return bz_uffd_fill(fd, BZ_CONTINUE, to, NULL, bytes, protect ? BZ_CONTINUE_WP : 0, page);
    }
    /* Make touches of unmapped pages raise SIGBUS. */
    static int bz_uffd_poison(int fd, uint8_t *to, uint64_t bytes, uint64_t page) {
        /* Remove the marker that an earlier write protection may have left, as it prevents poisoning.
         * If the marker stays, a touch is a fault again, and this function is called again. */
        struct uffdio_writeprotect lift = {
            {(uintptr_t)to, bytes}, UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
        ioctl(fd, UFFDIO_WRITEPROTECT, &lift);
        return bz_uffd_fill(fd, BZ_POISON_RANGE, to, NULL, bytes, 0, page);
    }
    /* Create an epoll instance that wakes one thread per fault. Polling the userfaultfd itself would
     * wake every thread for each fault. */
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
    /* Wait for a fault. Return 1, or 0 if `stop` was signalled or the descriptors are closed. */
    static int bz_uffd_next(int fd, int watch, uint64_t *address, int *is_write, uint32_t *thread) {
        struct uffd_msg message;
        struct epoll_event event;
        for (;;) {
            /* epoll reports an edge once, so read all messages before sleeping. */
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
    int bz_uffd_copy(int, uint8_t *, const uint8_t *, uint64_t, bint, uint64_t) nogil
    int bz_uffd_zero(int, uint8_t *, uint64_t, uint64_t) nogil
    int bz_uffd_wake(int, uint8_t *, uint64_t) nogil
    int bz_uffd_continue(int, uint8_t *, uint64_t, bint, uint64_t) nogil
    int bz_uffd_poison(int, uint8_t *, uint64_t, uint64_t) nogil
    int bz_uffd_watch(int, int) nogil
    bint bz_uffd_next(int, int, uint64_t *, bint *, uint32_t *) nogil

cdef int open_userfaultfd(uint64_t *features, int *way) except -1
