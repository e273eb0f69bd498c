#!/usr/bin/env bash
# TEC finetuning: with ppssl/recipes/tec/vit_large_patch16_mae_300ep_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/tec_large_mae_300_finetune}
launch main_finetune.py -c tec/vit_large_patch16_mae_300ep_finetune --finetune "${CKPT:-$(newest runs/tec_large_mae_300_pretrain)}" "$@"
