// Replicas for benchmarks: one epoll thread plays N engines, each on a Unix socket and on a TCP port of 127.0.0.1.
//
//   backend DIR REPLICAS TICK_MS      prints {"ports": [...]} and serves DIR/rI.sock until it is killed
//
// A POST is answered by a JSON object, or, where its body says "stream": true, by "max_tokens" server-sent events, one
// HTTP chunk and one send() each. "seed" is the milliseconds per token: 0 sends them as fast as the socket takes them;
// otherwise every stream of a replica gets its token in the same step, as in vLLM. Each event carries the CLOCK_MONOTONIC
// nanoseconds of its send() as "t". Any GET is answered by a list of models: health checks and discovery are content with it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum kind { LISTENER, TIMER, CONNECTION };

struct handle {
    enum kind kind;
    int fd, replica;
};

struct connection {
    struct handle handle;  // first: epoll knows the connection by it
    char *in, *out;
    size_t in_len, in_cap, out_off, out_len, out_cap;
    long left, every, phase;  // tokens to send; steps between two of them; which of those steps
    int closed, waits_out;
    struct connection *next, *prev, *next_dead;
};

static int epoll_fd, replicas;
static long tick_ms, opened;
static long *steps;
static struct connection **streams, *dead;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void watch(struct handle *handle, unsigned events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = handle};
    if (epoll_ctl(epoll_fd, operation, handle->fd, &event) < 0) die("epoll_ctl");
}

static void leave_streams(struct connection *c) {
    if (c->prev) c->prev->next = c->next;
    else if (streams[c->handle.replica] == c) streams[c->handle.replica] = c->next;
    if (c->next) c->next->prev = c->prev;
    c->next = c->prev = NULL;
    c->left = 0;
}

static void hang_up(struct connection *c) {
    if (c->closed) return;
    c->closed = 1;
    leave_streams(c);
    close(c->handle.fd);
    c->next_dead = dead;  // freed after this batch of events: one of them may still name it
    dead = c;
}

static void flush(struct connection *c) {
    while (c->out_off < c->out_len) {
        ssize_t n = send(c->handle.fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!c->waits_out) watch(&c->handle, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            c->waits_out = 1;
            return;
        }
        if (n < 0) {
            hang_up(c);
            return;
        }
        c->out_off += (size_t)n;
    }
    c->out_off = c->out_len = 0;
    if (c->waits_out) watch(&c->handle, EPOLLIN, EPOLL_CTL_MOD);
    c->waits_out = 0;
}

static void put(struct connection *c, const char *data, size_t size) {
    if (c->closed) return;
    if (c->out_len + size > c->out_cap) {
        c->out_cap = (c->out_len + size) * 2;
        if (!(c->out = realloc(c->out, c->out_cap))) die("realloc");
    }
    memcpy(c->out + c->out_len, data, size);
    c->out_len += size;
    if (!c->waits_out) flush(c);
}

static void put_token(struct connection *c) {
    char event[512], chunk[600];
    int size = snprintf(event, sizeof event,
        "data: {\"id\":\"chatcmpl-benchmark\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\","
        "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}],\"t\":%lld}\n\n", now_ns());
    size = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", size, event);
    put(c, chunk, (size_t)size);
    if (--c->left > 0 || c->closed) return;
    leave_streams(c);
    static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    put(c, end, sizeof end - 1);
}

static long number_after(const char *text, const char *key, long otherwise) {
    const char *at = strstr(text, key);
    return at ? strtol(at + strlen(key), NULL, 10) : otherwise;
}

