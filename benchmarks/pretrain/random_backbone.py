"""The shape and vocabulary of the embedded backbone with random weights, as a folder that ``--backbone`` takes.

python benchmarks/pretrain/random_backbone.py runs/random
t5peft bench --suite real --backbone runs/random --output benchmarks/records/bench/real_random    # see transfer.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from t5peft.models.backbone import load_backbone
from t5peft.pretraining import Shape, new_model


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = load_backbone("mini")[1]
    new_model(tokenizer, Shape(), seed=args.seed).save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
