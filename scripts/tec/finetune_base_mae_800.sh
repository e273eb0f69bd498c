#!/usr/bin/env bash
# TEC finetuning: with ppssl/recipes/tec/vit_base_patch16_mae_800ep_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/tec_base_mae_800_finetune}
launch main_finetune.py -c tec/vit_base_patch16_mae_800ep_finetune --finetune "${CKPT:-$(newest runs/tec_base_mae_800_pretrain)}" "$@"
