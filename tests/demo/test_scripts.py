"""The page's pure scripts, tested by node's own test runner; one pytest test per file."""

import shutil
import subprocess
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "js").glob("*.test.mjs"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.removesuffix(".test.mjs"))
def test_script(file):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is missing (apt install nodejs): the page's scripts are not unit-tested")
    done = subprocess.run(
        [node, "--no-warnings", "--test", str(file)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
