"""Prompt tuning (Lester et al. 2021, https://aclanthology.org/2021.emnlp-main.243) for T5, as published.

P trained vectors stand before the embedded source text, in the encoder only:

    encoder([prompt; embed(input_ids)])

The decoder sees the states of the encoder for prompt and text. The prompt takes part in the relative positions, directly before
the first token that is not padding, so left and right padding give the same result. An encoder without a decoder returns the
states of the text only, as its heads read one state a token.

Two tuner layers do it. The one around the encoder stack puts the prompt in and lengthens the mask. The one around the decoder stack
lengthens the mask of the cross-attention likewise. Nothing of the model is patched, so ``generate``, ``disable_adapter`` and
classification heads need no special case.

Letters: B batch, S source tokens, P prompt length, H d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2TextScaledWordEmbedding

from t5peft.compat.peft import register
from t5peft.deprecated import renamed_arguments
from t5peft.methods.base import AdapterConfig, AdapterTuner, StackLayer, ensure_fits, raise_if_problems, read_size, wrap
from t5peft.models.encoders import has_decoder
from t5peft.models.families import modules_pattern
from t5peft.models.unwrap import ensure_unwrapped, unwrap_t5
from t5peft.nn.kernels.varlen import VarlenLayout

Initializer = Callable[[Tensor, int], Tensor]
"""A function from the embedding table [V, H] and a length P to a first prompt [P, H]."""


def from_random(std: float | None = None) -> Initializer:
    """Return an initializer that draws normal numbers.

    The random start of the paper is uniform in ±0.5, whatever the scale of the table.

    Args:
        std: The standard deviation; None for that of the embedding table.
    """

    def draw(embeddings: Tensor, length: int) -> Tensor:
        return torch.randn(length, embeddings.shape[1]) * (float(embeddings.float().std()) if std is None else std)

    return draw


def from_vocabulary(most_common: int = 5000) -> Initializer:
    """Return an initializer that takes the embeddings of random tokens.

    Args:
        most_common: The number of tokens to draw from; a T5 vocabulary starts with the most common ones.

    Raises:
        ValueError: For a number below one.
    """
    problems: list[str] = []
    most_common = read_size("most_common", most_common, problems)
    raise_if_problems(problems)

    def sample(embeddings: Tensor, length: int) -> Tensor:
        return embeddings[torch.randint(min(most_common, embeddings.shape[0]), (length,), device=embeddings.device)]

    return sample


def from_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Initializer:
    """Return an initializer that takes the embeddings of the tokens of ``text``, repeated up to the length, without ``</s>``.

    Args:
        tokenizer: The tokenizer of the model.
        text: The text to start from.

    Raises:
        ValueError: For a text without tokens.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"Got the text {text!r}; expected one with at least one token to start a prompt from.")
    return lambda embeddings, length: embeddings[[ids[i % len(ids)] for i in range(length)]]


