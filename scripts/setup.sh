#!/usr/bin/env bash
# Creates the environment .venv in the repository root, or takes the one that is there. Prints what it does.
# scripts/setup.sh --paddle 2.6.2 creates .venv-2.6.2 with that Paddle beside it.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

NEEDED_MB=6000                                            # wheels, their unpacked files and pip's cache
PYTHON=${PYTHON:-python3}

case "$*" in
    "") venv=.venv requirements=requirements.txt newest=13 ;;
    "--paddle 2.6.2") venv=.venv-2.6.2 requirements=requirements-2.6.txt newest=12 ;;
    *) fail "unknown arguments $*: without any for the newest Paddle that was tested, or --paddle 2.6.2" ;;
esac

stamp=$venv/requirements.sha256
wanted=$(sha256sum "$requirements" | cut -d' ' -f1)
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
    echo "setup: taking the existing environment $venv"
    exit 0
fi

command -v "$PYTHON" >/dev/null || fail "no $PYTHON found: install Python 3.11 (Debian: apt-get install python3 python3-venv), or set PYTHON"
"$PYTHON" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" ||
    fail "$("$PYTHON" --version) is not supported: Paddle's wheels need Python 3.10 to 3.$newest (tested: 3.11); set PYTHON"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail "this Python has no venv module: install it (Debian: apt-get install python3-venv)"

if [ ! -x "$venv/bin/python" ]; then
    free=$(df -Pm . | awk 'NR == 2 { print $4 }')
    [ "$free" -ge $NEEDED_MB ] || fail "$free MB free here and about $NEEDED_MB MB needed: free some space"
    echo "setup: creating $venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv "$venv"
fi
echo "setup: installing $requirements into $venv (a few minutes on the first run)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
    fail "pip could not install $requirements: see its message above (network, or a full disk)"
echo "$wanted" > "$stamp"
echo "setup: done"
