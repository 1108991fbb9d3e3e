// Load for benchmarks: one epoll thread, CONNECTIONS keep-alive connections, each asks again as soon as it has its answer.
//
//   client PORTS CONNECTIONS WARM_S SECONDS TOKENS PACE_MS
//
// PORTS: of 127.0.0.1, separated by commas; the connections are spread over them. TOKENS 0: plain answers; else streams of
// that many events, PACE_MS apart (0: as fast as they come). Prints BEGIN when the warm-up is over and END when the measured
// time is, holds all connections until a line comes on stdin, then prints one JSON object about the time between the two.
// An event's delay is the time from the backend's send() to the read() here.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum state { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

struct connection {
    int fd, index, close_after, status;
    enum state state;
    long left;             // bytes of the body or chunk that are still to come
    long tokens, expected; // events read; events asked for
    int line;              // characters of a trailer line
    int matched;           // of the marker
    long long stamp, sent_ns;
    char head[8192];
    size_t head_len;
};

struct samples {
    long long *at;
    size_t count, capacity;
};

static const char MARKER[] = "\"t\":";
static int epoll_fd, connections, ports[64], port_count, measuring;
static long tokens, pace_ms, requests, chunks, errors;
static struct samples latency, ttft, delay;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void record(struct samples *s, long long value) {
    if (!measuring) return;
    if (s->count == s->capacity) {
        s->capacity = s->capacity * 2 + 65536;
        if (!(s->at = realloc(s->at, s->capacity * sizeof *s->at))) die("realloc");
    }
    s->at[s->count++] = value;
}

static void failed(const char *why) {
    if (errors++ < 3) fprintf(stderr, "client: %s\n", why);
    if (errors > 100000) exit(1);
}

