#!/usr/bin/env bash
# Creates the environment and runs the tests. Arguments go to pytest: scripts/test.sh -m "not slow" leaves out the slow ones.
# scripts/test.sh --paddle 2.6.2 does so with the newest Paddle that PyPI has for GPUs, in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
version=()
if [ "${1:-}" = --paddle ]; then
    version=(--paddle "${2:-}")
    shift $(( $# < 2 ? 1 : 2 ))
fi
bash scripts/setup.sh "${version[@]}"
exec ".venv${version[1]:+-${version[1]}}/bin/python" -m pytest "$@"
