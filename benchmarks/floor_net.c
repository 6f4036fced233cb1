/* The floor of networks: what they cost when nothing but the bare system calls is paid for.
 *
 * A namespace is attached to a bridge by two sends: the cable is made by one, with its other end born inside, already a port
 * and up; all that is inside is said in the other.  No name is looked for, no error explained, nothing undone.  Router
 * advertisements stay accepted, which isolib does not leave so.
 *
 * That the link carries is found out by the kernel some time later; floor_attach(at, 1) asks until then, as isolib does, which
 * is one send more.
 *
 * For a foreign-function interface, from one thread: floor_hub() first.  Every function returns 0, or -errno. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1024, INSIDE = 1000 /* the number of the interface inside: an address is given to a number only */ };

static long failed;
static int home = -1, hub_socket = -1, bridge;
static int spaces[MOST], sockets[MOST];

static int must(int result) {
    if (result < 0 && !failed)
        failed = -errno;
    return result;
}

/* ---- netlink ---- */

/* What is sent together. */
struct batch {
    uint32_t size, last;
    char bytes[4096] __attribute__((aligned(4)));
};

static void *reserve(struct batch *b, size_t size) {
    void *at = b->bytes + b->size;
    memset(at, 0, NLMSG_ALIGN(size));
    b->size += (uint32_t)NLMSG_ALIGN(size);
    return at;
}

static void *begin(struct batch *b, uint16_t type, uint16_t flags, size_t size) {
    b->last = b->size;
    struct nlmsghdr *header = reserve(b, NLMSG_LENGTH(size));
    *header = (struct nlmsghdr){.nlmsg_type = type, .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags)};
    return NLMSG_DATA(header);
}

static struct rtattr *attribute(struct batch *b, unsigned short kind, const void *value, size_t size) {
    struct rtattr *made = reserve(b, RTA_LENGTH(size));
    *made = (struct rtattr){.rta_len = (unsigned short)RTA_LENGTH(size), .rta_type = kind};
    if (size)
        memcpy(RTA_DATA(made), value, size);
    return made;
}

static void number(struct batch *b, unsigned short kind, uint32_t value) {
    attribute(b, kind, &value, sizeof value);
}

static void text(struct batch *b, unsigned short kind, const char *value) {
    attribute(b, kind, value, strlen(value) + 1);
}

static void close_nest(struct batch *b, struct rtattr *nest) {
    nest->rta_len = (unsigned short)(b->bytes + b->size - (char *)nest);
}

static void end(struct batch *b) {
    struct nlmsghdr *header = (struct nlmsghdr *)(b->bytes + b->last);
    header->nlmsg_len = b->size - b->last;
}

/* Sends it; the last request is acknowledged, one before it only when it is refused. */
static void say(int fd, struct batch *b) {
    char answer[8192];
    struct nlmsghdr *header = (struct nlmsghdr *)(b->bytes + b->last);
    header->nlmsg_flags |= NLM_F_ACK;
    header->nlmsg_seq = 1;
    must((int)write(fd, b->bytes, b->size));
    for (;;) {
        struct nlmsghdr *got = (struct nlmsghdr *)answer;
        if (must((int)read(fd, answer, sizeof answer)) < 0)
            return;
        if (got->nlmsg_type == NLMSG_ERROR) {
            int error = ((struct nlmsgerr *)NLMSG_DATA(got))->error;
            if (error && !failed)
                failed = error;
            if (got->nlmsg_seq == 1)
                return;
        }
    }
}

