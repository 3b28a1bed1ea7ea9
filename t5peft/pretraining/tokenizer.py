"""Train a T5 vocabulary on the user's own text: sentencepiece's unigram model, written as a fast tokenizer.

As in T5 (Raffel et al. 2020), pad is 0, ``</s>`` is 1 and ``<unk>`` is 2. The sentinels ``<extra_id_0>`` ... are at the end of the
vocabulary in descending order, and ``</s>`` follows every text. Unlike T5, byte fallback makes every text known: a newline,
braces and every printable ASCII character have a piece of their own. Digits are single pieces. White space is kept, so decoding
returns the text, except for one space at its beginning, which every text gets.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))
_SPECIAL = ("<pad>", "</s>", "<unk>")


def sentences(documents: Iterable[Iterable[str]], *, share: float, seed: int) -> Iterator[str]:
    """Yield a random share of the paragraphs, cut into sentences of at most 1,000 characters."""
    generator = random.Random(seed)
    for document in documents:
        for paragraph in document:
            if generator.random() < share:
                yield from (part[:1000] for part in re.split(r"(?<=[.!?]) ", paragraph) if part)


def train_unigram(texts: Iterator[str], *, pieces: int, threads: int) -> list[tuple[str, float]]:
    """Return pieces and log probabilities by id; the first are ``<pad>``, ``</s>``, ``<unk>`` and the 256 bytes."""
    # Needed only here: reading a tokenizer and the rest of pretraining do without it.
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(
            "Got no package sentencepiece; expected it to train a vocabulary. Install it: pip install 't5peft[pretraining]'."
        ) from error
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts,
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9995,
            required_chars=_PRINTABLE,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece="<pad>",
            user_defined_symbols=["\n"],
            num_threads=threads,
            minloglevel=1,
        )
    except RuntimeError as error:  # the class of all of sentencepiece's errors
        raise ValueError(
            f"Got a text on which no vocabulary of {pieces} pieces can be trained ({error}); expected more text or fewer pieces. "
            "Bytes, printable characters and special tokens are 355 pieces. With little text, take all of it (share=1, "
            "--vocabulary-share 1)."
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]


def build_tokenizer(pieces: list[tuple[str, float]], *, sentinels: int = 100) -> PreTrainedTokenizerFast:
    """Return the fast tokenizer over ``pieces``, with ``sentinels`` more ids at the end."""
    names = [f"<extra_id_{i}>" for i in reversed(range(sentinels))]
    tokenizer = Tokenizer(Unigram([*pieces, *((name, 0.0) for name in names)], unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace("\r\n", "\n")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (*_SPECIAL, *reversed(names))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(reversed(names)),
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def train_tokenizer(
    documents: Iterable[Iterable[str]],
    *,
    vocabulary: int = 8192,
    sentinels: int = 100,
    share: float = 0.1,
    seed: int = 0,
    threads: int = 2,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on a random ``share`` of the paragraphs.

    Args:
        documents: Documents, each with its paragraphs.
        vocabulary: Number of pieces, bytes and sentinels; little text gives fewer.
        sentinels: Number of sentinels.
        share: Share of the paragraphs.
        seed: Seed of the share.
        threads: Threads of the training.

    Raises:
        ValueError: The share has no sentence, or the vocabulary has no room for the characters.
    """
    texts = sentences(documents, share=share, seed=seed)
    return build_tokenizer(train_unigram(texts, pieces=vocabulary - sentinels, threads=threads), sentinels=sentinels)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    tokenizer.save_pretrained(str(directory))


def sentinel_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of ``<extra_id_0>``, ``<extra_id_1>``, ... in this order.

    Raises:
        ValueError: The tokenizer has none.
    """
    found = {name: index for name, index in tokenizer.get_vocab().items() if re.fullmatch(r"<extra_id_\d+>", name)}
    if not found:
        raise ValueError(
            "Got a tokenizer without <extra_id_0>, <extra_id_1>, ...; expected a T5 tokenizer, whose sentinels span corruption "
            "needs."
        )
    return [found[name] for name in sorted(found, key=lambda name: int(name[len("<extra_id_") : -1]))]
