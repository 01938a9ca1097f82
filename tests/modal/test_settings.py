"""What an operator sets: tidied, and refused on the laptop with the value and the fix."""

import subprocess
import sys

import pytest

from demo.cloud.settings import check_deployment, tidy
from engine.errors import ConfigError
from tests.modal.rehearsal import ROOT

P = "PERSONAPLEX_"


def refuse(**settings: str) -> str:
    with pytest.raises(ConfigError) as refused:
        check_deployment({P + name: value for name, value in settings.items()})
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"SLOTS": "many"}, ["PERSONAPLEX_SLOTS is 'many'", "use a number"]),
        ({"SLOTS": "400"}, ["slots is 400", "use 0 to 256"]),
        ({"GPU": "none"}, ["GPU is none", "PERSONAPLEX_MODEL=embedded"]),
        ({"GPU": "A10G,"}, ["GPU is 'A10G,'", "a name is missing"]),
        ({"GPU": " "}, ["GPU is ' '", "a name is missing"]),
        ({"GPU": "A11"}, ["GPU is 'A11'", "A10G", "L40S", "new:A11"]),
        ({"GPU": "A10G:2"}, ["one GPU", "PERSONAPLEX_GPU=A10G"]),
        ({"GPU": "new:"}, ["GPU is 'new:'", "one name after new:"]),
        ({"GPU": "new:A10G:2"}, ["GPU is 'new:A10G:2'", "one name"]),
        ({"GPU": "none", "DEVICE": "cuda"}, ["GPU is none", "PERSONAPLEX_MODEL=embedded"]),
        ({"GPU": "none", "DEVICE": "cpu"}, ["GPU is none", "PERSONAPLEX_MODEL=embedded"]),
        ({"GPU": "A10G,none", "MODEL": "embedded"}, ["none stands alone"]),
        ({"TIMEOUT": "an hour"}, ["TIMEOUT is 'an hour'", "a whole number from 60 to 86400"]),
        ({"TIMEOUT": "9" * 5000}, ["TIMEOUT is '999", "a whole number from 60 to 86400"]),
        ({"TIMEOUT": "0"}, ["TIMEOUT is 0", "use 60 to 86400"]),
        ({"CPU": "0"}, ["CPU is 0"]),
        ({"MEMORY": "16"}, ["MEMORY is 16"]),
        ({"MAX_CONTAINERS": "0"}, ["MAX_CONTAINERS is 0"]),
        ({"MAX_INPUTS": "0"}, ["MAX_INPUTS is 0"]),
        ({"TARGET_INPUTS": "0"}, ["TARGET_INPUTS is 0"]),
        ({"SCALEDOWN_WINDOW": "1"}, ["use 2 to 1200"]),
        ({"SCALEDOWN_WINDOW": "1201"}, ["use 2 to 1200"]),
        ({"MIN_CONTAINERS": "11"}, ["MIN_CONTAINERS is 11", "PERSONAPLEX_MAX_CONTAINERS"]),
        ({"VOICE": "NOBODY"}, ["PERSONAPLEX_VOICE is 'NOBODY'", "NATF2"]),
        ({"MAX_INPUTS": "3", "SLOTS": "4"}, ["PERSONAPLEX_SLOTS is 4", "PERSONAPLEX_MAX_INPUTS"]),
        ({"TARGET_INPUTS": "101"}, ["TARGET_INPUTS is 101", "PERSONAPLEX_MAX_INPUTS"]),
        ({"SESSION_S": "3600"}, ["SESSION_S is 3600", "PERSONAPLEX_TIMEOUT, 3600 s"]),
        ({"TIMEOUT": "900"}, ["SESSION_S is 1800", "PERSONAPLEX_TIMEOUT, 900 s"]),
        ({"PROXY_AUTH": "yess"}, ["PROXY_AUTH is 'yess'", "use 1 (on, yes, true)"]),
        ({"SNAPSHOT": "2"}, ["SNAPSHOT is '2'"]),
        ({"AUTOSCALE": "door"}, ["AUTOSCALE is 'door'", "0, 1, places"]),
        ({"SLOT": "4"}, ["no setting PERSONAPLEX_SLOT;", "do you mean PERSONAPLEX_SLOTS?"]),
        ({"MODEL": "./weights"}, ["MODEL is './weights'", "/cache/…"]),
        (
            {"TRANSCRIBE": "/home/me/stt"},
            ["TRANSCRIBE is '/home/me/stt'", "a folder of the volume"],
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_value_and_the_way_out(settings, words):
    said = refuse(**settings)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "address",
    ["api.example", "https://", "https://[bad", "https://api example", "https://a:port/v1"],
)
def test_a_text_model_without_an_address_is_refused(address):
    with pytest.raises(ConfigError, match=r"DEEPSEEK_BASE_URL is '.*'; use https://"):
        check_deployment({"DEEPSEEK_BASE_URL": address})


