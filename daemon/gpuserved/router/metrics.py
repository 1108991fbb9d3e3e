"""The router's figures in Prometheus text format (exposition format 0.0.4), written by hand: a few counters."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from gpuserved.router.registry import Registry
from gpuserved.router.replica import Replica
from gpuserved.router.tenants import Account, Tenants

FIRST_BYTE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_P = "gpuserve_router_"


class Histogram:
    """Cumulative when written, plain counts inside."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(FIRST_BYTE_BUCKETS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(FIRST_BYTE_BUCKETS_S, seconds)] += 1
        self.total_s += seconds


class Metrics:
    """All counters of one router."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.replays: Counter[tuple[str, str]] = Counter()
        self.cuts: Counter[str] = Counter()
        self.first_byte: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.connections_refused = 0

    def ended(self, model: str, code: int) -> None:
        """A request ended. `model` is a served name or empty; 499: its client left first."""
        self.requests[model, code] += 1

    def replayed(self, model: str, cause: str) -> None:
        """A request is sent again."""
        self.replays[model, cause] += 1

    def cut(self, model: str) -> None:
        """An answer that had begun ended early."""
        self.cuts[model] += 1

    def began(self, model: str, after_s: float) -> None:
        """An answer began, so long after its request was whole."""
        self.first_byte[model].observe(after_s)

    def refused_connection(self) -> None:
        """One over the cap."""
        self.connections_refused += 1

    @property
    def requests_total(self) -> int:
        """All that ended."""
        return sum(self.requests.values())

    @property
    def rejected_total(self) -> int:
        """429 and 503."""
        return sum(n for (_, code), n in self.requests.items() if code in {429, 503})


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _family(name: str, kind: str, what: str, rows: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {_P}{name} {what}"
    yield f"# TYPE {_P}{name} {kind}"
    for labels, value in rows:
        yield f"{_P}{name}{labels} {value}"


def _histogram(metrics: Metrics) -> Iterator[str]:
    name = f"{_P}first_byte_seconds"
    yield f"# HELP {name} From a whole request to the first byte of its answer."
    yield f"# TYPE {name} histogram"
    for model, histogram in metrics.first_byte.items():
        label = f'model="{_label(model)}"'
        running = 0
        for bound, count in zip(FIRST_BYTE_BUCKETS_S, histogram.counts, strict=False):
            running += count
            yield f'{name}_bucket{{{label},le="{bound:g}"}} {running}'
        running += histogram.counts[-1]
        yield f'{name}_bucket{{{label},le="+Inf"}} {running}'
        yield f"{name}_sum{{{label}}} {histogram.total_s}"
        yield f"{name}_count{{{label}}} {running}"


def _keys(accounts: Iterable[Account]) -> Iterator[str]:
    """Of each API key, by its name in the keys file."""
    named = [(f'key="{_label(account.name)}"', account) for account in accounts]
    if not named:
        return
    yield from _family(
        "key_requests_total",
        "counter",
        "Requests of an API key.",
        [(f"{{{k}}}", a.requests) for k, a in named],
    )
    yield from _family(
        "key_limited_total", "counter", "Requests beyond the key's own limits.",
        [(f"{{{k}}}", a.limited) for k, a in named],
    )  # fmt: skip
    tokens = [(f'{{{k},kind="prompt"}}', a.prompt_tokens) for k, a in named]
    tokens += [(f'{{{k},kind="completion"}}', a.completion_tokens) for k, a in named]
    yield from _family("key_tokens_total", "counter", "Tokens of an API key, reported or estimated.", tokens)


def _prompts(replicas: list[Replica]) -> Iterator[str]:
    """Of replicas that are chosen by prompt: what is believed of their prefix caches."""
    known = [(_of(r), r.mirror) for r in replicas if r.mirror.asked_bytes]
    if not known:
        return
    yield from _family(
        "prompt_bytes_total", "counter", "Text of prompts sent to a replica, by this router or another.",
        [(of, m.asked_bytes) for of, m in known],
    )  # fmt: skip
    yield from _family(
        "prompt_cached_bytes_total", "counter", "Of it, what the replica was believed to have in its prefix cache.",
        [(of, m.found_bytes) for of, m in known],
    )  # fmt: skip
    yield from _family(
        "prefix_mirror_bytes", "gauge", "Text that a replica is believed to have in its prefix cache.",
        [(of, m.used_bytes) for of, m in known],
    )  # fmt: skip
    yield from _family(
        "prefix_mirror_ratio", "gauge", "Part of the engine's capacity that is believed in, after its own hit counters.",
        [(of, m.factor) for of, m in known],
    )  # fmt: skip


def _of(replica: Replica) -> str:
    return f'{{replica="{_label(replica.id)}",generation="{replica.generation}"}}'


def render(metrics: Metrics, registry: Registry, tenants: Tenants, *, connections: int) -> bytes:
    """The page `/metrics` answers with.

    :param connections: of clients, now.
    """
    replicas = list(registry.replicas())
    lines = [
        *_family("connections", "gauge", "Client connections.", [("", connections)]),
        *_family(
            "connections_refused_total", "counter", "Connections over the cap.",
            [("", metrics.connections_refused)],
        ),
        *_family(
            "in_flight", "gauge", "Requests in flight on a replica.", [(_of(r), r.in_flight) for r in replicas]
        ),
        *_family(
            "replica_requests_total", "counter", "Tries sent to a replica.",
            [(_of(r), r.requests_total) for r in replicas],
        ),
        *_family(
            "replica_failures_total", "counter", "Failures of a replica as seen by the router.",
            [(_of(r), r.failures_total) for r in replicas],
        ),
        *_family(
            "replica_in_rotation", "gauge", "1: takes requests.",
            [(_of(r), int(r.rotation.value == "in")) for r in replicas],
        ),
        *_family(
            "requests_total", "counter", "Requests that ended, by status code; 499: the client left first.",
            [(f'{{model="{_label(m)}",code="{c}"}}', n) for (m, c), n in metrics.requests.items()],
        ),
        *_family(
            "replays_total", "counter", "Requests sent again, by cause.",
            [(f'{{model="{_label(m)}",cause="{c}"}}', n) for (m, c), n in metrics.replays.items()],
        ),
        *_family(
            "cut_streams_total", "counter", "Begun answers whose replica died.",
            [(f'{{model="{_label(m)}"}}', n) for m, n in metrics.cuts.items()],
        ),
        *_family(
            "queued", "gauge", "Requests that wait for a replica.",
            [(f'{{model="{_label(m.name)}"}}', m.queued) for m in registry.models.values()],
        ),
        *_keys(tenants.accounts()),
        *_prompts(replicas),
        *_histogram(metrics),
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()


def of_router(page: bytes, row: int) -> bytes:
    """The page of one router of several: each figure says whose it is, for the next one asked may be another's."""
    label = b'router="%d"' % row
    lines: list[bytes] = []
    for line in page.split(b"\n"):
        name, brace, rest = line.partition(b"{")
        if line and not line.startswith(b"#"):
            if brace:
                line = name + b"{" + label + b"," + rest  # noqa: PLW2901 - the same line, labelled
            else:
                name, _, value = line.partition(b" ")
                line = name + b"{" + label + b"} " + value  # noqa: PLW2901
        lines.append(line)
    return b"\n".join(lines)
