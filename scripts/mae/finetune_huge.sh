#!/usr/bin/env bash
# MAE finetuning: with ppssl/recipes/mae/vit_huge_patch14_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_huge_finetune}
launch main_finetune.py -c mae/vit_huge_patch14_finetune --finetune "${CKPT:-$(newest runs/mae_huge_pretrain)}" "$@"
