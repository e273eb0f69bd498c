#!/usr/bin/env bash
# MAE ViT-Large pretraining; the numbers are in ppssl/recipes/mae/vit_large_patch16_pretrain.yaml
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_large_pretrain}
launch main_pretrain.py -c mae/vit_large_patch16_pretrain "$@"
