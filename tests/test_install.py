"""Set-up on machines that are not ours: other Pythons, two at once, one that was killed."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engine import install
from engine.install import LISTS, ROOT, kind_for_run, requirements
from engine.runtime import choose

PATIENCE = 600  # seconds for pip on a busy machine; what it says decides, not how long it takes


MAC = "14.0"  # the oldest macOS that README names


@pytest.fixture(scope="module")
def resolver(tmp_path_factory) -> tuple[list[str], dict[str, str]]:
    """uv with the settings that pip has here: it resolves for machines that are not here."""
    words = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--quiet"),
        *("--only-binary", ":all:", "--system-certs", "--no-header", "--annotation-style", "line"),
        *("--cache-dir", str(tmp_path_factory.mktemp("uv"))),
    ]
    ask = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    asked = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    index = os.environ.get("PIP_INDEX_URL", asked)
    environ = os.environ | {"MACOSX_DEPLOYMENT_TARGET": MAC}
    return words, environ | ({"UV_DEFAULT_INDEX": index} if index else {})


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("version", [install.OLDEST, install.NEWEST])
@pytest.mark.parametrize(
    "platform", ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin"]
)
def test_the_lists_resolve_to_wheels_on_every_machine_that_the_readme_names(
    resolver, version, platform
):
    """The lists hold each other, so the longest one shows that each of them resolves.

    Who has wheels for the oldest and the newest Python has them for those between.
    """
    words, environ = resolver
    python = "{}.{}".format(*version)
    done = subprocess.run(
        [*words, "--python-version", python, "--python-platform", platform, LISTS["test"]],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    resolved = {line.partition(" ")[0]: line for line in done.stdout.splitlines()}
    assert f"torch=={metadata.version('torch').partition('+')[0]}" in resolved
    if "linux" in platform:  # the same as torch's own, or there would be no answer
        triton = next(line for pin, line in resolved.items() if pin.startswith("triton=="))
        assert "via torch" in triton


def test_what_is_installed_agrees_with_itself():
    """Each package that a pin brings has the versions that its own metadata ask for."""
    waiting = [Requirement(line) for line in requirements(LISTS["test"])]
    seen, checked = set(), 0
    while waiting:
        wanted = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = metadata.version(wanted.name)
        assert wanted.specifier.contains(version, prereleases=True), f"{wanted}: {version} is here"
        checked += 1
        if wanted.name not in seen:
            seen.add(wanted.name)
            waiting += map(Requirement, metadata.requires(wanted.name) or [])
    assert {"gradio", "fastapi", "torch", "huggingface_hub"} <= seen
    assert checked > 100


def test_no_pin_stands_in_two_lists():
    pins = [Requirement(line).name for line in requirements(LISTS["test"])]
    assert len(pins) == len(set(pins)) > 15
    page, model, test = (set(requirements(name)) for name in LISTS.values())
    assert page < model < test
    assert not {"torch", "triton", "pytest", "playwright"} & {Requirement(p).name for p in page}


# -- what is needed for what -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "gpu", "kind"),
    [
        ([], False, "page"),
        ([], True, "model"),
        (["--model", ""], True, "page"),
        (["--model", "auto"], False, "page"),
        (["--model", "embedded"], True, "page"),
        (["--model=tests/golden/tiny", "--port", "9000"], False, "model"),
        (["--port", "9000", "--mod", "nvidia/personaplex-7b-v1"], False, "model"),
        (["--model"], False, "page"),
        (["--model", "nowhere"], False, "page"),  # else gigabytes come before the error
        (["--model", "./no/folder"], True, "page"),
        (["--model", "nvidia/personaplex-7b-v1", "--help"], False, "page"),
    ],
)
def test_a_run_installs_what_it_needs(monkeypatch, args, gpu, kind):
    monkeypatch.delenv("PERSONAPLEX_MODEL", raising=False)
    monkeypatch.setattr(choose, "has_cuda", lambda: gpu)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert kind_for_run(args) == kind


def test_a_mistyped_model_is_said_before_pytorch_is_asked_for():
    done = page_only(
        "from demo.__main__ import main\nsys.exit(main(['--model', 'nowhere', '--port', '0']))"
    )
    assert done.returncode == 1
    assert "error: model 'nowhere' is no directory and no repository" in done.stderr
    assert "torch" not in done.stderr


def test_a_gpu_without_weights_or_a_token_needs_no_model(monkeypatch, tmp_path):
    """The built-in voice will answer there: gigabytes for nothing would be fetched."""
    monkeypatch.setattr(choose, "has_cuda", lambda: True)
    monkeypatch.delenv("PERSONAPLEX_MODEL", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert kind_for_run([]) == "page"


def test_the_environment_names_the_model_too(monkeypatch):
    monkeypatch.setenv("PERSONAPLEX_MODEL", "tests/golden/tiny")
    assert kind_for_run([]) == "model"
    assert kind_for_run(["--model", "embedded"]) == "page"


PAGE_ONLY = """
import importlib.util, sys
class OnlyThePage:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton", "sentencepiece", "safetensors", "sphn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, OnlyThePage())
"""


def page_only(code: str) -> subprocess.CompletedProcess:
    """Run code where nothing but the page's packages is there."""
    return subprocess.run(
        [sys.executable, "-c", PAGE_ONLY + code], capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["trace", "offline", "voices"])
