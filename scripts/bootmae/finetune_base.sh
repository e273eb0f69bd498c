#!/usr/bin/env bash
# BootMAE finetuning: with ppssl/recipes/bootmae/bootmae_base_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/bootmae_base_finetune}
launch main_finetune.py -c bootmae/bootmae_base_finetune --finetune "${CKPT:-$(newest runs/bootmae_base_pretrain)}" "$@"
