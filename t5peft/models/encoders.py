"""The encoder of a T5 with a head: for sequences, for tokens, for embeddings, or none.

transformers has a head for tokens (``T5ForTokenClassification``) and the plain encoder (``T5EncoderModel``). Two heads are ours,
each over the mean of the states of the tokens that are not padding:

    sequence:   logits = classifier(dropout(mean(states)))
    embedding:  embedding = normalize(projection(mean(states)))        (Sentence-T5, Ni et al. 2022)

Without an ``embedding_size`` there is no projection. A checkpoint may hold a whole T5 or only its encoder. One of
sentence-transformers brings its own projection.

Letters: B batch, S source tokens, H d_model, E embedding size, L labels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    MT5EncoderModel,
    PreTrainedConfig,
    PreTrainedModel,
    T5EncoderModel,
    UMT5EncoderModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.models.mt5.modeling_mt5 import MT5PreTrainedModel
from transformers.models.t5.modeling_t5 import T5PreTrainedModel
from transformers.models.umt5.modeling_umt5 import UMT5PreTrainedModel
from transformers.utils import can_return_tuple

from t5peft.models.families import family_of

EncoderHead = Literal["sequence", "tokens", "embedding", "states"]


def mean_over_tokens(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the mean of the states of the tokens that are not padding, in float32 or float64.

    Shapes:
        states: [B, S, H].
        attention_mask: [B, S], or None where nothing is padding.
        Returned: [B, H].
    """
    exact = states if states.dtype == torch.float64 else states.float()
    if attention_mask is None:
        return exact.mean(dim=1)
    weights = attention_mask.to(exact.dtype)[..., None]
    return (exact * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class _Encoder(PreTrainedModel):
    """The encoder under a head; a class of a family names the class of its encoder."""

    encoder_class: ClassVar[Any]
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^lm_head\."]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.transformer = self.encoder_class(config)

    def _encode(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None, **kwargs: Any
    ) -> tuple[Any, Tensor]:
        """Return the outputs of the encoder, and their mean [B, H] in the dtype of the states."""
        outputs = self.transformer(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        states = outputs.last_hidden_state
        return outputs, mean_over_tokens(states, attention_mask).to(states.dtype)


class _SequenceClassifier(_Encoder):
    """A linear head over the mean of the states: one class, several labels or some numbers an example."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.d_model, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Return logits, and the mean loss of ``labels``.

        Shapes:
            input_ids, attention_mask: [B, S].
            inputs_embeds: [B, S, H], in place of input_ids.
            labels: [B] or [B, L].
            Output: Logits [B, L].
        """
        outputs, pooled = self._encode(input_ids, attention_mask, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class _Embedder(_Encoder):
    """Embeddings of unit length: the mean of the states, through a linear map where the config has an ``embedding_size``."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        size = getattr(config, "embedding_size", None)
        self.embedding_projection = None if size is None else nn.Linear(config.d_model, size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Return the states, and the embeddings as ``pooler_output``.

        Shapes:
            input_ids, attention_mask: [B, S].
            inputs_embeds: [B, S, H], in place of input_ids.
            Output: States [B, S, H], embeddings [B, E].
        """
        outputs, pooled = self._encode(input_ids, attention_mask, inputs_embeds, **kwargs)
        projected = pooled if self.embedding_projection is None else self.embedding_projection(pooled)
        exact = projected if projected.dtype == torch.float64 else projected.float()
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=cast(Any, normalize(exact, dim=-1)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class T5EncoderForSequenceClassification(_SequenceClassifier, T5PreTrainedModel):
    """The encoder of a T5 with a head for sequences."""

    encoder_class = T5EncoderModel


class MT5EncoderForSequenceClassification(_SequenceClassifier, MT5PreTrainedModel):
    """The encoder of an mT5 with a head for sequences."""

    encoder_class = MT5EncoderModel


class UMT5EncoderForSequenceClassification(_SequenceClassifier, UMT5PreTrainedModel):
    """The encoder of a umT5 with a head for sequences."""

    encoder_class = UMT5EncoderModel


class T5EncoderForEmbedding(_Embedder, T5PreTrainedModel):
    """The encoder of a T5 that makes embeddings."""

    encoder_class = T5EncoderModel


class MT5EncoderForEmbedding(_Embedder, MT5PreTrainedModel):
    """The encoder of an mT5 that makes embeddings."""

    encoder_class = MT5EncoderModel


class UMT5EncoderForEmbedding(_Embedder, UMT5PreTrainedModel):
    """The encoder of a umT5 that makes embeddings."""

    encoder_class = UMT5EncoderModel


_CLASSES: dict[str, dict[str, Any]] = {
    "sequence": {
        "t5": T5EncoderForSequenceClassification,
        "mt5": MT5EncoderForSequenceClassification,
        "umt5": UMT5EncoderForSequenceClassification,
    },
    "embedding": {
        "t5": T5EncoderForEmbedding,
        "mt5": MT5EncoderForEmbedding,
        "umt5": UMT5EncoderForEmbedding,
    },
}
_HEADS: dict[str, EncoderHead] = {
    "EncoderForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
    "EncoderForEmbedding": "embedding",
    "EncoderModel": "states",
}


def encoder_class(head: EncoderHead, model_type: str) -> Any:
    """Return the class of an encoder with a head, which has ``from_pretrained``.

    Args:
        head: The head.
        model_type: That of the config, of a family that has encoders.
    """
    if head == "tokens":
        return AutoModelForTokenClassification
    if head == "states":
        return AutoModelForTextEncoding
    return _CLASSES[head][model_type]


def head_of_config(config: PreTrainedConfig) -> EncoderHead | None:
    """Return the head of the encoder that a checkpoint says that it holds; None for a whole T5 or a plain encoder."""
    found = (head_of_class(name) for name in config.architectures or ())
    return next((head for head in found if head not in (None, "states")), None)


def head_of_class(name: str) -> EncoderHead | None:
    """Return the head of the encoder that a class is; None for the class of a whole T5.

    Args:
        name: The name of a class, such as ``T5EncoderForEmbedding``.
    """
    return next((head for end, head in _HEADS.items() if name.endswith(end)), None)


def has_decoder(model: PreTrainedModel) -> bool:
    """Return whether a T5 has a decoder. The config does not say it of every encoder."""
    return isinstance(getattr(model.base_model, "decoder", None), nn.Module)


def trained_head(model: PreTrainedModel) -> str | None:
    """Return the name of the head of ``model`` that pretraining did not train, or None."""
    names = ("classification_head", "classifier", "embedding_projection", "qa_outputs")
    own = family_of(model.config).class_heads
    return next((n for n in (*names, *own.values()) if isinstance(getattr(model, n, None), nn.Module)), None)
