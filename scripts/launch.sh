# Sourced by the scripts below: `launch main_pretrain.py -c RECIPE ...` starts this node's ranks and starts them again when they fail.
#
# From the environment:  DATA (data set folder), OUT (run folder), CKPT (weights to start from; default: what the pretraining script left),
# DEVICES (such as 0,1,2,3; default: all GPUs), NPROC (ranks on a CPU node), TRIES (default 3), PYTHON (default: .venv/bin/python),
# DRY_RUN=1 (print what would run and stop). On several nodes the same command on each, with NNODES, NODE_RANK (0 to NNODES-1) and MASTER
# (host:port of node 0); PADDLE_NNODES and PADDLE_MASTER count too. Arguments of a script go to the training, behind all others.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
DATA=${DATA:-data/imagenet}
NNODES=${NNODES:-${PADDLE_NNODES:-1}} MASTER=${MASTER:-${PADDLE_MASTER:-}} TRIES=${TRIES:-3}

# The newest checkpoint of a run; the run's folder as long as it has none.
newest() {
    local found=("$1"/checkpoint-epoch*.safetensors)
    [ -e "${found[-1]}" ] && echo "${found[-1]}" || echo "$1"
}

# The launcher writes its whole environment next to the logs: it is given no more than it needs.
trimmed_environment() {
    env | grep -E '^(PATH|HOME|USER|LANG|LC_ALL|TMPDIR|LD_LIBRARY_PATH|PYTHONPATH|XDG_CACHE_HOME|(CUDA|NCCL|GLOO|MKL|OMP|FLAGS|GLOG|PPSSL)_[A-Z0-9_]*)=' || true
}

# Fills `nodes` with what paddle.distributed.launch is told about nodes and devices.
describe_nodes() {
    nodes=()
    if [ "$NNODES" != 1 ]; then
        nodes+=(--nnodes "$NNODES" --rank "${NODE_RANK:?set NODE_RANK to the number of this node, from 0}")
        nodes+=(--master "${MASTER:?set MASTER to host:port of node 0}")
    fi
    [ -z "${DEVICES:-}" ] || nodes+=(--devices "$DEVICES")
    [ -z "${NPROC:-}" ] || nodes+=(--nproc_per_node "$NPROC")
}

launch() {
    local entry=$1; shift
    local arguments=(--data_path "$DATA" --output_dir "$OUT" --resume auto "$@")
    if [ "${DRY_RUN:-0}" = 1 ]; then
        exec "$PYTHON" "$entry" "${arguments[@]}" --dry_run
    fi
    local nodes environment try code
    describe_nodes
    mapfile -t environment < <(trimmed_environment)
    for try in $(seq "$TRIES"); do
        local logs="$OUT/logs/$(date +%Y%m%d-%H%M%S)-node${NODE_RANK:-0}"
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
