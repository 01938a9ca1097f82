"""Settings that check themselves, and where they come from."""

import pytest

from engine.config import Bounds, SamplingConfig, ServerConfig, parse_setting
from engine.errors import ConfigError


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf"), float("-inf")])
def test_a_value_outside_its_bounds_is_named_with_them(value):
    with pytest.raises(ConfigError, match=r"warmth is .*; use 0 to 2"):
        Bounds(0, 2).check("warmth", value)


@pytest.mark.parametrize(
    "given",
    [
        {"port": -1},
        {"port": 65536},
        {"slots": 257},
        {"idle_s": 0},
        {"silence_s": float("nan")},
        {"session_s": 86_401},
        {"drain_s": 21},
        {"device": "tpu"},
    ],
)
def test_a_server_does_not_start_with_a_bad_setting(given):
    (name,) = given
    with pytest.raises(ConfigError, match=f"{name} is "):
        ServerConfig(**given)


def test_an_option_wins_over_the_environment_and_that_over_the_default():
    environ = {"PERSONAPLEX_PORT": "9000", "PERSONAPLEX_SLOTS": "3", "PERSONAPLEX_TOKEN": ""}
    config = ServerConfig.from_environment(environ, port=9001)
    assert (config.port, config.slots, config.token, config.idle_s) == (9001, 3, "", 60.0)


def test_a_bad_variable_is_named():
    with pytest.raises(ConfigError, match="PERSONAPLEX_SLOTS is 'many'; use a number"):
        ServerConfig.from_environment({"PERSONAPLEX_SLOTS": "many"})


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("https://a, https://b,", ("*",), ("https://a", "https://b")),
        ("7", 0, 7),
        ("1.5", 60.0, 1.5),
        ("1", False, True),
        ("yes", False, True),
        ("off", True, False),
        ("word", "", "word"),
    ],
)
def test_a_setting_takes_the_type_of_its_default(text, default, value):
    assert parse_setting("name", text, default) == value


@pytest.mark.parametrize(("text", "default"), [("2.5", 0), ("x", 0.0), ("maybe", False)])
def test_a_text_that_is_no_such_value_is_refused(text, default):
    with pytest.raises(ConfigError, match="name is "):
        parse_setting("name", text, default)


def test_the_defaults_of_sampling_are_those_of_the_wire():
    sampling = SamplingConfig()
    assert (sampling.text_temperature, sampling.audio_temperature) == (0.7, 0.8)
    assert (sampling.text_top_k, sampling.audio_top_k) == (25, 250)


# -- what strangers set ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["secret\r", "secret\r\n", "  secret ", '"secret"', "'secret'", "“secret”", ' "secret"\n'],
)
def test_a_token_from_the_environment_is_trimmed_with_a_warning(caplog, text):
    config = ServerConfig.from_environment({"PERSONAPLEX_TOKEN": text})
    assert config.token == "secret"
    assert "PERSONAPLEX_TOKEN has blanks, a line end or quotes around it" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("text", [" ", "\r\n", '""', "' '", "“”"])
def test_a_token_of_blanks_or_quotes_alone_opens_no_server(text):
    environ = {"PERSONAPLEX_TOKEN": text}
    with pytest.raises(ConfigError, match="PERSONAPLEX_TOKEN has nothing but blanks or quotes"):
        ServerConfig.from_environment(environ)
    assert ServerConfig.from_environment(environ, token="secret").token == "secret"


@pytest.mark.parametrize("text", ["secret", "open sesame", "it's", '"', "'a\""])
def test_a_token_with_nothing_around_it_is_taken_as_it_is(caplog, text):
    assert ServerConfig.from_environment({"PERSONAPLEX_TOKEN": text}).token == text
    assert not caplog.text


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", ""),
        ("/", ""),
        ("voice", "/voice"),
        ("/voice/", "/voice"),
        ("/a/b", "/a/b"),
        ("https://h/a/", "https://h/a"),
    ],
)
def test_the_root_path_is_taken_with_and_without_slashes(given, path):
    assert ServerConfig(root_path=given).root_path == path


@pytest.mark.parametrize(
    "given", ["/a b", "/a//b", "/{x}", "ftp://h/voice", "/ü", "//evil.example", "/.."]
)
def test_what_is_no_path_is_refused(given):
    with pytest.raises(ConfigError, match="use /talk or https://HOST/talk"):
        ServerConfig(root_path=given)