def test_a_command_that_needs_the_model_says_how_to_get_it(command, tmp_path):
    args = {
        "trace": ["--model", "tests/golden/tiny", "--input", "x.wav", "--out", "x.safetensors"],
        "offline": ["--model", "tests/golden/tiny", "--input", "tests/golden/tiny/input_user.wav",
                    "--output", str(tmp_path / "x.wav"), "--output-text", str(tmp_path / "x.json")],
        "voices": ["--model", "tests/golden/tiny"],
    }[command]  # fmt: skip
    done = page_only(f"from engine.cli import main; sys.exit(main({[command, *args]!r}))")
    if command == "voices":  # names alone need none of it
        assert (done.returncode, done.stdout.split()) == (0, ["TINYF0", "TINYM0"])
        return
    assert done.returncode == 1
    assert re.fullmatch(r"(model: .*\n)?", done.stdout)
    assert "is not installed, and this needs it; run `.venv/bin/python -m" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_the_opus_codec_asks_for_pcm16():
    done = page_only(
        "from engine.wire.audio import make_codec\nmake_codec('pcm16')\nmake_codec('opus')"
    )
    assert "connect with format=pcm16" in done.stderr.splitlines()[-1]


def test_without_triton_the_other_tests_run_and_it_is_said_once():
    code = (
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "import pytest\n"
        "sys.meta_path[0].find_spec = lambda name, path=None, target=None: (_ for _ in ()).throw("
        "ModuleNotFoundError(name, name=name)) if name.split('.')[0] == 'triton' else None\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', 'tests/model']))"
    )
    done = page_only(code.replace("-q", "-v"))
    assert done.returncode == 0, done.stdout[-2000:]
    assert done.stdout.count("skipped, for triton is not on this machine: test_compiled") == 1
    assert "test_sampling.py" in done.stdout
    assert "test_kernels.py" not in done.stdout


# -- set-up itself ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A project whose only package is a wheel beside it."""
    (tmp_path / "engine").mkdir()
    for name in ("__init__.py", "install.py"):
        shutil.copy(ROOT / "engine" / name, tmp_path / "engine")
    wheel = tmp_path / "tiny_pin-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        info = "tiny_pin-1.0.dist-info"
        file.writestr("tiny_pin.py", "WHOLE = True\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-pin\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"tiny_pin.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    (tmp_path / "requirements-page.txt").write_text(f"# a comment\n{wheel}\n")
    (tmp_path / "requirements.txt").write_text("-r requirements-page.txt\n")
    return tmp_path


@pytest.fixture(scope="module")
def venv(tmp_path_factory) -> Path:
    """A virtual environment with pip alone, as the first half of a set-up leaves it.

    The copy of our own pip is compiled already.
    """
    folder = tmp_path_factory.mktemp("project") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    ours = metadata.distribution("pip").locate_file("pip")
    shutil.copytree(str(ours), next(folder.glob("lib/python*/site-packages")) / "pip")
    return folder


@pytest.fixture
def half_way(project, venv) -> Path:
    """The project with an environment in which nothing is installed yet."""
    shutil.copytree(venv, project / ".venv", symlinks=True)
    return project


def set_up(project: Path, kind: str = "page") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "engine.install", kind], cwd=project, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def works(project: Path) -> bool:
    command = [project / ".venv/bin/python", "-c", "import tiny_pin; assert tiny_pin.WHOLE"]
    return subprocess.run(command, check=False, cwd=project).returncode == 0