@pytest.mark.parametrize("word", ["1", "yes", "true", "on", "YES", " On "])
@pytest.mark.parametrize("name", ["PROXY_AUTH", "SNAPSHOT"])
def test_a_switch_is_on_in_every_word_for_it(name, word):
    environ = {P + name: word}
    check_deployment(environ)
    assert environ[P + name] == "1"


@pytest.mark.parametrize(
    ("given", "told"),
    [("a10g", "A10G"), ("L40S, a100-40gb", "L40S,A100-40GB"), ("new:b400", "B400"), ("A10", "A10")],
)
def test_gpus_are_written_as_modal_reads_them(given, told):
    environ = {P + "GPU": given}
    check_deployment(environ)
    assert environ[P + "GPU"] == told


def test_good_settings_pass():
    config = check_deployment({P + "MODEL": "/cache/mine", P + "SESSION_S": "3599"})
    assert config.model == "/cache/mine"
    assert check_deployment({P + "GPU": "none", P + "MODEL": "embedded"}).model == "embedded"


def test_line_ends_quotes_and_blanks_are_left_out_and_said_without_the_value():
    environ = {
        "PERSONAPLEX_GPU": '"L40S"', "DEEPSEEK_API_KEY": "sk-1\r", "HF_TOKEN": " 'hf_1'\n",
        "PERSONAPLEX_TOKEN": "“word”", "PERSONAPLEX_FRAME_ANCESTORS": "'self'", "OTHER": " x ",
        "PERSONAPLEX_VOICE": "NATF2",
    }  # fmt: skip
    told = tidy(environ)
    assert environ == {
        "PERSONAPLEX_GPU": "L40S", "DEEPSEEK_API_KEY": "sk-1", "HF_TOKEN": "hf_1",
        "PERSONAPLEX_TOKEN": "word", "PERSONAPLEX_FRAME_ANCESTORS": "'self'", "OTHER": " x ",
        "PERSONAPLEX_VOICE": "NATF2",
    }  # fmt: skip
    assert len(told) == 4
    assert not [line for line in told if "sk-1" in line or "hf_1" in line or "word" in line]


@pytest.mark.parametrize("text", [" ", '""', "\n"])
def test_a_token_of_blanks_or_quotes_alone_is_refused_after_tidying_too(text):
    environ = {"PERSONAPLEX_TOKEN": text}
    tidy(environ)
    with pytest.raises(ConfigError, match="PERSONAPLEX_TOKEN has nothing but blanks or quotes"):
        check_deployment(environ)


@pytest.mark.parametrize("text", ["'word\"", '"', "it's"])
def test_a_quote_without_its_partner_belongs_to_the_value(text):
    environ = {"PERSONAPLEX_TOKEN": text}
    assert (tidy(environ), environ) == ([], {"PERSONAPLEX_TOKEN": text})


def test_settings_are_checked_by_a_bare_python():
    """No packages at all: what `pip install modal` brings is not needed for it either."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from engine.config import ServerConfig\n"
        "from engine.errors import ConfigError\n"
        "from demo.cloud.settings import check_deployment\n"
        "check_deployment({})\n"
        "for refuse in (ServerConfig.from_environment, check_deployment):\n"
        "    try:\n"
        "        refuse({'PERSONAPLEX_SLOTS': 'many'})\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "PERSONAPLEX_SLOTS is 'many'; use a number such as 0\n" * 2, done.stderr
