"""The container's side of the deployment, under Modal's real runtime, with no account."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.modal.platform import Platform
from tests.modal.rehearsal import (
    ROOT,
    SECONDS,
    SECRETS,
    Process,
    clean,
    container_arguments,
    deploy,
    free_port,
)


def container(platform: Platform, folder: Path, port: int, **environ: str) -> Process:
    """The runtime of the container that was deployed: our file alone in a folder of its own.

    The code of engine/ and demo/ comes by PYTHONPATH, as the image brings it to /root.
    """
    (folder / "arguments").write_bytes(container_arguments(platform))
    environ |= {
        "MODAL_SERVER_URL": platform.environ["MODAL_SERVER_URL"],
        "MODAL_CONTAINER_ARGUMENTS_PATH": str(folder / "arguments"),
        "MODAL_IS_REMOTE": "1",
        "MODAL_TASK_ID": "ta-1",
        "PYTHONPATH": f"{folder}:{ROOT}",
    }
    arguments = ["-m", "modal._container_entrypoint"]
    return Process(arguments, port, folder, clean(folder, **environ))


@pytest.fixture(params=["", "1"], ids=["plain", "snapshot"])
def running(request, tmp_path):
    """A deployed container, with and without a snapshot, that runs the embedded backend."""
    port = free_port()
    text = (ROOT / "modal_app.py").read_text()
    assert "8998" in text
    file = tmp_path / "modal_app.py"
    file.write_text(text.replace("8998", str(port)).replace('"/cache"', f'"{tmp_path}/cache"'))
    for name in ("demo", "engine", "assets", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    settings = {"PERSONAPLEX_MODEL": "embedded", "PERSONAPLEX_SNAPSHOT": request.param}
    settings |= {"PERSONAPLEX_AUTOSCALE": "places", "PERSONAPLEX_SLOTS": "3"}
    with Platform(secrets=dict(SECRETS)) as platform:
        done = deploy(platform, tmp_path, file, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        alone = tmp_path / "alone"
        alone.mkdir()
        shutil.copy(file, alone)
        if request.param:  # the page is made in the other case; Gradio takes seconds to load
            (alone / "gradio.py").write_text("raise ImportError('no page in this test')")
        with container(platform, alone, port, **settings) as process:
            yield platform, process


async def test_modals_runtime_starts_serves_and_ends_the_deployed_class(running):
    """The import pairs its secrets and volume, `start` opens the port, `stop` says goodbye."""
    platform, process = running
    await asyncio.to_thread(process.wait_until_ready)
    await asyncio.to_thread(platform.wait_for, "FunctionGetInputs")  # it takes callers now
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{process.port}/api?format=pcm16") as ws,
    ):
        assert (await ws.receive_bytes(timeout=SECONDS))[0] == 0
        process.interrupt()
        heard = [message.data async for message in ws if message.type is aiohttp.WSMsgType.BINARY]
    assert heard[-1].startswith(b"\x05closing: ")
    assert await asyncio.to_thread(process.wait) == 0
    assert "[ta-1]" in process.output  # our log lines carry the container's name
    assert platform.requests("VolumeCommit")
    asked = {request.input_concurrency for request in platform.requests("FunctionGetInputs")}
    assert asked == {3}  # as many as there are places: the door is set before the first caller
    assert not platform.requests("TaskResult")  # what a container that failed sends


def test_the_import_needs_nothing_but_the_file(tmp_path):
    """Alone in a folder, environment empty, not local: two secrets and one volume as deployed."""
    shutil.copy(ROOT / "modal_app.py", tmp_path)
    code = (
        "import modal\n"
        "modal.is_local = lambda: False\n"
        "import modal_app\n"
        "print(len(modal_app.secrets), len(modal_app.everywhere['volumes']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert done.stdout == "2 1\n", done.stderr
