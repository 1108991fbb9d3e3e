from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.config.api_keys import read_keys
from gpuserved.config.daemon import (
    DaemonConfig,
    automatic_routers,
    load_daemon_config,
    parse_daemon_config,
    parse_listen,
    read_hf_token,
)

KEY_LINE = "alice:" + hashlib.sha256(b"key").hexdigest()


def write(folder: Path, text: str) -> Path:
    path = folder / "gpuserved.toml"
    path.write_text(text, "utf-8")
    return path


def test_no_file_means_the_defaults() -> None:
    config = load_daemon_config(None)
    assert (config.listen, config.routers, config.orphan_ttl_s, config.gpu_provider) == (
        "127.0.0.1:8000", 1, None, "auto",
    )  # fmt: skip


def test_flags_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path, '[router]\nlisten = "127.0.0.1:9000"\nkeys_file = "keys"\n[supervisor]\norphan_ttl_s = 60\n'
    )
    config = load_daemon_config(path)
    assert (config.listen, config.keys_file, config.orphan_ttl_s) == (
        "127.0.0.1:9000",
        tmp_path / "keys",
        60.0,
    )
    assert config.with_flags(listen="[::1]:7000").listen == "[::1]:7000"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[router]\nlisten = 8000\n", 2, "router.listen: expected a string"),
        ('[router]\nlisten = "nowhere"\n', 2, "not an address"),
        ("[router]\nlissten = 1\n", 2, "unknown key"),
        ("[rooter]\n", 1, "unknown key"),
        ("[router]\nrouters = 0\n", 2, 'expected "auto" or a number from 1 to 64'),
        ("[router]\nrouters = true\n", 2, 'expected "auto" or a number from 1 to 64'),
        ('[router]\nrouters = "many"\n', 2, 'expected "auto" or a number from 1 to 64'),
        ("[router]\naccess_log = 1\n", 2, "expected true, false or a path"),
        ('[router]\ndrain_s = "long"\n', 2, "router.drain_s: expected a number"),
        ('[router]\ninsecure = "no"\n', 2, "expected true or false"),
        ("[supervisor]\nhang_timeout_s = -1\n", 2, "expected a number"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(Invalid) as refused:
        load_daemon_config(path)
    assert refused.value.message.startswith(f"{path}:{line}:")
    assert says in refused.value.message


def test_the_access_log_is_on_and_may_be_elsewhere_or_off(tmp_path: Path) -> None:
    logs = Path("/logs")
    assert load_daemon_config(None).access_log_in(logs) == logs / "access.log"
    for written, expected in (
        ("false", None),
        ("true", logs / "access.log"),
        ('"a.log"', tmp_path / "a.log"),
    ):
        config = load_daemon_config(write(tmp_path, f"[router]\naccess_log = {written}\n"))
        assert config.access_log_in(logs) == expected


def test_routers_by_number_or_by_processors(tmp_path: Path) -> None:
    assert load_daemon_config(write(tmp_path, "[router]\nrouters = 4\n")).routers == 4
    assert load_daemon_config(write(tmp_path, '[router]\nrouters = "auto"\n')).routers >= 1
    assert [automatic_routers(cpus) for cpus in (1, 2, 16, 64, 256)] == [1, 1, 1, 4, 8]


@pytest.mark.parametrize("listen", ["0.0.0.0:8000", "[::]:8000", "10.1.2.3:8000", "gpu-host:8000"])
def test_a_public_address_without_keys_is_refused_unless_insecure(tmp_path: Path, listen: str) -> None:
    config = DaemonConfig().with_flags(listen=listen)
    with pytest.raises(Invalid, match="no API keys"):
        config.checked()
    assert config.with_flags(insecure=True).checked().insecure
    keys = tmp_path / "keys"
    keys.write_text("# none yet\n", "utf-8")
    with pytest.raises(Invalid, match="no API keys"):
        config.with_flags(keys_file=str(keys)).checked()
    keys.write_text(KEY_LINE, "utf-8")
    assert config.with_flags(keys_file=str(keys)).checked().keys_file == keys


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "localhost:8000", "[::1]:8000", "8000", "127.9.9.9:80"])
def test_an_address_of_this_machine_needs_no_keys(listen: str) -> None:
    assert DaemonConfig().with_flags(listen=listen).checked()


