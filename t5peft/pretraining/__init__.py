"""Pretraining: T5's span corruption, prefix language modeling, and tasks made from plain text."""

from t5peft.pretraining.corruption import Corruption as Corruption
from t5peft.pretraining.corruption import corrupt as corrupt
from t5peft.pretraining.corruption import corruption_for_source as corruption_for_source
from t5peft.pretraining.corruption import corruption_of as corruption_of
from t5peft.pretraining.corruption import split_prefix as split_prefix
from t5peft.pretraining.embeddings import pmi_embeddings as pmi_embeddings
from t5peft.pretraining.init import Shape as Shape
from t5peft.pretraining.init import new_model as new_model
from t5peft.pretraining.matching_head import set_matching_head as set_matching_head
from t5peft.pretraining.pretrainer import PretrainConfig as PretrainConfig
from t5peft.pretraining.pretrainer import Pretrainer as Pretrainer
from t5peft.pretraining.selfsupervised import SelfSupervised as SelfSupervised
from t5peft.pretraining.text import read_documents as read_documents
from t5peft.pretraining.tokenizer import save_tokenizer as save_tokenizer
from t5peft.pretraining.tokenizer import train_tokenizer as train_tokenizer
from t5peft.pretraining.tokens import TokenStore as TokenStore
from t5peft.pretraining.tokens import open_store as open_store
from t5peft.pretraining.tokens import shuffled_documents as shuffled_documents
from t5peft.pretraining.tokens import store_of_files as store_of_files
from t5peft.pretraining.tokens import write_store as write_store
