"""`modal deploy modal_app.py`: the page and `/api` on one GPU container. Guide: docs/modal.md.

The container imports this file too, and at first nothing else is there. Therefore only modal and
the standard library stand at module level, and there are as many secrets and volumes as on the
laptop. What is decided when deploying lies in demo/cloud/deploying.py, and what runs in
demo/cloud/container.py.
"""

import os
import sys
from pathlib import Path

import modal

APP, SERVER, LABEL = "personaplex", "PersonaPlexServer", "personaplex-server"
TOOLS = "personaplex-tools"
PORT, CACHE, VOLUME = 8998, "/cache", "personaplex-weights"
OLDEST_CLIENT, OLDEST_PYTHON = (1, 6), (3, 11)


def setting(name: str, default: str = "") -> str:
    return os.environ.get(f"PERSONAPLEX_{name}") or default


def number(name: str, default: int | None = None) -> int | None:
    text = setting(name)
    return int(text) if text else default


def names(name: str, default: str = "none") -> str | list[str] | None:
    several = setting(name, default).split(",")
    return None if several == ["none"] else several if several[1:] else several[0]


if sys.version_info < OLDEST_PYTHON:
    raise SystemExit(f"Python {sys.version.split()[0]} is too old; make the environment with 3.11")
if tuple(map(int, modal.__version__.split(".")[:2])) < OLDEST_CLIENT:
    raise SystemExit(f"modal {modal.__version__} is too old; run: pip install -U modal")
if modal.is_local():
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # from any working directory
    from demo.cloud import deploying

    deploying.check_settings()
    image, secrets = deploying.build_image(CACHE), deploying.choose_secrets()
else:  # Modal pairs them by position with what was deployed: only their number counts
    image = modal.Image.debian_slim(python_version="3.11")
    secrets = [modal.Secret.from_dict({}), modal.Secret.from_dict({})]

app = modal.App(APP)
tools = modal.App(TOOLS)  # apart: running one of them must not start the server beside it
weights = modal.Volume.from_name(VOLUME, create_if_missing=True)
snapshot = setting("SNAPSHOT") == "1"
everywhere = {"image": image, "secrets": secrets, "volumes": {CACHE: weights}}
gpu = names("GPU", "A10G")
machine = {"gpu": gpu, "cpu": number("CPU", 4), "memory": number("MEMORY", 16_384)}  # MiB


@app.cls(
    **everywhere,
    **machine,
    timeout=number("TIMEOUT", 3600),  # s; one conversation is one call
    startup_timeout=number("STARTUP_TIMEOUT", 1200),
    scaledown_window=number("SCALEDOWN_WINDOW", 300),
    min_containers=number("MIN_CONTAINERS", 0),
    max_containers=number("MAX_CONTAINERS", 10),
    buffer_containers=number("BUFFER_CONTAINERS"),
    region=names("REGION"),
    enable_memory_snapshot=snapshot,
    experimental_options={"enable_gpu_snapshot": True} if snapshot and gpu else {},
)
@modal.concurrent(
    max_inputs=number("MAX_INPUTS", 100),  # page, health checks and sockets share a container
    target_inputs=number("TARGET_INPUTS"),
)
class PersonaPlexServer:
    @modal.enter(snap=snapshot)
    def start(self) -> None:
        from demo.cloud.container import Container
        from demo.cloud.growing import ModalFleet

        self.container = Container(
            port=PORT,
            cache=Path(CACHE),
            commit=weights.commit,
            reload=weights.reload,
            fleet=ModalFleet(APP, SERVER),
            snapshot=snapshot,
        )
        self.container.start()

    @modal.enter()
    def resume(self) -> None:
        self.container.resume()

    @modal.web_server(
        PORT,
        startup_timeout=60,
        label=LABEL,
        requires_proxy_auth=setting("PROXY_AUTH") == "1",
    )
    def serve(self) -> None:
        """Nothing left to do: the port is open since `start`."""

    @modal.exit()
    def stop(self) -> None:
        self.container.stop()


@tools.function(**everywhere, timeout=3600)
def download() -> None:
    """Fetch the weights onto the volume, on CPU: `modal run modal_app.py::download`."""
    from demo.cloud.preflight import download

    download(weights.commit, weights.reload)


@tools.function(**everywhere, timeout=300)
def check() -> None:
    """Secrets, licence, key and volume, on CPU: `modal run modal_app.py::check`."""
    from demo.cloud.preflight import check

    check(Path(CACHE))


@tools.function(**everywhere, **machine, timeout=3600)
def gates() -> None:
    """Whether int8 is good here, on the server's GPU: `modal run modal_app.py::gates`."""
    from demo.cloud.acceptance import judge_int8

    judge_int8(Path(CACHE), VOLUME, weights.commit, reload=weights.reload)


@tools.local_entrypoint()
def main() -> None:
    """Print the addresses of what is deployed: `modal run modal_app.py`."""
    try:
        page = modal.Cls.from_name(APP, SERVER)().serve.get_web_url()
    except modal.exception.NotFoundError:
        raise SystemExit("nothing is deployed yet; run: modal deploy modal_app.py") from None
    socket = page.replace("https://", "wss://") + "/api"
    print(f"page    {page}\nsocket  {socket}\nTransgate: PERSONAPLEX_WS_URL={socket}")
