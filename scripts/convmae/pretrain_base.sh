#!/usr/bin/env bash
# ConvMAE pretraining: with ppssl/recipes/convmae/convvit_base_patch16_pretrain.yaml; variables: scripts/launch.sh
source "$(dirname "$0")/../launch.sh"
OUT=${OUT:-runs/convmae_base_pretrain}
launch main_pretrain.py -c convmae/convvit_base_patch16_pretrain "$@"
