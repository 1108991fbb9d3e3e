import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.telemetry.metrics_text import CAP_BYTES, histogram, read

RUNNING = "vllm:num_requests_running"
NAMES = frozenset({RUNNING, "vllm:kv_cache_usage_perc", "vllm:iteration_tokens_total_count"})


def test_values_are_summed_over_labels() -> None:
    text = b"""# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 4.0
vllm:num_requests_running_created{engine="1"} 99
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:iteration_tokens_total_count{engine="0"} 1.7e+01
"""
    assert read(text, NAMES) == {
        RUNNING: 7.0,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:iteration_tokens_total_count": 17.0,
    }


@pytest.mark.parametrize(
    "line",
    [
        b"vllm:num_requests_running NaN",
        b"vllm:num_requests_running +Inf",
        b"vllm:num_requests_running many",
        b'vllm:num_requests_running{a="b',
        b'vllm:num_requests_running{a="b"}',
        b"vllm:num_requests_running",
        b"x vllm:num_requests_running 3",
        b"vllm:num_requests_running_total 3",
    ],
)
def test_garbage_is_unknown_not_zero(line: bytes) -> None:
    assert read(line + b"\n", NAMES) == {}


def test_one_bad_series_makes_the_sum_unknown() -> None:
    text = b'vllm:num_requests_running{e="0"} 1\nvllm:num_requests_running{e="1"} NaN\n'
    assert read(text, NAMES) == {}


def test_labels_may_hold_anything() -> None:
    text = b'vllm:num_requests_running{m="a} 9 \\" { b"} 2\r\nvllm:num_requests_running{} 1 1700000000\n'
    assert read(text, NAMES) == {RUNNING: 3.0}


def test_what_is_beyond_the_cap_is_not_read() -> None:
    text = b"x 1\n" * (CAP_BYTES // 4) + b"vllm:num_requests_running 1\n"
    assert read(text, NAMES) == {}
    assert read(b"vllm:num_requests_running 1\n" + text, NAMES) == {RUNNING: 1.0}


@given(st.binary(max_size=300))
def test_no_input_raises(noise: bytes) -> None:
    found = read(noise + b"\nvllm:num_requests_running 5\n" + noise, NAMES)
    assert set(found) <= NAMES


def test_a_page_of_vllm_size_takes_no_time() -> None:
    bucket = b'vllm:request_%d_seconds_bucket{engine="0",le="%d",model_name="meta-llama/Llama-3.1-8B-Instruct"} 12.0\n'
    page = b"".join(bucket % (n // 20, n % 20) for n in range(1000)) + b"vllm:num_requests_running 1\n"
    assert len(page) > 80_000
    taken = []
    for _ in range(50):
        began = time.process_time()
        read(page, NAMES)
        taken.append(time.process_time() - began)
    assert sorted(taken)[len(taken) // 2] < 0.0005


def test_a_histogram_is_summed_over_its_other_labels() -> None:
    text = b"""# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="a \\"b\\" le=\\"9\\""} 3
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1",model_name="a"} 4
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="a"} 9
vllm:time_to_first_token_seconds_count{engine="0",model_name="a"} 9
other_vllm:time_to_first_token_seconds_bucket{le="0.1"} 100
"""
    assert histogram(text, "vllm:time_to_first_token_seconds") == {0.1: 7.0, math.inf: 9.0}


@pytest.mark.parametrize(
    "line",
    [
        b'x_bucket{le="many"} 3',
        b'x_bucket{le="0.1"} NaN',
        b'x_bucket{le="0.1} 3',
        b"x_bucket 3",
        b"x_bucket{}",
    ],
)
def test_a_broken_histogram_is_none(line: bytes) -> None:
    assert histogram(line + b"\n", "x") == {}


@given(st.binary(max_size=300))
def test_no_bytes_break_the_histogram_reader(noise: bytes) -> None:
    assert isinstance(histogram(b'x_bucket{le="0.1"} 3\n' + noise, "x"), dict)
