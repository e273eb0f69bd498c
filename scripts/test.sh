#!/usr/bin/env bash
# Creates the environment and runs the tests. Arguments go to pytest: scripts/test.sh -m "not slow" leaves out the slow ones.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m pytest "$@"