@pytest.mark.timeout(PATIENCE)
def test_after_a_set_up_that_was_killed_two_at_once_are_one(project):
    killed = set_up(project)
    while not (project / ".venv/bin/python").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not works(project)
    both = [set_up(project), set_up(project)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("waiting for it" in text for text in said) == [False, True]
    assert sum("a virtual environment of Python" in text for text in said) == 1
    assert works(project)
    again = set_up(project)
    assert again.communicate()[0] == ""  # nothing to do, nothing to say
    larger = set_up(project, "model")
    assert "PyTorch" in larger.communicate()[0]
    assert set_up(project).communicate()[0] == ""


@pytest.mark.timeout(PATIENCE)
def test_a_set_up_that_was_killed_in_the_midst_of_a_package_goes_on(half_way):
    """The package's files are there in part, its RECORD is not."""
    assert set_up(half_way).communicate()[0]
    (half_way / ".venv/.ready-page").unlink()
    site = next((half_way / ".venv/lib").glob("python*/site-packages"))
    (site / "tiny_pin.py").write_text("WHOLE = False\n")
    (site / "tiny_pin-1.0.dist-info/RECORD").write_text("")
    done = set_up(half_way)
    said = done.communicate()[0]
    assert (done.returncode, works(half_way)) == (0, True), said


def test_an_environment_whose_python_has_gone_is_made_anew(venv, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON", sys.executable)
    gone = tmp_path / ".venv"
    shutil.copytree(venv, gone, symlinks=True)
    stamp = gone / ".ready-page"
    stamp.write_text(install._digest("page"))
    assert install.is_ready(gone, "page")
    (gone / "bin/python").unlink()
    (gone / "bin/python").symlink_to("/no/such/python")
    assert not install.is_ready(gone, "page")
    ran = []
    monkeypatch.setattr(install, "_run", lambda *command, quiet=False: ran.append(command))
    install.install(gone, "page")
    assert ran[0] == (sys.executable, "-m", "venv", "--clear", str(gone))
    assert ran[1][1:4] == ("-m", "pip", "install")


@pytest.fixture
def interpreters(tmp_path, monkeypatch):
    """interpreters(*answers): the PATH holds so many, which answer so. Returns their paths."""
    monkeypatch.delenv("PYTHON", raising=False)

    def put(*answers: str) -> list[str]:
        folders = [tmp_path / str(n) for n in range(len(answers))]
        for folder, answer in zip(folders, answers, strict=True):
            folder.mkdir()
            file = folder / "python{}.{}".format(*sys.version_info[:2])
            file.write_text(f"#!/bin/sh\n{answer}\n")
            file.chmod(0o755)
        paths = ["/no/such/folder", "", *map(str, folders), os.environ["PATH"]]
        monkeypatch.setenv("PATH", os.pathsep.join(paths))
        monkeypatch.setattr(install, "is_optimised", lambda: False)
        return [str(next(folder.iterdir())) for folder in folders]

    return put


def test_the_first_interpreter_that_was_built_to_be_quick_is_taken(interpreters, monkeypatch):
    ours = "{}.{}".format(*sys.version_info[:2])
    quick = f"echo True {ours}"
    paths = interpreters(f"echo False {ours}", "echo True 3.8", "exit 1", "read x", quick, quick)
    assert install.pick_interpreter() == paths[4]
    monkeypatch.setenv("PYTHON", "named")
    assert install.pick_interpreter() == sys.executable
    monkeypatch.delenv("PYTHON")
    monkeypatch.setattr(install, "is_optimised", lambda: True)
    assert install.pick_interpreter() == sys.executable


def test_one_that_says_nothing_is_passed_over(interpreters, monkeypatch):
    silent = Path(*interpreters("exec sleep 60"))
    monkeypatch.setattr(install, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(install.os, "get_exec_path", lambda: [str(silent.parent)])
    assert install.pick_interpreter() == sys.executable


def test_where_no_other_is_quicker_this_interpreter_is_taken(interpreters, monkeypatch):
    paths = interpreters("exit 1", "echo False")
    monkeypatch.setattr(install.os, "get_exec_path", lambda: [str(Path(p).parent) for p in paths])
    assert install.pick_interpreter() == sys.executable


def test_a_quick_interpreter_that_makes_no_environment_gives_way(tmp_path, monkeypatch, capsys):
    ran = []

    def run(*command, quiet=False):
        ran.append(command)
        if command[0] == "/quick/python":
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(install, "_run", run)
    monkeypatch.setattr(install, "pick_interpreter", lambda: "/quick/python")
    (tmp_path / ".venv").mkdir()
    install.install(tmp_path / ".venv", "page")
    assert [command[0] for command in ran[:2]] == ["/quick/python", sys.executable]
    assert "(/quick/python)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("built", "prefix", "quick"),
    [
        ("'--enable-shared'", "/home/me/.pyenv/versions/3.11.7", False),
        ("'--enable-shared' '--enable-optimizations' '--with-lto'", "/opt/python", True),
        ("'--enable-shared'", "/usr", True),  # Debian's; it optimises in a way of its own
        (None, "C:\\Python", True),
    ],
)
def test_an_interpreter_knows_how_it_was_built(monkeypatch, built, prefix, quick):
    monkeypatch.setattr(install.sysconfig, "get_config_var", {"CONFIG_ARGS": built}.get)
    monkeypatch.setattr(sys, "base_prefix", prefix)
    assert install.is_optimised() is quick


def test_what_stands_in_the_way_is_named(project):
    (project / ".venv").write_text("")
    done = set_up(project)
    assert done.communicate()[0] == f"set-up: {project}/.venv is not a folder; remove it\n"
    assert done.returncode == 1


@pytest.mark.timeout(PATIENCE)
def test_a_closed_output_ends_no_set_up(half_way):
    command = f"{sys.executable} -m engine.install page >&- 2>/dev/full"
    assert subprocess.run(["sh", "-c", command], cwd=half_way, check=False).returncode == 0
    assert works(half_way)


def test_the_page_without_its_packages_says_what_to_do():
    lacking = PAGE_ONLY.replace('"torch"', '"aiohttp", "torch"')
    code = "from demo.__main__ import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", lacking + code], capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: the package aiohttp is not installed; use `make run`\n"


@pytest.mark.timeout(PATIENCE)
def test_a_pin_that_cannot_be_had_is_one_line_at_the_end(half_way):
    (half_way / "requirements-page.txt").write_text("./not-here.whl\n")
    done = set_up(half_way)
    said = done.communicate()[0]
    assert done.returncode == 1
    assert said.splitlines()[-1].startswith("set-up: pip could not install everything")
    assert "Traceback" not in said


def test_without_a_fitting_python_make_says_what_it_wants(tmp_path):
    for name in ("Makefile", "engine"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["make", "--silent", "run", "PYTHON=/no/python3.10"], cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    first, *others = done.stderr.splitlines()
    wanted = "Python 3.11 to 3.14 with its venv module is needed"
    assert first == f"PYTHON=/no/python3.10 does not fit: {wanted}"
    assert len(others) == 1  # make's own
    assert not (tmp_path / ".venv").exists()


def test_what_the_product_imports_is_pinned():
    """Not only brought along by something that is, and may leave it out one day."""
    imported = set()
    for path in [*ROOT.glob("engine/**/*.py"), *ROOT.glob("demo/**/*.py"), ROOT / "modal_app.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    foreign = imported - {"engine", "demo", "modal_app"} - set(sys.stdlib_module_names)
    known = packages_distributions()
    pins = {canonicalize_name(Requirement(one).name) for one in requirements(LISTS["test"])}
    names = {
        module: {canonicalize_name(name) for name in known.get(module, ())} for module in foreign
    }
    assert {module for module, found in names.items() if found and not found & pins} == set()
