"""The browser-console examples of docs/api.md: as widely copied (no binaryType), and right."""

import re
from pathlib import Path

import numpy as np
import pytest

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
EXAMPLES = [code for code in re.findall(r"```javascript\n(.*?)```", API, re.S) if "Modal!" in code]
COPIED = next(code for code in EXAMPLES if "binaryType" not in code)
CORRECTED = next(code for code in EXAMPLES if "binaryType" in code)


@pytest.mark.parametrize(
    ("code", "logs"), [(COPIED, {"type undefined"}), (CORRECTED, {"0", "1", "2"})]
)
def test_the_example_works_in_a_console(bare_page, server, backend, code, logs):
    """The server speaks either way; no error reaches the console."""
    page, seen, errors = bare_page, [], []
    page.on("console", lambda m: (errors if m.type == "error" else seen).append(m.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server.url}healthz")
    opened = len(backend.opened)
    code = code.replace("wss://HOST", f"ws://127.0.0.1:{server.port}")
    page.evaluate(f"() => {{ {code} }}")
    for _ in range(600):
        page.wait_for_timeout(50)
        said = backend.said_in_newest() if len(backend.opened) > opened else np.zeros(1)
        if np.count_nonzero(np.abs(said) > 0.02) > 6000 and logs <= set(seen):
            break
    assert len(backend.opened) == opened + 1
    assert np.count_nonzero(np.abs(said) > 0.02) > 6000  # a quarter of a second of speech
    assert set(seen) == logs
    assert errors == []
