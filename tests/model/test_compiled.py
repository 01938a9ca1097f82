"""The kernels compile for GPUs that nobody has here, and fit into one program of each."""

import json
import os
import subprocess
import sys

MOST_SHARED = {86: 101_376, 90: 232_448}  # bytes of a program, by compute capability: A10G, H200
SHARED = {"_matmul", "_add_norm"}  # by a tick and by a piece of a prompt
OF_A_TICK = SHARED | {
    *("_embed", "_decode", "_merge", "_attend_few", "_pick", "_pick_text"),
    *("_convolve", "_nearest", "_sum_entries", "_upsample"),
}
OF_A_PIECE = SHARED | {"_write_piece", "_attend_piece"}
LARGEST = OF_A_PIECE | {"_decode", "_merge"}  # a newer GPU has room for the others if these fit


def test_every_kernel_compiles_for_each_gpu_and_fits_its_shared_memory(tmp_path):
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": "."}
    # Shared memory is laid out before: the code has to be accepted, not to be fast.
    environment |= {"DISABLE_LLVM_OPT": "1", "DISABLE_PTXAS_OPT": "1"}
    command = [sys.executable, "-m", "tests.model.compiling", *map(str, MOST_SHARED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for capability, most in MOST_SHARED.items():
        of_this = [row for row in rows if row["capability"] == capability]
        oldest = capability == min(MOST_SHARED)
        assert {row["kernel"] for row in of_this} == (OF_A_TICK | OF_A_PIECE if oldest else LARGEST)
        assert max(row["shared"] for row in of_this) <= most
