"""Prompt tuning (Lester et al. 2021, https://aclanthology.org/2021.emnlp-main.243) for T5, as published.

P trained vectors stand before the embedded source text, in the encoder alone:

    encoder([prompt; embed(input_ids)])

The decoder sees the encoder's states of prompt and text. The prompt takes part in the relative positions, directly before the first
token that is not padding, so left and right padding give the same result.

Two tuner layers do it: one around the encoder stack, which puts the prompt in and lengthens the mask, and one around the decoder
stack, which lengthens the mask of the cross-attention likewise. Nothing of the model is patched, so ``generate``,
``disable_adapter`` and classification heads need no special case.

Letters: B batch, S source tokens, P prompt length, H d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.compat.peft import register
from t5peft.deprecated import renamed_arguments
from t5peft.methods.base import OwnTuner, StackLayer
from t5peft.methods.wrapping import wrap
from t5peft.models.unwrap import ensure_unwrapped
from t5peft.nn.kernels.varlen import VarlenLayout

Initializer = Callable[[Tensor, int], Tensor]
"""From the embedding table [V, H] and a length P to a first prompt [P, H]."""


def from_random(std: float | None = None) -> Initializer:
    """Normal, with the standard deviation of the embedding table or with ``std``.

    The paper's random start is uniform in ±0.5, whatever the scale of the table.
    """

    def draw(embeddings: Tensor, length: int) -> Tensor:
        return torch.randn(length, embeddings.shape[1]) * (float(embeddings.float().std()) if std is None else std)

    return draw


def from_vocabulary(most_common: int = 5000) -> Initializer:
    """Embeddings of random tokens among the ``most_common``, which stand first in a T5 vocabulary."""

    def sample(embeddings: Tensor, length: int) -> Tensor:
        return embeddings[torch.randint(min(most_common, embeddings.shape[0]), (length,), device=embeddings.device)]

    return sample


def from_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Initializer:
    """Embeddings of the tokens of ``text``, repeated up to the length, without its ``</s>``."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"The text {text!r} has no tokens to start a prompt from.")
    return lambda embeddings, length: embeddings[[ids[i % len(ids)] for i in range(length)]]


