"""The mirror of a prefix cache, and the queue of prompts beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.policy.mirror import BYTES_PER_TOKEN, FACTOR_MIN, Mirror
from gpuserved.core.policy.prefill import PATIENCE, Prefill
from gpuserved.core.policy.prefix_key import PrefixKey


def prompt(name: int, blocks: int, shared: int = 0) -> PrefixKey:
    """Blocks of 400 bytes, 100 tokens, of which the first `shared` are everybody's."""
    digests = tuple(b"%08d" % (i if i < shared else 1000 * (name + 1) + i) for i in range(blocks))
    return PrefixKey(digests, tuple(400 * (i + 1) for i in range(blocks)), 400 * blocks + 40)


prompts = st.builds(prompt, st.integers(0, 20), st.integers(0, 12), st.integers(0, 4))
figures = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6))


@given(st.lists(prompts | figures | st.integers(1, 5000), max_size=60), st.integers(1, 5000))
def test_the_mirror_never_exceeds_its_bound(
    steps: list[PrefixKey | tuple[float, float] | int], capacity: int
) -> None:
    mirror = Mirror(capacity)
    for step in steps:
        if isinstance(step, PrefixKey):
            before = mirror.cached_bytes(step)
            assert mirror.sent(step) == pytest.approx(mirror.tokens(step.size_bytes - before))
            if step.blocks and step.ends[-1] <= mirror.bound_bytes:
                assert mirror.cached_bytes(step) == step.ends[-1]
        elif isinstance(step, tuple):
            mirror.learn_counters(min(step), max(step))
        else:
            mirror.learn_capacity(step)
        assert 0 <= mirror.used_bytes <= mirror.bound_bytes
        assert FACTOR_MIN <= mirror.factor <= 1
        assert mirror.bound_bytes == pytest.approx(
            mirror.capacity_tokens * mirror.bytes_per_token * mirror.factor
        )


def test_the_tail_of_the_oldest_prompt_goes_first() -> None:
    mirror = Mirror(1000)
    old, new = prompt(1, 6, shared=2), prompt(2, 6, shared=2)
    mirror.sent(old)
    mirror.sent(new)
    assert mirror.cached_bytes(new) == 2400
    assert mirror.cached_bytes(old) == 2400
    mirror.sent(prompt(3, 3))
    assert mirror.cached_bytes(new) == 2400
    assert mirror.cached_bytes(old) == 400 * 3
    mirror.clear()
    assert (len(mirror), mirror.used_bytes, mirror.cached_bytes(new)) == (0, 0, 0)


def _round(mirror: Mirror, at: int, hit_rate: float, counters: list[float], bytes_per_token: float) -> None:
    for n in range(8):
        key = prompt(at * 8 + n, 10)
        mirror.sent(key)
        mirror.sent(key)
        counters[1] += 2 * key.size_bytes / bytes_per_token
    counters[0] = counters[1] * hit_rate
    mirror.learn_counters(*counters)


def test_the_engines_counters_correct_the_bound_and_bytes_per_token() -> None:
    mirror, counters = Mirror(50_000), [0.0, 0.0]
    mirror.learn_counters(0.0, 0.0)
    # It promises half of the tokens; the engine finds a tenth.
    for at in range(10):
        _round(mirror, at, 0.1, counters, 3.0)
    assert mirror.factor < 0.3
    assert mirror.bytes_per_token == pytest.approx(3.0)
    for at in range(30):
        _round(mirror, at, 0.9, counters, 3.0)
    assert mirror.factor == 1.0


def test_counters_that_cover_more_than_was_sent_say_nothing_about_bytes() -> None:
    mirror, counters = Mirror(50_000), [0.0, 0.0]
    mirror.learn_counters(0.0, 0.0)
    _round(mirror, 0, 0.5, counters, 0.9)
    assert mirror.bytes_per_token == BYTES_PER_TOKEN
    mirror.unread()
    _round(mirror, 1, 0.5, counters, 3.0)
    assert mirror.bytes_per_token == BYTES_PER_TOKEN
    # A restart of the engine behind the same address: the counters begin again, and its cache is empty.
    assert len(mirror)
    mirror.learn_counters(0.0, 10.0)
    assert (len(mirror), mirror.factor) == (0, 1.0)


