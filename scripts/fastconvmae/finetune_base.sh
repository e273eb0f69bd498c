#!/usr/bin/env bash
# FastConvMAE finetuning: with ppssl/recipes/fastconvmae/convvit_base_patch16_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/fastconvmae_base_finetune}
launch main_finetune.py -c fastconvmae/convvit_base_patch16_finetune --finetune "${CKPT:-$(newest runs/fastconvmae_base_pretrain)}" "$@"
