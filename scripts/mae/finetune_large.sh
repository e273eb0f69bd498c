#!/usr/bin/env bash
# MAE finetuning: with ppssl/recipes/mae/vit_large_patch16_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_large_finetune}
launch main_finetune.py -c mae/vit_large_patch16_finetune --finetune "${CKPT:-$(newest runs/mae_large_pretrain)}" "$@"
