#!/usr/bin/env bash
# FastConvMAE pretraining: with ppssl/recipes/fastconvmae/convvit_base_patch16_pretrain.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/fastconvmae_base_pretrain}
launch main_pretrain.py -c fastconvmae/convvit_base_patch16_pretrain "$@"
