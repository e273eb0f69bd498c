#!/usr/bin/env bash
# BootMAE finetuning: with ppssl/recipes/bootmae/bootmae_large_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/bootmae_large_finetune}
launch main_finetune.py -c bootmae/bootmae_large_finetune --finetune "${CKPT:-$(newest runs/bootmae_large_pretrain)}" "$@"
