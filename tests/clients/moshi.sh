#!/bin/sh
# Moshi's own Python client, unchanged, against a server: `sh tests/clients/moshi.sh [URL [WAV]]`.
# It fetches moshi without what it needs (a model's packages) into a folder of its own, once.
set -e
here=$(dirname "$0")
packages=artifacts/moshi
[ -d "$packages/moshi" ] || .venv/bin/python -m pip install --quiet --no-deps --target "$packages" moshi==0.2.13
PYTHONPATH="$packages:$PWD" .venv/bin/python "$here/moshi_client.py" "${1:-http://localhost:8998}" ${2:+"$2"}
