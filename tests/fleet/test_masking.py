from __future__ import annotations

from gpuserved.fleet.queries import masked_text

PROFILE = """\
model = "a/b"
api_key = "s3cret"
env.HTTP_PROXY = "s3cret"
[sim]
kv_cache_tokens = 400000
[env]
# a comment
HF_TOKEN = "s3cret"
"QUOTED" = '''
s3cret
[s3cret]
'''
[limits]
drain_s = 3
"""


def test_what_may_be_secret_is_masked_and_nothing_else() -> None:
    masked = masked_text(PROFILE)
    assert "s3cret" not in masked
    for line in (
        'model = "a/b"',
        "kv_cache_tokens = 400000",
        "[env]",
        "# a comment",
        "[limits]",
        "drain_s = 3",
    ):
        assert line in masked.splitlines()
    assert "HF_TOKEN = ********" in masked


def test_a_profile_without_secrets_is_shown_as_it_is() -> None:
    text = 'model = "x"\n\n[vllm]\ngpu_memory_utilization = 0.9\n'
    assert masked_text(text) == text
