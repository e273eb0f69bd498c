#!/usr/bin/env bash
# Pretrains the tiny MAE on the embedded digits (or takes runs/quickstart), then finetunes it, finetunes the same model from scratch for as
# many epochs, and probes the frozen encoder: a few minutes each on two CPU cores. Flags go to both finetunings, such as --seed 1.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
PRETRAINED=${PRETRAINED:-runs/quickstart}
OUT=${OUT:-runs/transfer}
PYTHON=.venv/bin/python

$PYTHON main_pretrain.py --output_dir "$PRETRAINED" --resume auto
checkpoint=$(ls "$PRETRAINED"/checkpoint-epoch*.safetensors | tail -1)
$PYTHON main_finetune.py --finetune "$checkpoint" --output_dir "$OUT/pretrained" --resume auto "$@"
$PYTHON main_finetune.py --output_dir "$OUT/scratch" --resume auto "$@"
$PYTHON main_linprobe.py --finetune "$checkpoint" --output_dir "$OUT/linprobe" --resume auto --knn

$PYTHON - "$OUT" <<'PY'
import json, sys
def last(run):
    return json.loads(open(f"{sys.argv[1]}/{run}/log.txt").read().splitlines()[-1])["test_acc1"]
print(f"top-1 on the 1,000 held-out digits: finetuned from the pretrained encoder {last('pretrained'):.1f} %, "
      f"from scratch {last('scratch'):.1f} %, linear probe {last('linprobe'):.1f} %")
PY