@pytest.mark.parametrize("listen", ["", ":", "a:b:1", "127.0.0.1:0", "h:65536", "[1.2.3.4]:1", "h:\uff11"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(Invalid, match="not an address"):
        parse_listen(listen)


def test_keys_are_names_and_hashes(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# people\n\n{KEY_LINE.upper().replace('ALICE', 'alice')}\n", "utf-8")
    assert [(key.name, key.sha256) for key in read_keys(keys)] == [("alice", KEY_LINE.split(":")[1])]


@pytest.mark.parametrize("bad", ["gs-plainkey", "alice:gs-plainkey", "bob:" + "g" * 64])
def test_a_line_that_may_be_a_key_itself_is_not_repeated(tmp_path: Path, bad: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY_LINE}\n{bad}\n", "utf-8")
    with pytest.raises(Invalid) as refused:
        read_keys(keys)
    assert f"{keys}:2:" in refused.value.message
    assert bad not in f"{refused.value.message} {refused.value.hint}"


def test_limits_stand_behind_the_hash(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY_LINE} rpm=60  tpd=1000000\n", "utf-8")
    (key,) = read_keys(keys)
    assert (key.requests_per_minute, key.tokens_per_minute, key.tokens_per_day) == (60, None, 1_000_000)


@pytest.mark.parametrize("limits", ["rpm=0", "rpm=1 rpm=2", "rps=5", "rpm=-1", "rpm", "rpm=1,tpm=2"])
def test_limits_that_are_none_are_refused_with_their_line(tmp_path: Path, limits: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"\n{KEY_LINE} {limits}\n", "utf-8")
    with pytest.raises(Invalid, match=":2:"):
        read_keys(keys)


def test_the_folder_s_own_keys_count_where_none_are_named(tmp_path: Path) -> None:
    assert DaemonConfig().with_default_keys(tmp_path).keys_file is None
    (tmp_path / "keys").write_text(f"{KEY_LINE}\n", "utf-8")
    assert DaemonConfig().with_default_keys(tmp_path).keys_file == tmp_path / "keys"
    other = DaemonConfig(keys_file=tmp_path / "other")
    assert other.with_default_keys(tmp_path) == other


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('tls_cert = "a.pem"', "without tls_key"),
        ('tls_key = "a.pem"', "without tls_cert"),
        ('trusted_proxies = ["10.0.0.0/33"]', "no network"),
        ('trusted_proxies = ["everybody"]', "no network"),
        ('trusted_proxies = "10.0.0.0/8"', "list of strings"),
    ],
)
def test_what_of_the_front_is_wrong_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(Invalid, match=says) as refused:
        parse_daemon_config(f"[router]\n{line}\n", tmp_path / "gpuserved.toml")
    assert "gpuserved.toml:2" in refused.value.message


def test_proxies_are_networks_and_certificates_are_beside_the_file(tmp_path: Path) -> None:
    text = '[router]\ntrusted_proxies = ["10.1.2.3/8", "::1"]\ntls_cert = "c.pem"\ntls_key = "/k.pem"\n'
    config = parse_daemon_config(text, tmp_path / "gpuserved.toml")
    assert config.trusted_proxies == ("10.0.0.0/8", "::1/128")
    assert (config.tls_cert, config.tls_key) == (tmp_path / "c.pem", Path("/k.pem"))
    with pytest.raises(Invalid, match="cannot be read"):
        config.checked()


def test_a_key_name_is_used_once(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY_LINE}\n{KEY_LINE}\n", "utf-8")
    with pytest.raises(Invalid, match="used twice"):
        read_keys(keys)


def test_a_token_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hf_abc\n", "utf-8")
    path.chmod(0o644)
    with pytest.raises(Invalid, match="everybody can read") as refused:
        read_hf_token(path)
    assert "hf_abc" not in refused.value.message
    path.chmod(0o640)
    assert read_hf_token(path) == "hf_abc"
    path.write_text("two words\n", "utf-8")
    with pytest.raises(Invalid, match="one token"):
        read_hf_token(path)


def test_a_webhook_is_a_url_and_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "gpuserved.toml"
    config = parse_daemon_config('[supervisor]\nwebhook = "https://hooks.example/T0/secret"\n', path)
    assert config.webhook == "https://hooks.example/T0/secret"
    assert "secret" not in repr(config)
    with pytest.raises(Invalid, match=r"gpuserved.toml:2: supervisor.webhook: .*http"):
        parse_daemon_config('[supervisor]\nwebhook = "hooks.example"\n', path)