def from_class_labels(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Initializer:
    """Return an initializer with one row per target word, filled up from the vocabulary. The best one in the paper.

    Args:
        tokenizer: The tokenizer of the model.
        words: The target words; a row is the mean of the embeddings of their tokens.

    Raises:
        ValueError: For no words, or an empty one.
    """
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
    if not ids or not all(ids):
        raise ValueError(f"Got the words {list(words)}; expected at least one, and none that is empty.")

    def initialize(embeddings: Tensor, length: int) -> Tensor:
        rows = torch.stack([embeddings[tokens].mean(0) for tokens in ids])[:length]
        return torch.cat([rows, from_vocabulary()(embeddings, length - len(rows))])

    return initialize


INITIALIZERS: dict[str, Callable[[], Initializer]] = {"vocabulary": from_vocabulary, "random": from_random}


@dataclass
class PromptConfig(AdapterConfig):
    """The length P of the prompt."""

    length: int = 20

    def __post_init__(self) -> None:
        """Target the two stacks."""
        super().__post_init__()
        self.set_targets("t5_prompt", modules_pattern(r"(.*\.)?(encoder|decoder)"))


class PromptedStack(StackLayer):
    """A stack that knows the lengths of its prompts."""

    other_param_names = ("lengths",)
    kind = "prompt"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.lengths: dict[str, int] = {}

    def active_adapters_here(self) -> list[str]:
        """Return the names of the prompts that stand before the text now."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lengths]


class PromptEncoder(PromptedStack):
    """The encoder stack with the active prompts before its text."""

    adapter_layer_names = ("t5prompt",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.t5prompt = nn.ParameterDict()
        self.returns_prompt = True
        """Whether the states of the prompt are returned before those of the text, for a decoder."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        layout: VarlenLayout | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode after the prompt. In a padding-free row each example gets the prompt.

        Shapes:
            input_ids: [B, S].
            inputs_embeds: [B, S, H], in place of input_ids.
            attention_mask: [B, S].
            Output: States [B, P + S, H], or [B, S, H] of an encoder without a decoder.
        """
        names = self.active_adapters_here()
        if not names:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
            return self.base_layer(**inputs, layout=layout, **kwargs)
        if kwargs.get("encoder_block_mask") is not None:
            raise ValueError(
                "Got a packed batch, whose rows have one prompt for several examples; expected one example per row. Train with "
                "pack=False."
            )
        if inputs_embeds is None:
            inputs_embeds = cast(Tensor, self.base_layer.get_input_embeddings()(input_ids))
        prompt = torch.cat([self.t5prompt[name] for name in names]).to(inputs_embeds.dtype)
        prompt = prompt * scale_of(self.base_layer.get_input_embeddings())
        of_text: Tensor | None = None
        if layout is not None:
            parts = [part for text in inputs_embeds[0].split(list(layout.source_lengths)) for part in (prompt, text)]
            inputs_embeds, layout = torch.cat(parts)[None], layout.with_prompt(len(prompt))
        else:
            rows = prompt.expand(inputs_embeds.shape[0], -1, -1)  # not len, which a trace takes for a constant
            inputs_embeds = torch.cat([rows, inputs_embeds], dim=1)
            if attention_mask is not None:
                lengthened = lengthen(attention_mask, len(prompt))
                order = prompt_order(attention_mask, len(prompt))
                inputs_embeds = inputs_embeds.take_along_dim(order[..., None], dim=1)
                attention_mask, of_text = lengthened, order.argsort(dim=1)[:, len(prompt) :]
        outputs = self.base_layer(attention_mask=attention_mask, inputs_embeds=inputs_embeds, layout=layout, **kwargs)
        if not self.returns_prompt:
            states = outputs.last_hidden_state
            kept = states[:, len(prompt) :] if of_text is None else states.take_along_dim(of_text[..., None], dim=1)
            outputs.last_hidden_state = kept
        return outputs


def scale_of(table: nn.Module) -> float:
    """Return the factor between a row of ``table`` and what it returns. A prompt has the size of rows, as a table is read."""
    return float(table.scalar_embed_scale) if isinstance(table, T5Gemma2TextScaledWordEmbedding) else 1.0


class PromptDecoder(PromptedStack):
    """The decoder stack with the mask of its cross-attention lengthened to what the encoder returned."""

    def forward(
        self,
        *args: Any,
        encoder_attention_mask: Tensor | None = None,
        layout: VarlenLayout | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decode with encoder_attention_mask [B, S] lengthened by the prompt to [B, P + S], or with the layout lengthened."""
        length = sum(self.lengths[name] for name in self.active_adapters_here())
        if layout is not None:
            layout = layout.with_prompt(length)
        elif length and encoder_attention_mask is not None:
            encoder_attention_mask = lengthen(encoder_attention_mask, length)
        return self.base_layer(*args, encoder_attention_mask=encoder_attention_mask, layout=layout, **kwargs)


class PromptTuner(AdapterTuner[PromptedStack, PromptConfig]):
    """The tuner that puts the two layers around the stacks."""

    prefix = "t5prompt"
    tuner_layer_cls = PromptedStack

    def new_layer(self, target: nn.Module) -> PromptedStack:
        """Return a layer around the encoder or the decoder."""
        t5 = unwrap_t5(self.model)
        if has_decoder(t5) and target is t5.get_decoder():
            return PromptDecoder(target)
        layer = PromptEncoder(target)
        layer.returns_prompt = has_decoder(t5)
        return layer

    def add_to_layer(self, layer: PromptedStack, config: PromptConfig, adapter_name: str) -> None:
        """Put a prompt of random words into the encoder, and its length into both stacks."""
        layer.lengths[adapter_name] = config.length
        if isinstance(layer, PromptEncoder):
            embeddings = cast(nn.Embedding, layer.base_layer.get_input_embeddings()).weight.detach()
            layer.t5prompt[adapter_name] = nn.Parameter(from_vocabulary()(embeddings, config.length).float())


def prompt_order(attention_mask: Tensor, length: int) -> Tensor:
    """Return for each position of [padding; prompt; text] where it comes from in [prompt; padding; text].

    With right padding that is the identity.

    Shapes:
        attention_mask: [B, S].
        Output: [B, P + S].
    """
    source_length = attention_mask.shape[1]
    padding = attention_mask.to(torch.bool).to(torch.uint8).argmax(dim=1, keepdim=True)
    position = torch.arange(length + source_length, device=attention_mask.device).expand(attention_mask.shape[0], -1)
    moved = torch.where(position < padding, position + length, position - padding)
    return torch.where(position < padding + length, moved, position)


def lengthen(attention_mask: Tensor, length: int) -> Tensor:
    """Return the mask of a text with a prompt before its first token.

    Shapes:
        attention_mask: [B, S].
        Output: [B, P + S].

    Raises:
        ValueError: For a mask by pairs of positions, which says nothing about those of the prompt.
    """
    if attention_mask.dim() != 2:
        raise ValueError(
            f"Got an attention mask of shape {tuple(attention_mask.shape)}; expected [B, S], as a tokenizer returns "
            "it, because a mask by pairs of positions says nothing about those of a prompt."
        )
    prompt = attention_mask.new_ones(attention_mask.shape[0], length)
    return torch.cat([prompt, attention_mask], dim=1).take_along_dim(prompt_order(attention_mask, length), dim=1)


@renamed_arguments(initialise="initialize")
def prompt_wrap(model: PreTrainedModel, *, length: int = 20, initialize: Initializer | str = "vocabulary") -> PeftModel:
    """Wrap ``model`` for prompt tuning, in place.

    Args:
        model: A T5 of any size, with or without a head or a decoder.
        length: P, the number of trained vectors.
        initialize: ``"vocabulary"`` (``from_vocabulary``, better than random in the paper), ``"random"`` (``from_random``),
            ``from_text``, ``from_class_labels``, or a function from embeddings [V, H] and P to [P, H].

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped, the length is below one, or the initializer is unknown or returns another shape.
    """
    ensure_unwrapped(model)
    problems: list[str] = []
    length = read_size("length", length, problems)
    if not callable(initialize) and not (isinstance(initialize, str) and initialize in INITIALIZERS):
        problems.append(f"initialize={initialize!r}; expected one of {', '.join(INITIALIZERS)}, or a function")
    raise_if_problems(problems)
    if isinstance(initialize, str):
        initialize = INITIALIZERS[initialize]()
    embeddings = cast(nn.Embedding, model.get_input_embeddings()).weight.detach()
    ensure_fits(model, length=(length, embeddings.shape[1]))
    first = initialize(embeddings, length)
    expected = (length, embeddings.shape[1])
    if not isinstance(first, Tensor) or first.shape != expected:
        got = f"a prompt of shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
        raise ValueError(f"Got {got} from the initializer; expected a tensor of shape [P, H] = {expected}.")
    wrapped = wrap(model, PromptConfig(length=length))
    with torch.no_grad():
        for module in wrapped.modules():
            if isinstance(module, PromptEncoder):
                module.t5prompt[wrapped.active_adapter].copy_(first)
    return wrapped


register("t5_prompt", PromptConfig, PromptTuner)
