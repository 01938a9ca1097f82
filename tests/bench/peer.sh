#!/bin/sh
# The public moshi package beside us, at a reduced size on a CPU. It needs the network: pip fetches
# moshi and einops into a folder that is removed again; nothing of the environment changes.
set -eu
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
.venv/bin/python -m pip install --quiet --no-deps --target "$folder/peer" moshi==0.2.13 einops==0.8.2
.venv/bin/python -m engine bench peer --small --device cpu --no-compile \
    --moshi "$folder/peer" --json "$folder/peer.json" "$@"
