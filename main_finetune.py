"""Supervised finetuning of a pretrained encoder: python main_finetune.py --model vit_base_patch16 --finetune CKPT --data_path DATA"""
import sys

from ppssl.cli import main

if __name__ == "__main__":
    sys.exit(main("finetune"))
