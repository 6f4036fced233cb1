/*
 * Bad weather in user space, for kernels without netem: what one interface would send is led here, waits, and is sent by it
 * later, or not at all.  One thread, without Python and its lock, so that a delay is one also while the host's own threads
 * compute.
 *
 * Packets come through a ring that the kernel writes (packet(7), PACKET_RX_RING) and go by a socket.  Before each stands what
 * the kernel says of its checksum (PACKET_VNET_HDR): one that is still to be computed stays so.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "wrappers.h"

enum {
    SOL_PACKET_LEVEL = 263,
    HEADER = 10,    /* struct virtio_net_hdr without the number of buffers */
    TAG = 4,        /* 802.1Q */
    OVERHEAD = 128, /* what the kernel puts before a packet in the ring, and the packet's own headers */
    BLOCK = 65536,
    RING = 1 << 21,
    FEWEST = 64, /* packets in the ring */
    BATCH = 64,  /* taken before those that are due have their turn */
    STACK = 1 << 17,
    PATIENCE = 20, /* milliseconds */
    BUFFER = 1 << 20
};

static const int64_t SECOND = 1000000000;

struct packet {
    uint32_t size;
    uint8_t data[]; /* HEADER, and the frame */
};

struct waiting {
    int64_t due;
    uint64_t number; /* of those that are due together, the first goes first */
    struct packet *packet;
};

struct isolib_relay_state {
    int alive; /* this memory is wiped in a fork of the host, which has no such thread */
    int in, out, wake;
    struct sockaddr_ll way;
    uint8_t *ring;
    size_t ring_size;
    uint32_t frame_size, frame_count, next;
    pthread_t thread;
    pthread_mutex_t lock; /* of the following four */
    struct isolib_weather wanted;
    int changed; /* read without the lock too */
    int ending, alone;
    /* the thread's own */
    struct isolib_weather weather;
    int over;
    int64_t last; /* nothing leaves earlier than this, unless it is to be out of order */
    uint64_t number, seed;
    struct waiting *heap;
    uint32_t count, capacity;
};

/* ---- chance: splitmix64 ---- */

