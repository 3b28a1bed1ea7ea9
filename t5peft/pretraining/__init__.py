"""Pretraining: T5's span corruption, prefix language modeling, and tasks made from plain text."""

from t5peft.pretraining.corruption import Corruption, corrupt, corruption_for_source, corruption_of, split_prefix
from t5peft.pretraining.embeddings import pmi_embeddings
from t5peft.pretraining.init import Shape, new_model
from t5peft.pretraining.matching_head import set_matching_head
from t5peft.pretraining.pretrainer import PretrainConfig, Pretrainer
from t5peft.pretraining.selfsupervised import SelfSupervised
from t5peft.pretraining.text import read_documents
from t5peft.pretraining.tokenizer import save_tokenizer, train_tokenizer
from t5peft.pretraining.tokens import TokenStore, open_store, shuffled_documents, store_of_files, write_store

__all__ = [
    "Corruption",
    "PretrainConfig",
    "Pretrainer",
    "SelfSupervised",
    "Shape",
    "TokenStore",
    "corrupt",
    "corruption_for_source",
    "corruption_of",
    "new_model",
    "open_store",
    "pmi_embeddings",
    "read_documents",
    "save_tokenizer",
    "set_matching_head",
    "shuffled_documents",
    "split_prefix",
    "store_of_files",
    "train_tokenizer",
    "write_store",
]
