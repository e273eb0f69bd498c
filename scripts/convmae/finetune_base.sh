#!/usr/bin/env bash
# ConvMAE finetuning: with ppssl/recipes/convmae/convvit_base_patch16_finetune.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/convmae_base_finetune}
launch main_finetune.py -c convmae/convvit_base_patch16_finetune --finetune "${CKPT:-$(newest runs/convmae_base_pretrain)}" "$@"
