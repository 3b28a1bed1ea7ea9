"""Imports of the processes of ``fresh.py``; nothing else may run here, as threads do not outlive a fork."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import evaluate
import peft
import sacrebleu
import torch
import transformers
from transformers import Trainer

import t5peft
from t5peft import T5PeftTrainer, lora_wrap
from t5peft.methods.registry import METHODS

LIBRARIES = (datasets, evaluate, peft, sacrebleu, torch, transformers, Trainer)
OURS = (t5peft, T5PeftTrainer, lora_wrap, METHODS)