def test_a_queue_ends_with_the_first_byte_or_when_it_must_have() -> None:
    queue = Prefill()
    queue.pace = 1000.0
    first = queue.sent(500, now=0.0)
    second = queue.sent(1500, now=0.0)
    assert queue.tokens(0.1) == 2000
    queue.begun(first, 0.5, streams=True)
    assert queue.pace == pytest.approx(1000.0)
    queue.begun(second, 1.0, streams=True)
    assert queue.pace == pytest.approx(1125.0)
    assert queue.tokens(1.0) == 0
    third = queue.sent(1125, now=2.0)
    assert queue.tokens(2.0 + PATIENCE - 0.01) == 1125
    assert queue.tokens(2.0 + PATIENCE + 0.01) == 0
    queue.begun(third, 20.0, streams=False)
    assert queue.pace == pytest.approx(1125.0)
    queue.noted(1125, sent_at=19.5, now=20.0)
    assert (queue.tokens(20.4), queue.tokens(20.6)) == (1125, 0)
    queue.noted(1125, sent_at=10.0, now=21.0)
    assert queue.tokens(21.0) == 0


@given(
    st.lists(st.tuples(st.sampled_from(["sent", "noted", "begun", "wait"]), st.floats(0, 1e5)), max_size=50)
)
def test_a_queue_is_never_negative_and_ends_empty(steps: list[tuple[str, float]]) -> None:
    queue, now, entries = Prefill(), 0.0, []
    for what, amount in steps:
        if what == "sent":
            entries.append(queue.sent(amount, now))
        elif what == "noted":
            queue.noted(amount, now - 0.1, now)
        elif what == "begun" and entries:
            queue.begun(entries.pop(0), now, streams=True)
        else:
            now += amount / 1e4
        assert queue.tokens(now) >= -1e-3
    assert queue.tokens(now + 1e9) == 0


def test_what_was_asked_and_found_adds_up() -> None:
    mirror = Mirror()
    for key in (prompt(1, 3), prompt(1, 3), prompt(2, 2), prompt(1, 5)):
        mirror.sent(key)
    assert mirror.asked_bytes == 1240 + 1240 + 840 + 2040
    assert mirror.found_bytes == 0 + 1200 + 0 + 1200
    assert mirror.tokens(400) == 100


def counted(promised: float, found: float, *, tokens: float = 10_000, unread: bool = False) -> Mirror:
    """A mirror that promised this share of the prompts sent there, and whose engine then found that one."""
    mirror = Mirror(50_000)
    mirror.learn_counters(0.0, 0.0)
    size = int(4 * tokens / 2)
    first, second = (
        PrefixKey((b"a",), (int(2 * size * promised),), size),
        PrefixKey((b"a",), (int(2 * size * promised),), size),
    )
    mirror.sent(first)
    mirror.sent(second)
    if unread:
        mirror.unread()
    mirror.learn_counters(tokens * found, tokens)
    return mirror


def test_the_bound_shrinks_by_a_sixth_and_grows_by_a_tenth() -> None:
    assert counted(0.4, 0.1).factor == pytest.approx(0.85)
    assert counted(0.4, 0.38).factor == 1.0, "a difference of 3 % is no news"
    shrunk = counted(0.4, 0.1)
    shrunk.sent(PrefixKey((b"z",), (0,), 40_000))
    shrunk.learn_counters(6000, 20_000)
    assert shrunk.factor == pytest.approx(0.85 * 1.1)
    assert shrunk.bound_bytes == pytest.approx(50_000 * shrunk.bytes_per_token * shrunk.factor)


def test_few_tokens_are_no_news() -> None:
    assert counted(0.4, 0.1, tokens=4000).factor == 1.0
    assert counted(0.4, 0.1, tokens=4200).factor == pytest.approx(0.85)


def test_a_capacity_that_was_told_sets_the_bound_at_once() -> None:
    mirror = Mirror(1000)
    mirror.sent(prompt(1, 9))
    mirror.learn_capacity(0.0)
    assert mirror.capacity_tokens == 1000, "nothing is no capacity"
    mirror.learn_capacity(500.0)
    assert (mirror.bound_bytes, mirror.cached_bytes(prompt(1, 9))) == (2000, 2000)
    mirror.learn_capacity(1000.0)
    assert mirror.bound_bytes == 4000


