"""Backbones: loading a T5 and its tokenizer, what the families share, and new tokens."""