def from_class_labels(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Initializer:
    """One row a target word (the mean of its tokens' embeddings), filled up from the vocabulary; best in the paper."""
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
    if not ids or not all(ids):
        raise ValueError(f"Got the words {list(words)}; expected at least one, and none that is empty.")

    def initialize(embeddings: Tensor, length: int) -> Tensor:
        rows = torch.stack([embeddings[tokens].mean(0) for tokens in ids])[:length]
        return torch.cat([rows, from_vocabulary()(embeddings, length - len(rows))])

    return initialize


INITIALIZERS: dict[str, Callable[[], Initializer]] = {"vocabulary": from_vocabulary, "random": from_random}


@dataclass
class PromptConfig(PeftConfig):
    """Length P of the prompt."""

    length: int = 20
    modules_to_save: list[str] | None = None
    target_modules: str | None = None
    exclude_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Name the two stacks for peft."""
        super().__post_init__()
        self.peft_type = PeftType("T5_PROMPT")
        self.target_modules = r"(.*\.)?(encoder|decoder)"


class _PromptedStack(StackLayer):
    """A stack that knows the lengths of its prompts."""

    other_param_names = ("lengths",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.lengths: dict[str, int] = {}

    def active(self) -> list[str]:
        """Names of the prompts that stand before the text now."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lengths]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise ValueError: a prompt is no change of a weight."""
        raise ValueError("A prompt cannot be merged into the weights of T5; it is served as the adapter that it is.")


class PromptEncoder(_PromptedStack):
    """The encoder stack with the active prompts before its text."""

    adapter_layer_names = ("t5prompt",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.t5prompt = nn.ParameterDict()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        layout: VarlenLayout | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode input_ids [B, S] (or inputs_embeds [B, S, H]) after the prompt: states [B, P + S, H].

        In a row of examples each gets its prompt.
        """
        names = self.active()
        if not names:
            return self.base_layer(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                layout=layout,
                **kwargs,
            )
        if kwargs.get("encoder_block_mask") is not None:
            raise ValueError("A packed row has one prompt for several examples; prompt tuning takes one example a row.")
        if inputs_embeds is None:
            inputs_embeds = self.base_layer.embed_tokens(input_ids)
        prompt = torch.cat([self.t5prompt[name] for name in names]).to(inputs_embeds.dtype)
        if layout is not None:
            parts = [part for text in inputs_embeds[0].split(layout.source_lengths) for part in (prompt, text)]
            layout = layout.with_prompt(len(prompt))
            return self.base_layer(
                attention_mask=attention_mask, inputs_embeds=torch.cat(parts)[None], layout=layout, **kwargs
            )
        rows = prompt.expand(len(inputs_embeds), -1, -1)
        lengthened = torch.cat([rows, inputs_embeds], dim=1)
        if attention_mask is not None:
            mask = lengthen(attention_mask, len(prompt))
            order = prompt_order(attention_mask, len(prompt))
            lengthened = lengthened.take_along_dim(order[..., None], dim=1)
            attention_mask = mask
        return self.base_layer(attention_mask=attention_mask, inputs_embeds=lengthened, **kwargs)


class PromptDecoder(_PromptedStack):
    """The decoder stack with the mask of its cross-attention lengthened to what the encoder returned."""

    def forward(
        self,
        *args: Any,
        encoder_attention_mask: Tensor | None = None,
        layout: VarlenLayout | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decode with encoder_attention_mask [B, S] lengthened by the prompt to [B, P + S], or the row's layout likewise."""
        length = sum(self.lengths[name] for name in self.active())
        if layout is not None:
            layout = layout.with_prompt(length)
        elif length and encoder_attention_mask is not None:
            encoder_attention_mask = lengthen(encoder_attention_mask, length)
        return self.base_layer(*args, encoder_attention_mask=encoder_attention_mask, layout=layout, **kwargs)


class PromptTuner(OwnTuner):
    """Puts the two tuner layers around the stacks."""

    prefix = "t5prompt"
    tuner_layer_cls = _PromptedStack

    def _create_and_replace(
        self,
        peft_config: PromptConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, _PromptedStack):
            layer = target
        else:
            layer = PromptDecoder(target) if target.is_decoder else PromptEncoder(target)
            setattr(parent, target_name, layer)
        layer.lengths[adapter_name] = peft_config.length
        if isinstance(layer, PromptEncoder):
            embeddings = layer.base_layer.embed_tokens.weight.detach()
            layer.t5prompt[adapter_name] = nn.Parameter(from_vocabulary()(embeddings, peft_config.length).float())


def prompt_order(attention_mask: Tensor, length: int) -> Tensor:
    """Where each position of [padding; prompt; text] comes from in [prompt; padding; text].

    Shapes: attention_mask [B, S] -> [B, P + S]. With right padding that is the identity.
    """
    source_length = attention_mask.shape[1]
    padding = attention_mask.to(torch.bool).to(torch.uint8).argmax(dim=1, keepdim=True)
    position = torch.arange(length + source_length, device=attention_mask.device).expand(len(attention_mask), -1)
    to_device_unless_meta = torch.where(position < padding, position + length, position - padding)
    return torch.where(position < padding + length, to_device_unless_meta, position)


def lengthen(attention_mask: Tensor, length: int) -> Tensor:
    """The mask [B, P + S] of a text with mask [B, S] and a prompt before its first token.

    Raises ValueError for a mask by pairs of positions, which says nothing of the prompt's.
    """
    if attention_mask.dim() != 2:
        raise ValueError(
            f"Got an attention mask of shape {tuple(attention_mask.shape)}; prompt tuning takes one of shape [B, S], as a "
            "tokenizer returns it."
        )
    prompt = attention_mask.new_ones(len(attention_mask), length)
    return torch.cat([prompt, attention_mask], dim=1).take_along_dim(prompt_order(attention_mask, length), dim=1)


@renamed_arguments(initialise="initialize")
def prompt_wrap(model: PreTrainedModel, *, length: int = 20, initialize: Initializer | str = "vocabulary") -> PeftModel:
    """Wrap ``model`` for prompt tuning, in place.

    Args:
        model: a T5 of any geometry with a decoder, with or without a classification head.
        length: P, the number of trained vectors.
        initialise: "vocabulary" (:func:`from_vocabulary`, ahead of random in the paper), "random" (:func:`from_random`),
            :func:`from_text`, :func:`from_class_labels`, or a function of your own from embeddings [V, H] and P to [P, H].

    Raises:
        ValueError: for a wrapped model, an encoder alone, a length below one, an initialiser of an unknown name or that returns
            another shape.
    """
    ensure_unwrapped(model)
    if not model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} has no decoder, so the states of a prompt would stand among those of the text that it "
            "returns; take another method, such as lora_wrap."
        )
    if length < 1:
        raise ValueError(f"Got length={length}; expected a whole number of at least 1.")
    if isinstance(initialize, str):
        if initialize not in INITIALIZERS:
            raise ValueError(
                f"Got initialize={initialize!r}; expected one of {', '.join(INITIALIZERS)}, or a function."
            )
        initialize = INITIALIZERS[initialize]()
    embeddings = model.get_input_embeddings().weight.detach()
    first = initialize(embeddings, length)
    if first.shape != (length, embeddings.shape[1]):
        raise ValueError(
            f"The initialiser returned a prompt of shape {tuple(first.shape)}; expected [P, H] = "
            f"{(length, embeddings.shape[1])}."
        )
    wrapped = wrap(model, PromptConfig(length=length))
    with torch.no_grad():
        for module in wrapped.modules():
            if isinstance(module, PromptEncoder):
                module.t5prompt[wrapped.active_adapter].copy_(first)
    return wrapped


register("t5_prompt", PromptConfig, PromptTuner)
