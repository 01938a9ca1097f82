"""Which secrets a deployment takes, asked of a stand-in through the real client."""

import subprocess
import sys

import pytest

from tests.modal.platform import Platform
from tests.modal.rehearsal import ROOT, SECRETS, anonymous_secret, clean, definition, deploy

HF = {"huggingface-secret": ["HF_TOKEN"]}


def test_a_missing_hugging_face_secret_ends_the_deployment_with_the_way_out(tmp_path):
    with Platform() as platform:
        done = deploy(platform, tmp_path)
    assert done.returncode == 1
    lines = (done.stdout + done.stderr).splitlines()
    assert "secret huggingface-secret not found; create it (docs/modal.md, step 4):" in lines
    assert "  modal secret create huggingface-secret HF_TOKEN=hf_..." in lines
    assert not platform.requests("FunctionCreate")
    assert "Traceback" not in done.stdout + done.stderr


def test_without_a_deepseek_secret_routing_is_off_and_the_deployment_goes_on(tmp_path):
    with Platform(secrets=dict(HF)) as platform:
        done = deploy(platform, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "smart routing: off: no secret found" in done.stdout
        assert len(definition(platform).secret_ids) == 3
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
        assert len(definition(platform).secret_ids) == 3
        assert "st-deepseek-secret" not in definition(platform).secret_ids


@pytest.mark.parametrize("token", ["s3cret", ""])
def test_a_token_travels_beside_a_named_secret_and_comes_after_it(tmp_path, token):
    with Platform(secrets=dict(SECRETS)) as platform:
        done = deploy(platform, tmp_path, PERSONAPLEX_TOKEN=token)
        assert done.returncode == 0, done.stdout + done.stderr
        assert anonymous_secret(platform) == {"PERSONAPLEX_TOKEN": token}
        assert "s3cret" not in done.stdout
        *named, last = definition(platform).secret_ids  # of one name in two, the later one counts
        assert named == ["st-huggingface-secret", "st-deepseek-secret"]
        assert last not in named


def test_an_import_does_not_hang_on_an_account_that_gives_no_answer(tmp_path):
    code = "import demo.cloud.deploying as d\nd.ASK_SECONDS = 0.5\nprint(len(d.choose_secrets()))\n"
    with Platform(silent=True) as platform:  # Modal's own client would try for minutes
        environ = clean(tmp_path, PYTHONPATH=str(ROOT), **platform.environ)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
        )
    assert done.stdout.splitlines() == [
        "smart routing: off: Modal gave no answer; "
        "PERSONAPLEX_DEEPSEEK_SECRET=deepseek-secret insists",
        "3",
    ]