static void put_json(struct connection *c, const char *body) {
    char answer[1024];
    int size = snprintf(answer, sizeof answer,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", strlen(body), body);
    put(c, answer, (size_t)size);
}

static void answer(struct connection *c, const char *head, const char *body) {
    static const char models[] = "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1,\"owned_by\":\"vllm\"}]}";
    static const char plain[] =
        "{\"id\":\"chatcmpl-benchmark\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"m\",\"choices\":"
        "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"It left the warehouse this morning.\"},"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":210,\"completion_tokens\":8,\"total_tokens\":218}}";
    static const char stream[] =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    if (strncmp(head, "GET ", 4) == 0) {
        put_json(c, models);
        return;
    }
    if (!strstr(body, "\"stream\":true") && !strstr(body, "\"stream\": true")) {
        put_json(c, plain);
        return;
    }
    long pace_ms = number_after(body, "\"seed\":", 0);
    c->left = number_after(body, "\"max_tokens\":", 1);
    put(c, stream, sizeof stream - 1);
    if (pace_ms <= 0) {
        while (c->left > 0 && !c->closed) put_token(c);
        return;
    }
    if (c->closed) return;
    c->every = pace_ms > tick_ms ? pace_ms / tick_ms : 1;
    c->phase = opened++ % c->every;
    c->next = streams[c->handle.replica];
    if (c->next) c->next->prev = c;
    streams[c->handle.replica] = c;
}

static void requests(struct connection *c) {
    while (!c->closed && c->in_len) {
        c->in[c->in_len] = 0;
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return;
        char *header = strcasestr(c->in, "\r\ncontent-length:");
        size_t length = header && header < end ? strtoul(header + 17, NULL, 10) : 0;
        size_t whole = (size_t)(end + 4 - c->in) + length;
        if (c->in_len < whole) return;
        char after = c->in[whole];
        c->in[whole] = 0;
        answer(c, c->in, end + 4);
        c->in[whole] = after;
        if (c->closed) return;
        memmove(c->in, c->in + whole, c->in_len - whole);
        c->in_len -= whole;
    }
}

static void readable(struct connection *c) {
    while (!c->closed) {
        if (c->in_cap - c->in_len < 4096) {
            c->in_cap = c->in_cap * 2 + 8192;
            if (!(c->in = realloc(c->in, c->in_cap))) die("realloc");
        }
        ssize_t n = recv(c->handle.fd, c->in + c->in_len, c->in_cap - c->in_len - 1, 0);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n <= 0) {
            hang_up(c);
            return;
        }
        c->in_len += (size_t)n;
        if (c->in_len < c->in_cap - 1) break;
    }
    requests(c);
}

static void incoming(struct handle *listener) {
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // fails on a Unix socket, which needs none
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->handle = (struct handle){CONNECTION, fd, listener->replica};
        watch(&c->handle, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static void step(struct handle *timer) {
    unsigned long long expired;
    if (read(timer->fd, &expired, sizeof expired) < 0) return;
    long number = steps[timer->replica]++;
    for (struct connection *c = streams[timer->replica], *next; c; c = next) {
        next = c->next;
        if (number % c->every == c->phase) put_token(c);
    }
}

static struct handle *handle_of(enum kind kind, int fd, int replica) {
    struct handle *handle = malloc(sizeof *handle);
    if (!handle) die("malloc");
    *handle = (struct handle){kind, fd, replica};
    watch(handle, EPOLLIN, EPOLL_CTL_ADD);
    return handle;
}

static int open_replica(const char *dir, int replica) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    snprintf(path.sun_path, sizeof path.sun_path, "%s/r%d.sock", dir, replica);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&path, sizeof path) < 0 || listen(fd, 4096) < 0) die("Unix socket");
    handle_of(LISTENER, fd, replica);

    struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof tcp;
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&tcp, sizeof tcp) < 0 || listen(fd, 4096) < 0) die("TCP socket");
    getsockname(fd, (struct sockaddr *)&tcp, &size);
    handle_of(LISTENER, fd, replica);

    // Engines do not step together: their steps are spread over the tick.
    long long first = tick_ms * 1000000LL * (replica + 1) / replicas + 1000000;
    struct itimerspec timer = {{tick_ms / 1000, tick_ms % 1000 * 1000000}, {first / 1000000000, first % 1000000000}};
    fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd < 0 || timerfd_settime(fd, 0, &timer, NULL) < 0) die("timerfd");
    handle_of(TIMER, fd, replica);
    return ntohs(tcp.sin_port);
}

int main(int argc, char **argv) {
    if (argc != 4 || (replicas = atoi(argv[2])) < 1 || (tick_ms = atol(argv[3])) < 1) {
        fprintf(stderr, "usage: backend DIR REPLICAS TICK_MS\n");
        return 2;
    }
    struct rlimit fds;
    getrlimit(RLIMIT_NOFILE, &fds);
    fds.rlim_cur = fds.rlim_max;
    setrlimit(RLIMIT_NOFILE, &fds);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    streams = calloc((size_t)replicas, sizeof *streams);
    steps = calloc((size_t)replicas, sizeof *steps);
    printf("{\"ports\": [");
    for (int i = 0; i < replicas; i++) printf("%s%d", i ? ", " : "", open_replica(argv[1], i));
    printf("]}\n");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct handle *handle = events[i].data.ptr;
            if (handle->kind == LISTENER) incoming(handle);
            else if (handle->kind == TIMER) step(handle);
            else {
                struct connection *c = (struct connection *)handle;
                if (!c->closed && events[i].events & EPOLLOUT) flush(c);
                if (!c->closed && events[i].events & ~(unsigned)EPOLLOUT) readable(c);
            }
        }
        while (dead) {
            struct connection *c = dead;
            dead = c->next_dead;
            free(c->in);
            free(c->out);
            free(c);
        }
    }
}
