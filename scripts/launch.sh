# Sourced by the scripts below: `launch main_pretrain.py -c RECIPE ...` starts this node's ranks and starts them again when they fail.
#
# From the environment:  DATA (data set folder), OUT (run folder), CKPT (weights to start from), DEVICES (such as 0,1,2,3; default: all GPUs),
# NPROC (ranks on a CPU node), NNODES, NODE_RANK and MASTER (host:port of node 0) for several nodes, TRIES (default 3),
# PYTHON (default: .venv/bin/python), DRY_RUN=1 (print what would run and stop).
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
DATA=${DATA:-data/imagenet}
NNODES=${NNODES:-1} NODE_RANK=${NODE_RANK:-0} TRIES=${TRIES:-3}

# The launcher writes its whole environment next to the logs: it is given no more than it needs.
trimmed_environment() {
    env | grep -E '^(PATH|HOME|USER|LANG|LC_ALL|TMPDIR|LD_LIBRARY_PATH|PYTHONPATH|XDG_CACHE_HOME|(CUDA|NCCL|GLOO|MKL|OMP|FLAGS|GLOG|PPSSL)_[A-Z0-9_]*)=' || true
}

launch() {
    local entry=$1; shift
    local arguments=("$@" --data_path "$DATA" --output_dir "$OUT" --resume auto)
    if [ "${DRY_RUN:-0}" = 1 ]; then
        exec "$PYTHON" "$entry" "${arguments[@]}" --dry_run
    fi
    local nodes=() try code environment
    [ "$NNODES" = 1 ] || nodes=(--nnodes "$NNODES" --rank "$NODE_RANK" --master "${MASTER:?set MASTER to host:port of node 0}")
    [ -z "${DEVICES:-}" ] || nodes+=(--devices "$DEVICES")
    [ -z "${NPROC:-}" ] || nodes+=(--nproc_per_node "$NPROC")
    mapfile -t environment < <(trimmed_environment)
    for try in $(seq "$TRIES"); do
        local logs="$OUT/logs/$(date +%Y%m%d-%H%M%S)-node$NODE_RANK"
        mkdir -p "$logs"
        echo "launch: try $try of $TRIES, logs of every rank in $logs"
        code=0
        env -i "${environment[@]}" "$PYTHON" -m paddle.distributed.launch "${nodes[@]}" --log_dir "$logs" "$entry" "${arguments[@]}" || code=$?
        rm -f "$logs"/backup_env.*.json
        [ "$code" != 0 ] || return 0
        # a refused request and a requested stop do not get better by trying again
        if grep -qs '^error.*: ' "$logs"/workerlog.* && ! grep -qs 'Train\]' "$logs"/workerlog.*; then break; fi
        [ "$code" != 15 ] && [ "$code" != 143 ] || break
        echo "launch: exit code $code" >&2
        sleep 5
    done
    grep -hs '^error' "$logs"/workerlog.* >&2 || true
    exit "$code"
}
