#!/usr/bin/env bash
# Pins what pyproject.toml asks for, with hashes and without hosts, in requirements/lock.txt.
# Usage: requirements/lock.sh [--upgrade]     (from the top of the checkout; needs uv)
set -euo pipefail
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-header --no-annotate --override requirements/overrides.txt --extra export \
    --extra tensorboard --group dev --group build \
    "$@" pyproject.toml requirements/extra.in -o requirements/lock.txt