static uint64_t draw(struct isolib_relay_state *relay) {
    uint64_t value = relay->seed += 0x9e3779b97f4a7c15;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

static int happens(struct isolib_relay_state *relay, uint64_t probability) {
    return probability && (draw(relay) >> 32) < probability;
}

/* ---- those that wait: a heap, the first due on top ---- */

static int is_before(const struct waiting *one, const struct waiting *other) {
    return one->due < other->due || (one->due == other->due && one->number < other->number);
}

static int push(struct isolib_relay_state *relay, struct waiting one) {
    uint32_t at = relay->count;
    if (at == relay->capacity) {
        uint32_t capacity = relay->capacity ? relay->capacity * 2 : 256;
        struct waiting *heap = realloc(relay->heap, capacity * sizeof(*heap));
        if (!heap)
            return -1;
        relay->heap = heap;
        relay->capacity = capacity;
    }
    relay->count++;
    while (at && is_before(&one, &relay->heap[(at - 1) / 2])) {
        relay->heap[at] = relay->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    relay->heap[at] = one;
    return 0;
}

static struct packet *pop(struct isolib_relay_state *relay) {
    struct packet *packet = relay->heap[0].packet;
    struct waiting one = relay->heap[--relay->count];
    uint32_t at = 0, child;
    while ((child = 2 * at + 1) < relay->count) {
        if (child + 1 < relay->count && is_before(&relay->heap[child + 1], &relay->heap[child]))
            child++;
        if (!is_before(&relay->heap[child], &one))
            break;
        relay->heap[at] = relay->heap[child];
        at = child;
    }
    if (relay->count)
        relay->heap[at] = one;
    return packet;
}

/* ---- a packet ---- */

static struct packet *copy(const uint8_t *frame, uint32_t size, const struct tpacket2_hdr *header) {
    const uint32_t addresses = 2 * ETH_ALEN;
    struct packet *packet = malloc(sizeof(*packet) + HEADER + size + TAG);
    struct virtio_net_hdr *about;
    uint8_t *data;
    if (!packet)
        return NULL;
    about = (struct virtio_net_hdr *)packet->data;
    data = packet->data + HEADER;
    memcpy(about, frame - HEADER, HEADER);
    about->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    packet->size = HEADER + size;
    if (header->tp_status & TP_STATUS_VLAN_VALID && size >= addresses) { /* the kernel keeps the tag beside the frame */
        uint16_t kind = header->tp_status & TP_STATUS_VLAN_TPID_VALID ? header->tp_vlan_tpid : ETH_P_8021Q;
        uint8_t tag[TAG] = {(uint8_t)(kind >> 8), (uint8_t)kind, (uint8_t)(header->tp_vlan_tci >> 8),
                            (uint8_t)header->tp_vlan_tci};
        memcpy(data, frame, addresses);
        memcpy(data + addresses, tag, TAG);
        memcpy(data + addresses + TAG, frame + addresses, size - addresses);
        about->csum_start = (uint16_t)(about->csum_start + TAG);
        packet->size += TAG;
    } else {
        memcpy(data, frame, size);
    }
    return packet;
}

/* Computes the checksum that was left to the interface: one that covered the damage would hide it. */
static void finish_checksum(struct packet *packet) {
    struct virtio_net_hdr *about = (struct virtio_net_hdr *)packet->data;
    uint8_t *frame = packet->data + HEADER;
    uint32_t size = packet->size - HEADER, start = about->csum_start, place = start + about->csum_offset, sum = 0;
    if (!(about->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) || place + 2 > size)
        return;
    for (uint32_t at = start; at < size; at += 2)
        sum += (uint32_t)frame[at] << 8 | (at + 1 < size ? frame[at + 1] : 0);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    sum = ~sum & 0xffff;
    sum = sum ? sum : 0xffff; /* of UDP, 0 would say that there is none */
    frame[place] = (uint8_t)(sum >> 8);
    frame[place + 1] = (uint8_t)sum;
    about->flags = 0;
}

static void damage(struct isolib_relay_state *relay, struct packet *packet) {
    uint64_t bit = draw(relay) % ((packet->size - HEADER) * 8);
    finish_checksum(packet);
    packet->data[HEADER + bit / 8] ^= (uint8_t)(1 << bit % 8);
}

/* ---- weather ---- */

static int64_t due(struct isolib_relay_state *relay, int64_t now, uint32_t size) {
    const struct isolib_weather *weather = &relay->weather;
    int64_t leaves = now + weather->delay_ns;
    if (happens(relay, weather->reorder))
        return now;
    if (weather->jitter_ns)
        leaves += (int64_t)(draw(relay) % (2 * (uint64_t)weather->jitter_ns + 1)) - weather->jitter_ns;
    if (leaves < relay->last)
        leaves = relay->last;
    if (weather->rate) /* when its last bit has left */
        leaves += (int64_t)((uint64_t)size * 8 * (uint64_t)SECOND / weather->rate);
    relay->last = leaves;
    return leaves;
}

static void hold(struct isolib_relay_state *relay, const struct tpacket2_hdr *header, int64_t now) {
    struct waiting one = {0, relay->number++, NULL};
    if (relay->count >= relay->weather.limit)
        return;
    one.packet = copy((const uint8_t *)header + header->tp_mac, header->tp_snaplen, header);
    if (!one.packet)
        return;
    if (happens(relay, relay->weather.corrupt))
        damage(relay, one.packet);
    one.due = due(relay, now, one.packet->size - HEADER);
    if (push(relay, one) < 0)
        free(one.packet);
}

/* Takes what was ordered meanwhile: before each packet, for whoever has ordered it may have sent that afterwards. */
static void take_orders(struct isolib_relay_state *relay) {
    if (!__atomic_load_n(&relay->changed, __ATOMIC_ACQUIRE))
        return;
    pthread_mutex_lock(&relay->lock);
    relay->weather = relay->wanted;
    relay->over = relay->ending;
    __atomic_store_n(&relay->changed, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&relay->lock);
    /* As in netem: where neither jitter nor a rate orders them, those of better weather overtake. */
    if (!relay->over && !relay->weather.rate && !relay->weather.jitter_ns)
        relay->last = 0;
}

static void take(struct isolib_relay_state *relay, const struct tpacket2_hdr *header) {
    const uint8_t *start = (const uint8_t *)header;
    const struct sockaddr_ll *from = (const struct sockaddr_ll *)(start + TPACKET_ALIGN(sizeof(*header)));
    int64_t now = isolib_monotonic_ns();
    int copies = 1;
    if (from->sll_pkttype == PACKET_OUTGOING) /* said by the interface here, not led to it */
        return;
    if (header->tp_snaplen < header->tp_len || header->tp_snaplen < ETH_HLEN)
        return;
    if (happens(relay, relay->weather.duplicate))
        copies++;
    if (happens(relay, relay->weather.loss))
        copies--;
    while (copies--)
        hold(relay, header, now);
}

/* Returns whether there may be more. */
static int take_some(struct isolib_relay_state *relay) {
    for (int taken = 0; taken < BATCH; taken++) {
        struct tpacket2_hdr *header = (struct tpacket2_hdr *)(relay->ring + (size_t)relay->next * relay->frame_size);
        if (!(__atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            return 0;
        take_orders(relay);
        take(relay, header);
        __atomic_store_n(&header->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        relay->next = (relay->next + 1) % relay->frame_count;
    }
    return 1;
}

static ssize_t put(struct isolib_relay_state *relay, const struct packet *packet) {
    return sendto(relay->out, packet->data, packet->size, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&relay->way,
                  sizeof(relay->way));
}

/* Returns whether the socket took something in time; an interface that is down, or full, loses it. */
static int put_first(struct isolib_relay_state *relay, int patience) {
    struct pollfd room = {relay->out, POLLOUT, 0};
    struct packet *packet = pop(relay);
    int is_in_time = 1;
    /* The other end has not taken what was sent before: it is the kernel's own, and has it soon. */
    if (put(relay, packet) < 0 && errno == EAGAIN) {
        is_in_time = poll(&room, 1, patience) > 0;
        if (is_in_time)
            put(relay, packet);
    }
    free(packet);
    return is_in_time;
}

static void wait_for_news(struct isolib_relay_state *relay) {
    struct pollfd polled[2] = {{relay->wake, POLLIN, 0}, {relay->in, POLLIN, 0}};
    struct timespec left, *limit = NULL;
    uint64_t ignored;
    if (relay->count) {
        int64_t ns = relay->heap[0].due - isolib_monotonic_ns();
        ns = ns < 0 ? 0 : ns;
        left = (struct timespec){ns / SECOND, ns % SECOND};
        limit = &left;
    }
    if (ppoll(polled, 2, limit, NULL) <= 0)
        return;
    if (polled[0].revents && read(relay->wake, &ignored, sizeof(ignored)) > 0)
        take_orders(relay);
    if (polled[1].revents & POLLERR) { /* an interface that went down says so once */
        int error;
        socklen_t size = sizeof(error);
        getsockopt(relay->in, SOL_SOCKET, SO_ERROR, &error, &size);
    }
}

static void dispose(struct isolib_relay_state *relay) {
    int error = errno;
    if (relay->ring)
        munmap(relay->ring, relay->ring_size);
    free(relay->heap);
    munmap(relay, sizeof(*relay));
    errno = error;
}

/*
 * The way is open again: what was led here before does not wait any more, and goes in its order.  Somebody may wait for this,
 * while others still lead packets here: so no more than one turn of the ring is taken, and room is waited for once.
 */
static void send_the_rest(struct isolib_relay_state *relay) {
    int patience = PATIENCE;
    relay->weather.delay_ns = relay->weather.jitter_ns = 0;
    relay->weather.rate = relay->weather.reorder = 0;
    relay->weather.limit = UINT32_MAX;
    for (uint32_t taken = 0; taken < relay->frame_count && take_some(relay); taken += BATCH)
        ;
    while (relay->count)
        if (!put_first(relay, patience))
            patience = 0;
}

static void *run(void *argument) {
    struct isolib_relay_state *relay = argument;
    prctl(PR_SET_NAME, "isolib-relay");
    prctl(PR_SET_TIMERSLACK, 1UL);
    while (!relay->over) {
        int64_t now = isolib_monotonic_ns();
        while (relay->count && relay->heap[0].due <= now)
            put_first(relay, PATIENCE);
        if (!take_some(relay))
            wait_for_news(relay);
    }
    send_the_rest(relay);
    if (relay->alone) { /* each of the two sockets takes the kernel milliseconds */
        close(relay->in);
        close(relay->out);
        close(relay->wake);
        dispose(relay);
    }
    return NULL;
}

/* ---- from outside ---- */

/* When the lock is given back, and the relay is to end alone, it may be gone. */
static void order(struct isolib_relay_state *relay, const struct isolib_weather *weather, int ending, int alone) {
    const uint64_t one = 1;
    ssize_t ignored;
    pthread_mutex_lock(&relay->lock);
    relay->wanted = weather ? *weather : relay->wanted;
    relay->ending = ending;
    relay->alone = alone;
    __atomic_store_n(&relay->changed, 1, __ATOMIC_RELEASE);
    ignored = write(relay->wake, &one, sizeof(one)); /* refused, it is awake already */
    (void)ignored;
    pthread_mutex_unlock(&relay->lock);
}

static int open_ring(struct isolib_relay_state *relay, int index, uint32_t mtu) {
    const int version = TPACKET_V2, on = 1;
    struct sockaddr_ll from = {.sll_family = AF_PACKET, .sll_ifindex = index};
    struct tpacket_req size = {0};
    uint32_t frame = 2048;
    void *ring;
    from.sll_protocol = htons(ETH_P_ALL);
    while (frame < mtu + OVERHEAD)
        frame *= 2;
    size.tp_frame_size = frame;
    size.tp_block_size = frame < BLOCK ? BLOCK : frame;
    size.tp_frame_nr = RING / frame < FEWEST ? FEWEST : RING / frame;
    size.tp_block_nr = size.tp_frame_nr * (uint64_t)frame / size.tp_block_size;
    relay->frame_size = frame;
    relay->frame_count = size.tp_frame_nr;
    relay->ring_size = (size_t)size.tp_block_size * size.tp_block_nr;
    if (setsockopt(relay->in, SOL_PACKET_LEVEL, PACKET_VERSION, &version, sizeof(version)) < 0 ||
        setsockopt(relay->in, SOL_PACKET_LEVEL, PACKET_VNET_HDR, &on, sizeof(on)) < 0 ||
        setsockopt(relay->in, SOL_PACKET_LEVEL, PACKET_RX_RING, &size, sizeof(size)) < 0)
        return -1;
    ring = mmap(NULL, relay->ring_size, PROT_READ | PROT_WRITE, MAP_SHARED, relay->in, 0);
    if (ring == MAP_FAILED)
        return -1;
    relay->ring = ring;
    madvise(ring, relay->ring_size, MADV_DONTFORK);
    return bind(relay->in, (struct sockaddr *)&from, sizeof(from));
}

static int start_thread(struct isolib_relay_state *relay) {
    sigset_t all, before;
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error == 0) {
        pthread_attr_setstacksize(&attributes, STACK);
        sigfillset(&all); /* signals are the host's own threads' business */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&relay->thread, &attributes, run, relay);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
    }
    errno = error;
    return error ? -1 : 0;
}

static void close_fds(struct isolib_relay *handle) {
    isolib_close_fd(&handle->in);
    isolib_close_fd(&handle->out);
    isolib_close_fd(&handle->wake);
}

int isolib_relay_start(struct isolib_relay *handle, const struct isolib_ends *ends, const struct isolib_weather *weather) {
    const int on = 1, buffer = BUFFER;
    int error;
    struct isolib_relay_state *relay = mmap(NULL, sizeof(*relay), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (relay == MAP_FAILED)
        return -1;
    relay->way = (struct sockaddr_ll){.sll_family = AF_PACKET, .sll_ifindex = ends->out_index, .sll_halen = ETH_ALEN};
    relay->way.sll_protocol = ends->protocol;
    relay->wanted = relay->weather = *weather;
    relay->alive = 1;
    pthread_mutex_init(&relay->lock, NULL);
    if ((handle->in = relay->in = fcntl(ends->in, F_DUPFD_CLOEXEC, 3)) >= 0 &&
        (handle->out = relay->out = fcntl(ends->out, F_DUPFD_CLOEXEC, 3)) >= 0 &&
        (handle->wake = relay->wake = isolib_raise_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))) >= 0 &&
        madvise(relay, sizeof(*relay), MADV_WIPEONFORK) == 0 &&
        getrandom(&relay->seed, sizeof(relay->seed), 0) == (ssize_t)sizeof(relay->seed) &&
        setsockopt(relay->out, SOL_PACKET_LEVEL, PACKET_VNET_HDR, &on, sizeof(on)) == 0 &&
        setsockopt(relay->out, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer)) == 0 && /* net.core.wmem_max bounds it */
        open_ring(relay, ends->in_index, ends->mtu) == 0 && start_thread(relay) == 0) {
        handle->state = relay;
        return 0;
    }
    error = errno;
    dispose(relay);
    close_fds(handle);
    errno = error;
    return -1;
}

void isolib_relay_change(struct isolib_relay *handle, const struct isolib_weather *weather) {
    struct isolib_relay_state *relay = handle->state;
    if (relay && relay->alive)
        order(relay, weather, 0, 0);
}

void isolib_relay_end(struct isolib_relay *handle) {
    struct isolib_relay_state *relay = handle->state;
    handle->state = NULL;
    if (relay && relay->alive) {
        order(relay, NULL, 1, 0);
        pthread_join(relay->thread, NULL);
        pthread_mutex_destroy(&relay->lock);
        dispose(relay);
    }
    close_fds(handle);
}

void isolib_relay_leave(struct isolib_relay *handle) {
    struct isolib_relay_state *relay = handle->state;
    handle->state = NULL;
    if (relay && relay->alive) {
        pthread_t thread = relay->thread;
        handle->in = handle->out = handle->wake = -1;
        order(relay, NULL, 1, 1);
        pthread_detach(thread);
    }
    close_fds(handle);
}
