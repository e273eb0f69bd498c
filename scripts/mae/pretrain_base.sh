#!/usr/bin/env bash
# MAE pretraining: with ppssl/recipes/mae/vit_base_patch16_pretrain.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/mae_base_pretrain}
launch main_pretrain.py -c mae/vit_base_patch16_pretrain "$@"
