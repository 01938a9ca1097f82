"""The page's scripts: unit tests by node's own runner, types by tsc, recommended rules by eslint.

npm brings the last two, pinned in js/package-lock.json, into the ignored folder js/node_modules.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "js"
FILES = sorted(HERE.glob("*.test.mjs"))
SCRIPTS = sorted((ROOT / "demo/page/static").glob("*.js"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.removesuffix(".test.mjs"))
def test_script(file):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is missing (apt install nodejs): the page's scripts are not unit-tested")
    done = run(node, "--no-warnings", file)  # with --test it would start itself a second time
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of npm's programs, fetched once for each lock file."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing (apt install npm): the page's scripts have no type check")
    lock, fetched = HERE / "package-lock.json", HERE / "node_modules/fetched-lock.json"
    if not fetched.exists() or fetched.read_bytes() != lock.read_bytes():
        done = run(npm, "ci", "--no-audit", "--no-fund", "--prefix", HERE)
        if done.returncode:
            why = done.stderr.strip().splitlines()[:1]
            pytest.fail(f"npm ci cannot fetch tests/demo/js (no network?): {why}", pytrace=False)
        shutil.copy(lock, fetched)
    return HERE / "node_modules/.bin"


def test_types_of_the_scripts_hold(tools):
    done = run(tools / "tsc", "--noEmit", "--project", HERE)
    assert done.returncode == 0, done.stdout


def test_the_scripts_keep_the_recommended_rules(tools):
    rules = HERE / "eslint.config.mjs"
    done = run(
        tools / "eslint", "--config", rules, "demo/page/static", "tests/demo/js", "docs/samples"
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_no_script_leaves_the_type_check(script):
    text = script.read_text(encoding="utf-8")
    assert text.startswith("// @ts-check\n")
    assert "@ts-ignore" not in text
    assert "@ts-expect-error" not in text
    assert "{any}" not in text
