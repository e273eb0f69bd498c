#!/usr/bin/env bash
# MAE linear probing: with ppssl/recipes/mae/vit_large_patch16_linprobe.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_large_linprobe}
launch main_linprobe.py -c mae/vit_large_patch16_linprobe --finetune "${CKPT:-$(newest runs/mae_large_pretrain)}" "$@"
