#!/usr/bin/env bash
# MAE finetuning: with ppssl/recipes/mae/vit_base_patch16_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_base_finetune}
launch main_finetune.py -c mae/vit_base_patch16_finetune --finetune "${CKPT:-$(newest runs/mae_base_pretrain)}" "$@"
