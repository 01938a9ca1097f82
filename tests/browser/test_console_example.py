"""The browser-console example, as it is copied (without binaryType) and as it should be."""

import numpy as np
import pytest

COPIED = """
const ws = new WebSocket('ADDRESS');
ws.onopen = () => ws.send(new Uint8Array([7, ...new TextEncoder().encode('Hello from Modal!')]));
ws.onmessage = e => console.log('type', new Uint8Array(e.data)[0]);
"""
CORRECTED = COPIED.replace("ws.onopen", "ws.binaryType = 'arraybuffer';\nws.onopen")


@pytest.mark.parametrize(
    ("code", "logs"), [(COPIED, {"type undefined"}), (CORRECTED, {"type 0", "type 1", "type 2"})]
)
def test_the_example_works_in_a_console(browser, server, backend, code, logs):
    """The server speaks either way; no error reaches the console."""
    context = browser.new_context()
    page = context.new_page()
    seen, errors = [], []
    page.on("console", lambda m: (errors if m.type == "error" else seen).append(m.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server.url}healthz")
    opened = len(backend.opened)
    code = code.replace("ADDRESS", f"ws://127.0.0.1:{server.port}/api")
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
    context.close()
