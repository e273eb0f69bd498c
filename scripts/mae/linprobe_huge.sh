#!/usr/bin/env bash
# MAE linear probing: with ppssl/recipes/mae/vit_huge_patch14_linprobe.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_huge_linprobe}
launch main_linprobe.py -c mae/vit_huge_patch14_linprobe --finetune "${CKPT:-$(newest runs/mae_huge_pretrain)}" "$@"
