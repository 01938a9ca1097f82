"""The kernels compile for an A10G, which nobody has here, and fit into one of its programs."""

import json
import os
import subprocess
import sys

A10G = 86  # compute capability
MOST_SHARED = 101_376  # bytes that a program may have there
SHARED = {"_matmul", "_add_norm"}  # by a tick and by a piece of a prompt
OF_A_TICK = SHARED | {
    *("_embed", "_decode", "_merge", "_few", "_pick", "_pick_text"),
    *("_convolve", "_nearest", "_sum_entries", "_upsample"),
}
OF_A_PIECE = SHARED | {"_enter", "_hear"}


def test_every_kernel_compiles_for_an_a10g_and_fits_its_shared_memory(tmp_path):
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."}
    command = [sys.executable, "-m", "tests.model.compiling", str(A10G)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in rows} == OF_A_TICK | OF_A_PIECE
    assert max(row["shared"] for row in rows) <= MOST_SHARED
