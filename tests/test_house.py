"""The house as the README draws it: import arrows, what loads what, what no file may name."""

import ast
import asyncio
import functools
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from engine.config import ServerConfig
from engine.install import requirements
from engine.lookup.routing import build_answers
from engine.runtime.embedded import EmbeddedBackend
from engine.runtime.starting import load_personaplex
from engine.wire.protocol import Kind
from tests.conftest import COLLECTED
from tests.serving import ApiServer
from tests.wire.peer import FRAME, talking

ROOT = Path(__file__).parents[1]
ORDER = (  # a room may import what stands before it; rooms of one group know each other
    ("engine.model",),
    ("engine.weights",),
    ("engine.runtime",),
    ("engine.lookup",),
    ("engine.dialogue",),
    ("engine.wire",),
    ("engine.commands", "engine.cli"),
    ("demo",),
    ("modal_app",),
)
FREE_OF_TORCH = (
    "demo",
    "engine.wire",
    "engine.dialogue",
    "engine.lookup",
    "engine.config",
    "engine.errors",
)
TORCH_FREE_RUNTIME = ("backend", "scheduler", "seat", "load", "embedded", "metrics", "choose")
LOWEST = {"engine.config": {"engine.errors"}, "engine.errors": set()}


def modules() -> Iterator[tuple[str, Path]]:
    for room in ("engine", "demo"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path
    if (ROOT / "modal_app.py").exists():
        yield "modal_app", ROOT / "modal_app.py"


@functools.cache
def parse(path: Path) -> list[ast.AST]:
    """All nodes of a file."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imports(path: Path) -> set[str]:
    """Names of all modules a file imports, at once or later."""
    found = set()
    for node in parse(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def floor(name: str) -> int | None:
    """How high a module stands; None for what may use every room (check, offline, bench …)."""
    for i, rooms in enumerate(ORDER):
        if any(name == room or name.startswith(room + ".") for room in rooms):
            return i
    return None


MODULES = dict(modules())


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    own = floor(name)
    for imported in imports(MODULES[name]):
        if own is not None and imported.split(".")[0] in ("engine", "demo", "modal_app"):
            assert floor(imported) is None or floor(imported) <= own, f"{name} imports {imported}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_are_absolute(name):
    for node in parse(MODULES[name]):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}: relative import"


def test_config_and_errors_stand_below_everything():
    for name, allowed in LOWEST.items():
        used = {m for m in imports(MODULES[name]) if m.startswith("engine")}
        assert {m for m in used if m in MODULES} <= allowed


def test_the_engine_does_not_know_the_page():
    for name, path in MODULES.items():
        if name.startswith("engine"):
            assert not any(m.split(".")[0] == "demo" for m in imports(path)), name


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith(FREE_OF_TORCH)])
def test_wire_dialogue_and_page_know_no_torch(name):
    assert not any(m.split(".")[0] == "torch" for m in imports(MODULES[name]))


@pytest.mark.parametrize("name", [f"engine.runtime.{part}" for part in TORCH_FREE_RUNTIME])
def test_the_runtime_of_the_embedded_way_knows_no_torch(name):
    assert not any(m.split(".")[0] == "torch" for m in imports(MODULES[name]))


def test_the_model_knows_no_sockets_and_no_event_loop():
    for name in MODULES:
        if name.startswith("engine.model"):
            used = {m.split(".")[0] for m in imports(MODULES[name])}
            assert not used & {"asyncio", "aiohttp", "socket"}, name


def test_nothing_is_raised_where_a_group_of_errors_is_handled():
    for name, path in MODULES.items():
        handlers = [
            h for node in parse(path) if isinstance(node, ast.TryStar) for h in node.handlers
        ]
        raised = [node for handler in handlers for node in ast.walk(handler)]
        assert not any(isinstance(node, ast.Raise) for node in raised), (
            f"{name}: before Python 3.11.4 what `except*` raises leaves it as a group"
        )


# -- what is loaded --------------------------------------------------------------------------------


def loaded_after(code: str) -> set[str]:
    """The top-level modules in memory after running some code in a fresh interpreter."""
    script = f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_engine_loads_neither_torch_nor_a_web_framework():
    loaded = loaded_after("import engine, engine.cli, engine.config")
    assert not loaded & {"torch", "aiohttp", "gradio", "numpy", "modal"}


@pytest.mark.parametrize("name", ["gradio", "modal", "onnxruntime", "numba"])
def test_collecting_the_tests_does_not_load(request, name):
    # Every worker collects every file, and few of them run a test that needs it.
    assert name not in request.config.stash[COLLECTED]


def test_serving_the_embedded_backend_loads_no_torch():
    loaded = loaded_after(
        "from aiohttp import web\n"
        "from engine.config import ServerConfig\n"
        "from engine.commands.serve import build_service\n"
        "from engine.wire.server import add_routes\n"
        "config = ServerConfig(model='embedded', slots=1)\n"
        "engine = build_service(config)\n"
        "add_routes(web.Application(), engine, config)\n"
        "engine.start(); engine.wait(60); engine.stop()\n"
        "import sys; before = set(sys.modules)\n"
        "engine.metrics.ticked(1, 0.1); engine.metrics.recent(); engine.metrics.text()\n"
        "late = set(sys.modules) - before; assert not late, late  # in the midst of a call"
    )
    assert "aiohttp" in loaded
    assert not loaded & {"torch", "gradio", "modal", "transformers"}


# -- how much there is to read ---------------------------------------------------------------------

MOST_FILES = 134  # of Python outside tests; what a later issue adds, it says
MOST_FILES_OF_A_FRAME = 20
FRAMES_WATCHED = 25  # two seconds: the agent speaks in some of them


def test_how_many_files_there_are(record_property):
    files = [path for path in tracked() if path.suffix == ".py" and "tests" not in path.parts]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    record_property("house files", f"{len(files)} of {MOST_FILES}, {lines} lines")
    assert len(files) <= MOST_FILES


def test_every_class_name_stands_once():
    names = Counter(
        node.name
        for path in MODULES.values()
        for node in parse(path)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


@contextmanager
def watch_calls() -> Iterator[Counter[tuple[str, str]]]:
    """Count (file, function) of our own code in every thread begun inside, while `on` is set."""
    calls: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, _arg: object) -> None:
        name = frame.f_code.co_filename
        if calls.on and event == "call" and name.startswith((f"{ROOT}/engine", f"{ROOT}/demo")):
            calls[name.removeprefix(f"{ROOT}/"), frame.f_code.co_name] += 1

    calls.on = False
    threading.setprofile(note)
    try:
        yield calls
    finally:
        threading.setprofile(None)


async def talk_watched(url: str, calls: Counter) -> None:
    """A conversation in which the user is heard; a part of it is watched, frame for frame.

    A seed makes the model draw the same words in every run.
    """
    async with talking(url, seed=1) as peer:
        for sent in range(4 * FRAMES_WATCHED):
            await peer.send(Kind.AUDIO, FRAME)
            await peer.until(Kind.AUDIO)
            calls.on = 2 * FRAMES_WATCHED <= sent < 3 * FRAMES_WATCHED


@pytest.mark.parametrize("model", ["embedded", "tests/golden/tiny"])
def test_a_frame_crosses_few_files(model, record_property):
    """From socket to socket, as served: with routing on, in production's own functions."""
    answers = build_answers(ServerConfig(), {})
    answers.router.wait()  # else its thread still loads vectors while frames are watched
    with watch_calls() as calls:
        if model == "embedded":
            backend = EmbeddedBackend(1)
        else:
            backend = load_personaplex(
                ServerConfig(model=str(ROOT / model), device="cpu", slots=1, renewal_frames=100)
            )
        with ApiServer(load=lambda progress: backend, answers=answers) as server:
            asyncio.run(talk_watched(server.url, calls))
    files = sorted({file for file, _ in calls})
    listed = f"{len(files)} files, {len(calls)} functions: {', '.join(files)}"
    record_property(f"house a frame's way, {Path(model).name}", listed)
    assert {"engine/wire/socket.py", "engine/runtime/scheduler.py"} < set(files)
    assert len(files) <= MOST_FILES_OF_A_FRAME, listed


# -- what no file may name -------------------------------------------------------------------------


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    names = done.stdout.split("\0") if done.returncode == 0 else []
    return [path for name in names if name and (path := ROOT / name).is_file()]


def test_no_file_names_this_machines_paths_or_a_package_registry():
    here = [str(ROOT) + "/", str(Path.home()) + "/"]
    registry = re.compile(
        r"(?:pypi|registry|artifact|nexus|devpi)[\w.-]*\.(?:org|com|net|io)\b|--index-url"
    )
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for line in text.splitlines():
            assert not any(place in line for place in here if len(place) > 6), f"{path}: {line}"
            assert path == Path(__file__) or not registry.search(line), f"{path}: {line}"


def test_the_documents_that_are_named_are_there():
    """A reader who follows a reference finds something."""
    for path in tracked():
        if path.suffix != ".py" or path == Path(__file__):
            continue
        for name in re.findall(r"(?<![\w/.*-])([\w/-]+\.md)\b", path.read_text(encoding="utf-8")):
            places = (ROOT / name, ROOT / "docs" / name, path.parent / name)
            written = name in path.read_text(encoding="utf-8").split('"')  # a test's own file
            assert written or any(place.exists() for place in places), f"{path}: {name}"


def test_the_readme_is_at_most_150_lines():
    readme = ROOT / "README.md"
    if readme.exists():
        assert len(readme.read_text(encoding="utf-8").splitlines()) <= 150


def test_run_time_packages_are_pinned():
    for pin in requirements("requirements-dev.txt"):
        assert re.fullmatch(r"[\w-]+(\[\w+\])?==[\w.]+(\s*;.*)?", pin), pin


def test_every_command_of_the_command_line_has_a_line_of_help():
    done = subprocess.run(
        [sys.executable, "-m", "engine", "--help"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    for command in ("serve", "talk", "check", "offline", "trace", "voices", "download", "bench"):
        assert re.search(rf"^ +{command} +\w", done.stdout, re.MULTILINE), command


def test_wrong_usage_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "engine", "dance"], capture_output=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