def test_counters_of_the_first_look_are_where_counting_begins() -> None:
    mirror = Mirror(50_000)
    mirror.learn_counters(1e6, 2e6)
    mirror.sent(prompt(1, 200))
    mirror.learn_counters(1e6, 2e6 + 30_000)
    assert mirror.bytes_per_token == pytest.approx(80_040 / 30_000)
    assert len(mirror) == 200


def test_a_prompt_that_comes_again_is_young_again() -> None:
    mirror = Mirror(1000)
    old, other = prompt(1, 4), prompt(2, 4)
    for key in (old, other, old, prompt(3, 4)):
        mirror.sent(key)
    assert mirror.cached_bytes(old) == 4 * 400
    assert mirror.cached_bytes(other) == 2 * 400
    assert mirror.used_bytes == 10 * 400


def test_until_the_engine_says_more_a_mirror_holds_100000_tokens_and_never_more_than_200000_blocks() -> None:
    mirror = Mirror()
    assert mirror.bound_bytes == 400_000
    mirror.learn_capacity(1e12)
    for n in range(201):
        mirror.sent(
            PrefixKey(tuple(b"%d" % (1000 * n + i) for i in range(1000)), tuple(range(1, 1001)), 1000)
        )
    assert len(mirror) == 200_000
    mirror.learn_capacity(1.0)
    assert mirror.bound_bytes == 4, "what the engine says, however little"


def told(held: int = 0, sent: int = 40_000, found: float = 0.0, tokens: float = 10_000) -> Mirror:
    """A mirror that held so many bytes of the one prompt that was sent, after a look at the engine's counters."""
    mirror = Mirror()
    if held:
        mirror.sent(PrefixKey((b"held",), (held,), held))
    mirror.learn_counters(0.0, 0.0)
    mirror.sent(PrefixKey((b"held",) if held else (), (held,) if held else (), sent))
    mirror.learn_counters(found, tokens)
    return mirror


def test_up_to_3_percent_of_hits_too_few_are_no_news() -> None:
    assert told(held=1200).factor == 1.0
    assert told(held=1240).factor == pytest.approx(0.85)


def test_a_bound_shrinks_to_a_32nd_at_the_least() -> None:
    mirror, tokens = told(held=20_000), 10_000.0
    mirror.learn_capacity(1e9)
    for _ in range(50):
        mirror.sent(PrefixKey((b"held",), (20_000,), 20_000))
        mirror.sent(PrefixKey((b"held",), (20_000,), 20_000))
        tokens += 10_000
        mirror.learn_counters(0.0, tokens)
    assert mirror.factor == 1 / 32


def test_news_begin_with_4096_tokens_that_were_sent_and_asked_for() -> None:
    assert told(8000, 4 * 4096, 0.0, 4096).factor == pytest.approx(0.85)
    assert told(8000, 4 * 4096 - 4, 0.0, 4096).factor == 1.0
    assert told(8000, 4 * 4096, 0.0, 4095).factor == 1.0


@pytest.mark.parametrize(
    ("bytes_per_token", "believed"), [(1.99, False), (2.0, True), (8.0, True), (8.01, False)]
)
def test_two_to_eight_bytes_a_token_are_believed(bytes_per_token: float, believed: bool) -> None:
    found = told(sent=80_000, tokens=80_000 / bytes_per_token).bytes_per_token
    assert found == pytest.approx(bytes_per_token if believed else BYTES_PER_TOKEN)


def test_bytes_per_token_follow_the_latest_figures_and_remember_nine_tenths_of_those_before() -> None:
    mirror = told(sent=30_000)
    assert mirror.bytes_per_token == pytest.approx(3.0)
    mirror.sent(PrefixKey((), (), 50_000))
    mirror.learn_counters(0.0, 20_000)
    assert mirror.bytes_per_token == pytest.approx((0.9 * 30_000 + 50_000) / (0.9 * 10_000 + 10_000))


def test_counters_that_stand_still_are_no_restart_of_the_engine() -> None:
    mirror = told(held=400)
    mirror.learn_counters(0.0, 10_000)
    assert len(mirror) == 1
    mirror.learn_counters(0.0, 9_999)
    assert len(mirror) == 0
