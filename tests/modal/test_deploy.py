"""What `modal deploy modal_app.py` tells the platform, read where the platform would read it."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from engine.config import ServerConfig
from engine.install import requirements
from tests.modal.platform import Platform
from tests.modal.rehearsal import (
    ROOT,
    SECRETS,
    anonymous_secret,
    clean,
    definition,
    deploy,
    image_lines,
    modal,
)

TEXTS = (".js", ".css", ".toml", ".md", ".html", ".wav", ".png", ".svg", ".py")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def deployed(home):
    """A deployment with nothing set and both secrets there."""
    with Platform(secrets=dict(SECRETS)) as platform:
        done = deploy(platform, home)
        assert done.returncode == 0, done.stdout + done.stderr
        platform.said = done.stdout
        yield platform


def another_value(entry) -> str:
    """A value that the server takes, and that is not the default."""
    chosen = {
        "model": "someone/model", "transcribe": "someone/ears", "device": "cuda",
        "weights": "int8", "kv": "int8", "trusted_proxies": "10.0.0.0/8", "marker_threshold": "2",
        "frame_ancestors": "https://a.example",
    }  # fmt: skip
    if entry.name in chosen:
        return chosen[entry.name]
    if isinstance(entry.default, bool):
        return str(int(not entry.default))
    if isinstance(entry.default, int | float):
        return str(entry.default + 1)
    return f"value-of-{entry.name}"


@pytest.fixture(scope="module")
def tuned(home):
    """One with every setting of the deployment changed, and every setting of the server."""
    knowledge = home / "knowledge"
    knowledge.mkdir()
    (knowledge / "prices.md").write_text("# Prices\n")
    server = {
        entry.metadata["env"]: another_value(entry)
        for entry in fields(ServerConfig)
        if entry.name != "tls"  # not beside a certificate's files
    }
    server |= {"PERSONAPLEX_KNOWLEDGE": str(knowledge), "PERSONAPLEX_TOKEN": "s3cret"}
    names = "GPU CPU MEMORY TIMEOUT STARTUP_TIMEOUT SCALEDOWN_WINDOW MIN_CONTAINERS MAX_CONTAINERS"
    values = ["L40S, A100-40GB", "8", "32768", "7200", "900", "120", "1", "3"]
    deployment = {f"PERSONAPLEX_{n}": v for n, v in zip(names.split(), values, strict=True)}
    deployment |= {"PERSONAPLEX_BUFFER_CONTAINERS": "2", "PERSONAPLEX_SNAPSHOT": "1"}
    deployment |= {"PERSONAPLEX_MAX_INPUTS": "50", "PERSONAPLEX_TARGET_INPUTS": "6"}
    deployment |= {"PERSONAPLEX_WS_URL": "wss://a.example/api?token=s3cret"}  # Transgate's
    deployment |= {"PERSONAPLEX_PROXY_AUTH": "yes", "PERSONAPLEX_AUTOSCALE": "0"}
    deployment |= {"PERSONAPLEX_REGION": "us-east, us-west"}
    with Platform(secrets={"huggingface-secret": ["HF_TOKEN"]}) as platform:
        done = deploy(platform, home, **server, **deployment)
        assert done.returncode == 0, done.stdout + done.stderr
        yield platform


def test_the_declared_options_are_those_of_the_issue(deployed):
    server = definition(deployed)
    assert server.app_name == "personaplex"
    assert server.resources.gpu_config.gpu_type == "A10G"
    assert server.timeout_secs == 3600
    assert server.startup_timeout_secs == 1200
    assert server.max_concurrent_inputs == 100
    assert server.target_concurrent_inputs == 0
    scaling = server.autoscaler_settings
    assert (scaling.min_containers, scaling.max_containers) == (0, 10)
    assert (scaling.scaledown_window, scaling.buffer_containers) == (300, 0)
    assert not server.checkpointing_enabled
    assert [(v.volume_id, v.mount_path) for v in server.volume_mounts] == [
        ("vo-personaplex-weights", "/cache")
    ]


def test_the_url_is_a_label_of_our_own_on_port_8998(deployed):
    web = definition(deployed).method_definitions["serve"].webhook_config
    assert web.requested_suffix == "personaplex-server"
    assert web.web_server_port == 8998
    assert web.web_server_startup_timeout >= 30
    assert not web.requires_proxy_auth


@pytest.fixture(scope="module")
def tooled(home):
    """Each tool, run with a warm server asked for: what was created, by tool."""
    platforms = {}
    for name in ("check", "gates"):
        with Platform(secrets=dict(SECRETS)) as platform:
            environ = {"PERSONAPLEX_MIN_CONTAINERS": "1", "PERSONAPLEX_GPU": "L40S"}
            platform.done = modal(
                platform, home, "run", f"{ROOT / 'modal_app.py'}::{name}", **environ
            )
            platforms[name] = platform
    return platforms


@pytest.mark.parametrize("name", ["check", "gates"])
def test_a_tool_starts_no_server_and_takes_no_address(tooled, name):
    created = tooled[name].requests("FunctionCreate")
    assert created
    for told in created:
        for function in (told.function, *(r.function for r in told.function_data.ranked_functions)):
            assert not function.is_class
            assert function.app_name in ("personaplex-tools", "")
            assert not function.webhook_config.requested_suffix
            assert function.autoscaler_settings.min_containers == 0
    assert not tooled[name].requests("ClassCreate")


def test_a_deployment_carries_no_tools(deployed):
    names = {told.function.function_name for told in deployed.requests("FunctionCreate")}
    assert not names & {"check", "download", "gates"}


def test_download_and_check_need_no_gpu(tooled):
    for name in ("download", "check"):
        function = definition(tooled["check"], name)
        assert not function.resources.gpu_config.gpu_type
        assert list(function.secret_ids) == ["st-huggingface-secret", "st-deepseek-secret"]
        assert function.volume_mounts[0].mount_path == "/cache"


def test_the_gates_measure_on_a_machine_like_the_servers(tooled):
    function = definition(tooled["gates"], "gates")
    assert function.resources.gpu_config.gpu_type == "L40S"
    assert (function.resources.milli_cpu, function.resources.memory_mb) == (4000, 16384)
    assert function.volume_mounts[0].mount_path == "/cache"
    assert function.timeout_secs == 3600


def test_both_secrets_are_found_without_editing_anything(deployed):
    assert list(definition(deployed).secret_ids) == ["st-huggingface-secret", "st-deepseek-secret"]
    assert "smart routing: on (deepseek-secret)" in deployed.said


def test_the_image_is_python_3_11_with_exactly_the_pinned_packages(deployed):
    lines = image_lines(deployed)
    assert any(re.match(r"FROM python:3\.11-slim", line) for line in lines)
    install = next(line for line in lines if "uv pip install" in line)
    pinned = [pin.split(";")[0] for pin in requirements("requirements.txt")]
    missing = [pin for pin in pinned if pin not in install and not pin.startswith("modal==")]
    assert len(pinned) > 12
    assert not missing


def test_the_image_carries_every_file_the_page_and_the_engine_need(deployed):
    carried = deployed.files()
    needed = {
        f"/root/{path.relative_to(ROOT)}"
        for folder in ("engine", "demo", "assets")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in TEXTS and "__pycache__" not in path.parts
    }
    assert needed - carried == set()
    assert "/root/modal_app.py" in carried
    assert not [name for name in carried if "__pycache__" in name or name.endswith(".pyc")]


def test_every_number_of_the_deployment_has_its_setting(tuned):
    server = definition(tuned)
    told = next(r for r in tuned.requests("FunctionCreate") if r.function_data.ranked_functions)
    gpus = [
        one.function.resources.gpu_config.gpu_type for one in told.function_data.ranked_functions
    ]
    assert gpus == ["L40S", "A100-40GB"]
    assert (server.resources.milli_cpu, server.resources.memory_mb) == (8000, 32768)
    assert (server.timeout_secs, server.startup_timeout_secs) == (7200, 900)
    scaling = server.autoscaler_settings
    assert (scaling.min_containers, scaling.max_containers) == (1, 3)
    assert (scaling.scaledown_window, scaling.buffer_containers) == (120, 2)
    assert (server.max_concurrent_inputs, server.target_concurrent_inputs) == (50, 6)
    assert server.method_definitions["serve"].webhook_config.requires_proxy_auth
    assert server.checkpointing_enabled
    assert told.function_data.experimental_options["enable_gpu_snapshot"] == "True"
    assert list(server.scheduler_placement.regions) == ["us-east", "us-west"]


def test_every_server_setting_travels_into_the_container(tuned):
    environment = "\n".join(line for line in image_lines(tuned) if line.startswith("ENV"))
    # The container's own business, and the platform's: it speaks TLS for us.
    fixed = {f"PERSONAPLEX_{name}" for name in ("HOST", "PORT", "TLS", "TLS_CERT", "TLS_KEY")}
    for entry in fields(ServerConfig):
        name, value = entry.metadata["env"], re.escape(another_value(entry))
        if name in fixed | {"PERSONAPLEX_TOKEN"}:
            assert f"{name}=" not in environment
        elif name == "PERSONAPLEX_KNOWLEDGE":
            continue
        else:
            assert re.search(rf"{name}=['\"]*{value}", environment), name
    assert "PERSONAPLEX_AUTOSCALE" in environment
    assert "HF_HOME=" in environment


def test_the_token_travels_in_the_second_secret_only(tuned):
    assert anonymous_secret(tuned)["PERSONAPLEX_TOKEN"] == "s3cret"
    assert len(definition(tuned).secret_ids) == 2
    assert "s3cret" not in "\n".join(image_lines(tuned))


def test_a_knowledge_folder_is_copied_in(tuned):
    assert "/knowledge/prices.md" in tuned.files()
    settings = [line for line in image_lines(tuned) if "PERSONAPLEX_KNOWLEDGE=" in line]
    assert settings == ["ENV PERSONAPLEX_KNOWLEDGE=/knowledge"]


def test_it_deploys_on_cpu_without_the_model_and_its_secret(home):
    with Platform() as platform:
        done = deploy(platform, home, PERSONAPLEX_GPU="none", PERSONAPLEX_MODEL="embedded")
        assert done.returncode == 0, done.stdout + done.stderr
        server = definition(platform)
        assert not server.resources.gpu_config.gpu_type
        assert len(server.secret_ids) == 2
        assert "smart routing: off: no secret found" in done.stdout


def test_it_imports_anywhere_with_nothing_but_modal_and_no_account(home):
    """Every package that is not modal's own is hidden, as on a laptop with `pip install modal`."""
    code = (
        "import sys, runpy\n"
        "hidden = ('gradio', 'numpy', 'torch', 'fastapi', 'huggingface_hub', 'soundfile', 'sphn')\n"
        "sys.modules.update(dict.fromkeys(hidden))\n"
        f"names = runpy.run_path({str(ROOT / 'modal_app.py')!r}, run_name='modal_app')\n"
        "print(len(names['secrets']), names['LABEL'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env=clean(home), capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["2 personaplex-server"], done.stderr


def refuse(home, **environ: str) -> str:
    """What the app file says, where it ends with 1 before anything is asked of an account."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "modal_app.py")],
        env=clean(home, **environ),
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    return line


def test_what_cannot_work_is_refused_by_the_app_file_itself(home):
    said = refuse(home, PERSONAPLEX_SLOTS="many")
    assert said == "error: PERSONAPLEX_SLOTS is 'many'; use a number such as 0"
    said = refuse(home, PERSONAPLEX_GPU="none")
    assert said.startswith("error: PERSONAPLEX_GPU is none, which is too little for nvidia/")
    said = refuse(home, PERSONAPLEX_GPU="any")  # of the client's list, and may be a T4
    assert said.startswith("error: PERSONAPLEX_GPU is 'any'; use A10, ")


def test_an_old_client_is_told_to_be_renewed(home, tmp_path):
    (tmp_path / "modal.py").write_text('__version__ = "1.5.4"\ndef is_local(): return True\n')
    said = refuse(home, PYTHONPATH=str(tmp_path))
    assert said == "modal 1.5.4 is too old; run: pip install -U modal"


def test_an_old_python_is_told_to_be_renewed(home, tmp_path):
    (tmp_path / "modal.py").write_text("import sys\nsys.version_info = (3, 10, 13)\n")
    said = refuse(home, PYTHONPATH=str(tmp_path))
    assert said.endswith(" is too old; make the environment with 3.11")


def test_modal_app_is_short_and_imports_only_modal_and_the_standard_library():
    text = (Path(ROOT) / "modal_app.py").read_text()
    assert len(text.splitlines()) <= 150
    imported = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
    assert set(imported) <= {"modal"} | set(sys.stdlib_module_names)


def test_nothing_else_imports_the_app_file():
    """`modal.is_local()` is true in a container's child processes: they must not see this file."""
    sources = [*(ROOT / "engine").rglob("*.py"), *(ROOT / "demo").rglob("*.py")]
    assert not [
        path for path in sources if re.search(r"import modal_app|from modal_app", path.read_text())
    ]


def test_run_prints_the_addresses_of_what_is_deployed(deployed, home):
    done = modal(deployed, home, "run", str(ROOT / "modal_app.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    host = "someone--personaplex-server.modal.run"
    assert [line for line in done.stdout.splitlines() if host in line] == [
        f"page    https://{host}",
        f"socket  wss://{host}/api",
        f"Transgate: PERSONAPLEX_WS_URL=wss://{host}/api",
    ]


def test_run_before_the_first_deployment_says_what_to_do(home):
    with Platform(secrets=dict(SECRETS)) as platform:
        done = modal(platform, home, "run", str(ROOT / "modal_app.py"))
    assert done.returncode == 1
    assert "nothing is deployed yet; run: modal deploy modal_app.py" in done.stderr
