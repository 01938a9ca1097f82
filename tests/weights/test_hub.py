"""Fetching a checkpoint: every way it fails ends in one line that says what to do."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from engine.errors import ModelError
from engine.weights import hub
from tests.modal.hub import COMMIT, FakeHub, make_files

ROOT = Path(__file__).parents[2]
REPO = "nvidia/personaplex-7b-v1"


def http(kind: type[Exception], status: int) -> Exception:
    request = httpx2.Request("GET", "https://huggingface.co/x")
    return kind("Client Error", response=httpx2.Response(status, request=request))


@pytest.fixture
def failing(monkeypatch):
    """failing(error, token=...): one line of what fetching says."""

    def fail(error: Exception, token: str | None = "hf_x") -> str:
        def download(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        with pytest.raises(ModelError) as raised:
            hub.fetch(REPO, None, lambda phase, percent: None)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return fail


def test_without_a_token_it_says_where_the_licence_is_and_how_to_set_one(failing):
    said = failing(http(errors.GatedRepoError, 401), token=None)
    assert f"accept the licence at https://huggingface.co/{REPO}" in said
    assert "HF_TOKEN" in said


def test_a_token_that_is_not_valid_is_told_from_a_missing_one(failing):
    said = failing(http(errors.HfHubHTTPError, 401))
    assert said.startswith("the Hugging Face token is not valid (401)")


@pytest.mark.parametrize("kind", [errors.GatedRepoError, errors.HfHubHTTPError])
def test_a_token_that_may_not_read_it_is_told_where_the_licence_is(failing, kind):
    said = failing(http(kind, 403))
    assert f"(403): accept the licence at https://huggingface.co/{REPO}" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("no net"), "huggingface.co cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "huggingface.co cannot be reached"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (http(errors.RevisionNotFoundError, 404), "has no revision 'main'"),
        (http(errors.RepositoryNotFoundError, 404), "there is no repository"),
        (http(errors.RemoteEntryNotFoundError, 404), "has no config.json"),
        (errors.HFValidationError("bad"), "is not a repository name"),
        (OSError("Consistency check failed: file should be of size 9"), "its size is wrong"),
        (http(errors.HfHubHTTPError, 503), "has a fault of its own (503)"),
        (http(errors.HfHubHTTPError, 429), "asks for fewer requests (429)"),
        (httpx2.ReadTimeout("timed out"), "broke off (timed out)"),
    ],
)
def test_every_fault_has_its_line(failing, error, words):
    said = failing(error)
    assert words in said


def test_all_files_are_fetched_small_ones_first_and_progress_is_told(monkeypatch, tmp_path):
    fetched, told = [], []

    def download(repository, name, revision, tqdm_class):
        fetched.append((repository, name, revision))
        bar = tqdm_class(total=200, unit="B", desc=name)
        bar.update(50)
        bar.update(150)
        bar.close()
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder = hub.find(REPO, "abc", lambda phase, percent: told.append((phase, percent)))
    assert folder == tmp_path
    assert fetched == [(REPO, name, "abc") for name in hub.FILES]
    assert told[-2:] == [(f"downloading {hub.LM_FILE}", p) for p in (25.0, 100.0)]


@pytest.mark.parametrize("source", ["./nothing", "/no/such", "a/b/c", "model.safetensors", "here"])
def test_what_is_neither_a_folder_nor_a_repository_is_refused(source):
    with pytest.raises(ModelError, match="is no directory and no repository"):
        hub.find(source, None, lambda phase, percent: None)


def test_a_folder_is_taken_as_it_is():
    tiny = Path(__file__).parents[1] / "golden" / "tiny"
    assert hub.find(str(tiny), None, lambda phase, percent: None) == tiny


# -- tokens and folders as people set them ---------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("'hf_abc'", "HF_TOKEN has quotes in it"),
        ('"hf_abc"', "HF_TOKEN has quotes in it"),
        ("“hf_abc”", "HF_TOKEN has quotes in it"),
        ("hf_—abc", "HF_TOKEN has the character '—' (em dash) in it"),
        ("hf_–abc", "HF_TOKEN has the character '–' (en dash) in it"),
        ("hf_abc def", "HF_TOKEN has blanks or line ends in it"),
    ],
)
@pytest.mark.parametrize("status", [401, 403, None])
def test_what_no_token_has_is_named(failing, monkeypatch, token, told, status):
    monkeypatch.setenv("HF_TOKEN", token)
    coding = UnicodeEncodeError("ascii", token, 3, 4, "ordinal not in range(128)")
    said = failing(http(errors.GatedRepoError, status) if status else coding)
    assert told in said
    assert "hf_" not in said


def test_a_token_with_a_line_end_is_no_fault(failing, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abc\r\n")
    assert "accept the licence" in failing(http(errors.GatedRepoError, 403))


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "~/.cache/huggingface/hub"),
        ({"HF_HOME": "~/models"}, "~/models/hub"),
        ({"HF_HOME": "$PLACE/models"}, "/data/models/hub"),
        ({"XDG_CACHE_HOME": "/var/x"}, "/var/x/huggingface/hub"),
        ({"HF_HUB_CACHE": "~/hub", "HF_HOME": "/elsewhere"}, "~/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old"}, "/new"),
    ],
)
def test_weights_are_looked_for_where_the_hubs_client_puts_them(monkeypatch, environment, folder):
    """Asked of the client itself, in a process of its own: it reads the environment once."""
    names = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**environment, "PLACE": "/data"}.items():
        monkeypatch.setenv(name, value)
    want = Path(folder).expanduser()
    assert hub.repository_folder("a/b").parent == want
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == want


def test_a_token_counts_where_the_hubs_client_finds_it(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert not hub.has_token()
    (tmp_path / "mine").write_text("hf_abc")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "mine"))
    assert hub.has_token()
    monkeypatch.delenv("HF_TOKEN_PATH")
    (tmp_path / "token").write_text("hf_abc")
    assert hub.has_token()


# -- the client itself, against a stand-in for the hub ---------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The client's folder; it sleeps no second between two tries."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)
    return tmp_path


def use(monkeypatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("gated", hub.HubFault.GATED, "this token may not read"),
        ("bad token", hub.HubFault.BAD_TOKEN, "token is not valid (401)"),
        ("limited", hub.HubFault.LIMITED, "(429)"),
        ("down", hub.HubFault.DOWN, "(500)"),
        ("cut", hub.HubFault.CUT, "broke off"),
        ("wrong size", hub.HubFault.WRONG_SIZE, "its size is wrong"),
        ("no route", hub.HubFault.NO_ROUTE, "cannot be reached"),
    ],
)
def test_refusals_of_the_hub_are_told_apart(monkeypatch, cache, fault, kind, words):
    with FakeHub("" if fault == "no route" else fault) as stand_in:
        use(monkeypatch, "http://127.0.0.1:9" if fault == "no route" else stand_in.url)
        with pytest.raises(hub.HubError) as raised:
            hub.fetch(REPO, None, lambda *_: None)
    assert raised.value.fault is kind
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_disk_that_is_full_is_told_apart(monkeypatch, cache):
    def write(*_: object, **_more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", write)
    with FakeHub() as stand_in:
        use(monkeypatch, stand_in.url)
        with pytest.raises(hub.HubError) as raised:
            hub.fetch(REPO, None, lambda *_: None)
    assert raised.value.fault is hub.HubFault.DISK_FULL


def test_what_a_killed_download_leaves_is_removed_and_its_file_begins_anew(monkeypatch, cache):
    code = "import sys; from engine.weights import hub; hub.fetch(sys.argv[1], None, print)"
    blobs = hub.repository_folder(REPO) / "blobs"
    files = make_files(12_000_000)  # more than one piece of the client's: half is on disk
    with FakeHub("slow", files) as stand_in:
        environ = {**os.environ, "HF_ENDPOINT": stand_in.url, "HF_HUB_CACHE": str(cache)}
        process = subprocess.Popen([sys.executable, "-c", code, REPO], env=environ, cwd=ROOT)
        assert stand_in.entered.wait(60)
        while not list(blobs.glob("*.incomplete")):  # it was sent; when it is kept, is up to them
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    (orphan,) = blobs.glob("*.incomplete")
    assert hub.sweep_orphans(REPO) == 0  # it is young: somebody may be writing it
    an_hour_ago = time.time() - 3600
    os.utime(orphan, (an_hour_ago, an_hour_ago))
    with FakeHub(files=files) as stand_in:
        use(monkeypatch, stand_in.url)
        folder = hub.fetch(REPO, None, lambda *_: None)
    assert folder.name == COMMIT
    assert (folder / hub.LM_FILE).read_bytes() == files[hub.LM_FILE]
    assert not list(blobs.glob("*.incomplete"))
    assert stand_in.fetched == {hub.LM_FILE: 1}  # the small ones were there