static void ask(struct connection *c) {
    // 1 KiB, the size of a short chat.
    static char body[1400], request[1800];
    // The first streams end one after the other: their successors must not begin in one burst.
    c->expected = tokens && !c->sent_ns ? 1 + tokens * (c->index + 1) / (connections + 1) : tokens;
    int size = snprintf(body, sizeof body,
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"My order is late. %0900d\"}],"
        "\"max_tokens\":%ld,\"temperature\":0.7,\"seed\":%ld,\"stream\":%s}",
        c->index, c->expected, pace_ms, tokens ? "true" : "false");
    size = snprintf(request, sizeof request,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Accept: */*\r\nUser-Agent: benchmark\r\nContent-Length: %d\r\n\r\n%s", size, body);
    c->state = HEAD;
    c->head_len = 0;
    c->tokens = c->matched = c->close_after = 0;
    c->sent_ns = now_ns();
    if (send(c->fd, request, (size_t)size, MSG_NOSIGNAL) != size) failed("the request was not taken whole");
}

static void dial(struct connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)ports[c->index % port_count]),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) die("epoll_ctl");
    ask(c);
}

static void dial_again(struct connection *c) {
    close(c->fd);
    dial(c);
}

// Returns 1 where the connection was opened anew: what was read of the old one counts no longer.
static int answered(struct connection *c) {
    long long now = now_ns();
    if (c->status != 200) failed("an answer that is not 200");
    else if (c->tokens != c->expected) failed("a stream of another length");
    else if (measuring) {
        requests++;
        record(&latency, now - c->sent_ns);
    }
    if (c->close_after) {
        dial_again(c);
        return 1;
    }
    ask(c);
    return 0;
}

static void token(struct connection *c, long long now) {
    if (c->tokens++ == 0) record(&ttft, now - c->sent_ns);
    if (measuring) chunks++;
    record(&delay, now - c->stamp);
}

static void payload(struct connection *c, const char *data, size_t size, long long now) {
    for (size_t i = 0; i < size && tokens; i++) {
        char byte = data[i];
        if (c->matched == 4) {
            if (byte >= '0' && byte <= '9') {
                c->stamp = c->stamp * 10 + (byte - '0');
                continue;
            }
            token(c, now);
            c->matched = 0;
        }
        if (byte == MARKER[c->matched]) {
            if (++c->matched == 4) c->stamp = 0;
        } else {
            c->matched = byte == '"';
        }
    }
}

// Returns the bytes used, 0 where the head goes on.
static size_t read_head(struct connection *c, const char *data, size_t size) {
    size_t before = c->head_len, room = sizeof c->head - 1 - before;
    size_t taken = size < room ? size : room;
    memcpy(c->head + before, data, taken);
    c->head[c->head_len += taken] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (!room) die("endless head");
        return 0;
    }
    end[2] = 0;
    c->status = atoi(c->head + 9);
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->close_after = strcasestr(c->head, "\r\nconnection: close") != NULL;
    c->state = length ? LENGTH : CHUNK_SIZE;
    c->left = length ? strtol(length + 17, NULL, 10) : 0;
    return (size_t)(end + 4 - c->head) - before;
}

static int framing(struct connection *c, char byte) {  // returns 1 where the answer is whole
    if (c->state == CHUNK_SIZE) {
        if (byte == '\n') {
            c->state = c->left ? CHUNK_DATA : TRAILER;
            c->line = 0;
        } else if (byte != '\r') {
            int digit = byte >= '0' && byte <= '9' ? byte - '0' : (byte | 32) >= 'a' && (byte | 32) <= 'f' ? (byte | 32) - 'a' + 10 : -1;
            if (digit < 0) die("chunk size");
            c->left = c->left * 16 + digit;
        }
    } else if (c->state == CHUNK_END) {
        if (byte == '\n') {
            c->state = CHUNK_SIZE;
            c->left = 0;
        }
    } else if (byte == '\n') {
        if (!c->line) return 1;
        c->line = 0;
    } else if (byte != '\r') {
        c->line++;
    }
    return 0;
}

static void readable(struct connection *c) {
    static char buffer[262144];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    long long now = now_ns();
    if (got <= 0) {
        failed("a connection ended early");
        dial_again(c);
        return;
    }
    size_t at = 0, size = (size_t)got;
    while (at < size) {
        if (c->state == HEAD) {
            size_t used = read_head(c, buffer + at, size - at);
            if (!used) return;
            at += used;
            if (c->state == LENGTH && !c->left && answered(c)) return;
        } else if (c->state == LENGTH || c->state == CHUNK_DATA) {
            size_t part = size - at < (size_t)c->left ? size - at : (size_t)c->left;
            payload(c, buffer + at, part, now);
            at += part;
            c->left -= (long)part;
            if (c->left) return;
            if (c->state == CHUNK_DATA) c->state = CHUNK_END;
            else if (answered(c)) return;
        } else if (framing(c, buffer[at++]) && answered(c)) {
            return;
        }
    }
}

static int ascending(const void *a, const void *b) {
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *s) {
    if (!s->count) {
        printf(", \"%s\": null", name);
        return;
    }
    qsort(s->at, s->count, sizeof *s->at, ascending);
    printf(", \"%s\": {\"p50\": %.1f, \"p99\": %.1f}", name, (double)s->at[s->count / 2] / 1e3,
           (double)s->at[s->count - 1 - s->count / 100] / 1e3);
}

static void until(long long end) {
    struct epoll_event events[256];
    while (now_ns() < end) {
        int count = epoll_wait(epoll_fd, events, 256, 10);
        for (int i = 0; i < count; i++) readable(events[i].data.ptr);
    }
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: client PORTS CONNECTIONS WARM_S SECONDS TOKENS PACE_MS\n");
        return 2;
    }
    for (char *port = strtok(argv[1], ","); port && port_count < 64; port = strtok(NULL, ",")) ports[port_count++] = atoi(port);
    connections = atoi(argv[2]);
    double warm_s = atof(argv[3]), measured_s = atof(argv[4]);
    tokens = atol(argv[5]);
    pace_ms = atol(argv[6]);
    struct rlimit fds;
    getrlimit(RLIMIT_NOFILE, &fds);
    fds.rlim_cur = fds.rlim_max;
    setrlimit(RLIMIT_NOFILE, &fds);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    if (!all) die("calloc");
    for (int i = 0; i < connections; i++) {
        all[i].index = i;
        dial(&all[i]);
    }
    long long begun = now_ns();
    until(begun + (long long)(warm_s * 1e9));
    printf("BEGIN\n");
    fflush(stdout);
    measuring = 1;
    begun = now_ns();
    until(begun + (long long)(measured_s * 1e9));
    double seconds = (double)(now_ns() - begun) / 1e9;
    measuring = 0;
    printf("END\n");
    fflush(stdout);
    if (getchar() == EOF) return 1;
    printf("{\"seconds\": %.4f, \"requests\": %ld, \"chunks\": %ld, \"errors\": %ld", seconds, requests, chunks, errors);
    print_samples("latency_us", &latency);
    print_samples("ttft_us", &ttft);
    print_samples("delay_us", &delay);
    printf("}\n");
    return 0;
}
