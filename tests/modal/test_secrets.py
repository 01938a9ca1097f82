"""Which secrets a deployment takes, asked of a stand-in through the real client."""

import subprocess
import sys

import pytest

from tests.modal.platform import Platform
from tests.modal.rehearsal import (
    ROOT,
    SECONDS,
    SECRETS,
    anonymous_secret,
    clean,
    definition,
    deploy,
)

HF = {"huggingface-secret": ["HF_TOKEN"]}


def test_a_missing_hugging_face_secret_ends_the_deployment_with_the_way_out(tmp_path):
    with Platform() as platform:
        done = deploy(platform, tmp_path)
    assert done.returncode == 1
    lines = (done.stdout + done.stderr).splitlines()
    assert "secret huggingface-secret not found; create it (docs/modal.md, 3):" in lines
    assert "  modal secret create huggingface-secret HF_TOKEN=hf_..." in lines
    assert not platform.requests("FunctionCreate")
    assert "Traceback" not in done.stdout + done.stderr


def test_without_a_deepseek_secret_routing_is_off_and_the_deployment_goes_on(tmp_path):
    with Platform(secrets=dict(HF)) as platform:
        done = deploy(platform, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "smart routing: off: no secret found" in done.stdout
        assert len(definition(platform).secret_ids) == 2
        assert anonymous_secret(platform) == {}


@pytest.mark.parametrize(
    ("environ", "said", "carried"),
    [
        ({"DEEPSEEK_API_KEY": "sk-1"}, "on (DEEPSEEK_API_KEY)", {"DEEPSEEK_API_KEY": "sk-1"}),
        ({"PERSONAPLEX_DEEPSEEK_SECRET": "mine"}, "on (mine)", {}),
        (
            {"PERSONAPLEX_DEEPSEEK_SECRET": "none", "DEEPSEEK_API_KEY": "sk-1"},
            "off: as PERSONAPLEX_DEEPSEEK_SECRET says",
            {},
        ),
    ],
)
def test_an_explicit_choice_comes_before_detection(tmp_path, environ, said, carried):
    with Platform(secrets=SECRETS | {"mine": ["DEEPSEEK_API_KEY"]}) as platform:
        done = deploy(platform, tmp_path, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"smart routing: {said}" in done.stdout
        assert anonymous_secret(platform) == carried
        assert len(definition(platform).secret_ids) == 2
        assert "st-deepseek-secret" not in definition(platform).secret_ids


def test_a_token_beside_a_named_secret_is_added_to_that_secret(tmp_path):
    with Platform(secrets=dict(SECRETS)) as platform:
        done = deploy(platform, tmp_path, PERSONAPLEX_TOKEN="s3cret")
        assert done.returncode == 0, done.stdout + done.stderr
        (update,) = platform.requests("SecretUpdate")
        assert [(one.key, one.value) for one in update.updates] == [("PERSONAPLEX_TOKEN", "s3cret")]
        assert "access token: on (kept in deepseek-secret)" in done.stdout
        assert "s3cret" not in done.stdout
        assert len(definition(platform).secret_ids) == 2


def test_a_token_that_cannot_be_kept_never_deploys_an_open_server(tmp_path):
    with Platform(secrets=HF) as platform:
        done = deploy(
            platform, tmp_path, PERSONAPLEX_TOKEN="s3cret", PERSONAPLEX_DEEPSEEK_SECRET="gone"
        )
        assert done.returncode == 1
        assert "PERSONAPLEX_TOKEN could not be added to the secret gone" in done.stderr
        assert not platform.requests("FunctionCreate")


def test_an_import_does_not_hang_on_an_account_that_gives_no_answer(tmp_path):
    code = "import demo.cloud.deploying as d\nd.ASK_SECONDS = 0.5\nprint(len(d.choose_secrets()))\n"
    with Platform(silent=True) as platform:  # Modal's own client would try for minutes
        environ = clean(tmp_path, PYTHONPATH=str(ROOT), **platform.environ)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environ, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
    assert done.stdout.splitlines() == [
        "smart routing: off: Modal gave no answer; "
        "PERSONAPLEX_DEEPSEEK_SECRET=deepseek-secret insists",
        "hears: whisper, on the CPU",
        "2",
    ]


@pytest.mark.parametrize(
    ("environ", "routing", "hears"),
    [
        ({}, "on (deepseek-secret)", "kyutai stt"),
        ({}, "off: no secret found", "whisper, on the CPU"),
        ({"PERSONAPLEX_MODEL": "embedded"}, "on (mine)", "whisper, on the CPU"),
        ({"PERSONAPLEX_TRANSCRIBE": "1"}, "off: no secret found", "kyutai stt"),
        ({"PERSONAPLEX_TRANSCRIBE": "0"}, "on (mine)", "energy only, spoken questions"),
        ({"PERSONAPLEX_ROUTING": "0"}, "on (mine)", "energy only, spoken questions"),
        ({"PERSONAPLEX_ROUTING": "off"}, "on (mine)", "energy only, spoken questions"),
    ],
)
def test_a_deployment_says_who_will_hear(monkeypatch, capsys, environ, routing, hears):
    from demo.cloud import deploying  # loads modal; few need it

    for name in ("PERSONAPLEX_TRANSCRIBE", "PERSONAPLEX_MODEL", "PERSONAPLEX_ROUTING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    deploying.print_routing(routing, is_on=routing.startswith("on"))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"smart routing: {routing}"
    assert said[1].startswith(f"hears: {hears}")