static int netlink(void) {
    struct sockaddr_nl own = {.nl_family = AF_NETLINK};
    int fd = must(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    must(bind(fd, (struct sockaddr *)&own, sizeof own));
    return fd;
}

static void link_up(struct batch *b, const char *name) {
    struct ifinfomsg *link = begin(b, RTM_NEWLINK, 0, sizeof *link);
    link->ifi_flags = link->ifi_change = IFF_UP;
    text(b, IFLA_IFNAME, name);
    end(b);
}

/* Who is asked for its state finds it out at once (Linux 6.8). */
static void ask_for(struct batch *b, int index) {
    struct ifinfomsg *link = begin(b, RTM_GETLINK, 0, sizeof *link);
    link->ifi_index = index;
    end(b);
}

static void address(struct batch *b, int index, uint32_t value, uint8_t prefix) {
    struct ifaddrmsg *one = begin(b, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof *one);
    uint32_t broadcast = value | htonl(prefix < 32 ? 0xffffffffU >> prefix : 0);
    *one = (struct ifaddrmsg){.ifa_family = AF_INET, .ifa_prefixlen = prefix, .ifa_index = (uint32_t)index};
    attribute(b, IFA_LOCAL, &value, sizeof value);
    attribute(b, IFA_ADDRESS, &value, sizeof value);
    attribute(b, IFA_BROADCAST, &broadcast, sizeof broadcast);
    end(b);
}

static void default_route(struct batch *b, uint32_t gateway, int index) {
    struct rtmsg *route = begin(b, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof *route);
    *route = (struct rtmsg){.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC};
    route->rtm_type = RTN_UNICAST;
    attribute(b, RTA_GATEWAY, &gateway, sizeof gateway);
    number(b, RTA_OIF, (uint32_t)index);
    end(b);
}

static struct rtattr *kind(struct batch *b, const char *name) {
    struct rtattr *info = attribute(b, IFLA_LINKINFO, NULL, 0);
    text(b, IFLA_INFO_KIND, name);
    return info;
}

/* ---- namespaces ---- */

static int own_namespace(void) {
    return must(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
}

static void lo_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    must(ioctl(fd, SIOCSIFFLAGS, &request));
    close(fd);
}

static int new_hub(int *socket) {
    struct batch b = {0};
    failed = 0;
    if (home < 0)
        home = own_namespace();
    must(unshare(CLONE_NEWNET));
    int made = own_namespace();
    *socket = netlink();
    must(setns(home, CLONE_NEWNET));
    bridge = INSIDE;
    struct ifinfomsg *link = begin(&b, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof *link);
    *link = (struct ifinfomsg){.ifi_index = bridge, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    text(&b, IFLA_IFNAME, "br0");
    close_nest(&b, kind(&b, "bridge"));
    end(&b);
    address(&b, bridge, htonl(0x0a4d0001), 16);
    say(*socket, &b);
    return made;
}

/* A bridge, 10.77.0.1/16, in a namespace of its own; returns the namespace. */
long floor_hub(void) {
    int made = new_hub(&hub_socket);
    return failed ? failed : made;
}

/* Makes another one, and drops it. */
long floor_another_hub(void) {
    int socket, made = new_hub(&socket);
    close(socket);
    close(made);
    return failed;
}

/* A namespace with loopback up, a cable to the bridge, an address, the default route; it is kept under a number. */
long floor_attach(int at, int carrying) {
    struct batch outside = {0}, inside = {0}, carrier = {0};
    char name[IFNAMSIZ];
    failed = 0;
    must(unshare(CLONE_NEWNET));
    spaces[at] = own_namespace();
    sockets[at] = netlink();
    must(setns(home, CLONE_NEWNET));

    snprintf(name, sizeof name, "port%d", at);
    struct ifinfomsg *link = begin(&outside, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof *link);
    link->ifi_index =
        INSIDE + 1 + at; /* the other end's own number counts only where this one has one, too (drivers/net/veth.c) */
    link->ifi_flags = link->ifi_change = IFF_UP;
    text(&outside, IFLA_IFNAME, name);
    number(&outside, IFLA_MASTER, (uint32_t)bridge);
    struct rtattr *info = kind(&outside, "veth");
    struct rtattr *data = attribute(&outside, IFLA_INFO_DATA, NULL, 0);
    const struct ifinfomsg other = {.ifi_index = INSIDE};
    struct rtattr *peer = attribute(&outside, VETH_INFO_PEER, &other, sizeof other);
    text(&outside, IFLA_IFNAME, "eth0");
    number(&outside, IFLA_NET_NS_FD, (uint32_t)spaces[at]);
    close_nest(&outside, peer);
    close_nest(&outside, data);
    close_nest(&outside, info);
    end(&outside);
    say(hub_socket, &outside);

    link_up(&inside, "lo");
    link_up(&inside, "eth0");
    address(&inside, INSIDE, htonl(0x0a4d0002 + (uint32_t)at), 16);
    default_route(&inside, htonl(0x0a4d0001), INSIDE);
    if (carrying)
        ask_for(&inside, INSIDE);
    say(sockets[at], &inside);
    if (carrying) {
        ask_for(&carrier, INSIDE + 1 + at);
        ask_for(&carrier, bridge);
        say(hub_socket, &carrier);
    }
    return failed;
}

/* Drops so many of those that floor_attach() has made: all that the kernel takes them down for. */
long floor_drop(int count) {
    for (int i = 0; i < count; i++) {
        close(sockets[i]);
        close(spaces[i]);
    }
    return 0;
}

/* Makes and drops so many namespaces, with loopback up, one after the other. */
long floor_spaces(int count) {
    failed = 0;
    for (int i = 0; i < count && !failed; i++) {
        must(unshare(CLONE_NEWNET));
        lo_up();
        int made = own_namespace();
        must(setns(home, CLONE_NEWNET));
        close(made);
    }
    return failed;
}

/* ---- throughput ---- */

static int socket_of(int net) {
    must(setns(net, CLONE_NEWNET));
    int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    must(setns(home, CLONE_NEWNET));
    return fd;
}

static void *drain(void *argument) {
    static char sink[1 << 18];
    int fd = *(int *)argument;
    while (read(fd, sink, sizeof sink) > 0)
        ;
    return NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Sends for so long, by TCP, from one namespace to an address of another; bytes per second. */
long floor_flow(int from, int to, const char *where, double seconds, double *rate) {
    static char source[1 << 18];
    struct sockaddr_in there = {.sin_family = AF_INET};
    socklen_t size = sizeof there;
    pthread_t reader;
    uint64_t sent = 0;
    failed = 0;
    if (home < 0)
        home = own_namespace();
    inet_pton(AF_INET, where, &there.sin_addr);
    int server = socket_of(to), client = socket_of(from);
    must(bind(server, (struct sockaddr *)&there, size));
    must(listen(server, 1));
    must(getsockname(server, (struct sockaddr *)&there, &size));
    must(connect(client, (struct sockaddr *)&there, size));
    int accepted = failed ? -1 : must(accept4(server, NULL, NULL, SOCK_CLOEXEC));
    if (!failed) {
        pthread_create(&reader, NULL, drain, &accepted);
        double start = now(), stop = start + seconds, at = start;
        while (at < stop && !failed) {
            for (int i = 0; i < 16 && !failed; i++)
                sent += (uint64_t)must((int)write(client, source, sizeof source));
            at = now();
        }
        *rate = (double)sent / (at - start);
        shutdown(client, SHUT_WR);
        pthread_join(reader, NULL);
        close(accepted);
    }
    close(client);
    close(server);
    return failed;
}
