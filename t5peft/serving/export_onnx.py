"""Exports to ONNX: the graphs of an encoder and of a decoder with its cache, with the adapter inside of them.

``encoder.onnx`` returns the keys and values of the cross-attention of all decoder layers, side by side, ``cross`` [B, N, S, C]. So
they are computed once for a source. ``decoder.onnx`` takes them, the ids of the next tokens, and the keys and values of earlier
tokens; at the first step these have the length 0. It returns the logits and the longer keys and values. Any number of tokens may be
decoded at once, so the same graph scores targets. A classifier, or an encoder by itself, is the one graph ``model.onnx``.

Prefixes, prompts, bottleneck adapters and ladders are parts of the graphs. Generation is that of transformers.

Letters: B batch, S source tokens and the prompt, T target tokens, N heads, C keys and values of all layers, V vocabulary, L layers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, SequenceClassifierOutput

from t5peft.compat.extras import require
from t5peft.compat.onnx import export_graph
from t5peft.evaluation.inference import Sources
from t5peft.evaluation.ranking import Ranking
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.attention import use_attention
from t5peft.serving.export_transformers import TorchModel, save_tokenizer
from t5peft.serving.exported import Candidates, Details, Exported, Model, Quantize
from t5peft.serving.traced import traceable

_SOURCE_AXES = {"input_ids": {0: "batch", 1: "source"}, "attention_mask": {0: "batch", 1: "source"}}


def write_onnx(model: Model, tokenizer: PreTrainedTokenizerBase, folder: Path, quantize: Quantize | None) -> None:
    """Write the graphs of a model.

    Args:
        model: A T5, plain or wrapped, in evaluation mode.
        tokenizer: Its tokenizer.
        folder: An empty folder.
        quantize: Store the linear maps in 8 bits; their inputs are rounded to 8 bits as they come.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    require("onnx", "export")
    require("onnxruntime", "export")
    t5 = unwrap_t5(model).eval()
    use_attention(t5)  # its masks do not depend on what they hide, which a trace could not follow
    with traceable(t5):
        if t5.can_generate():
            _write_language_model(t5, folder)
        else:
            _write_one_graph(t5, folder)
    if quantize is not None:
        for path in sorted(folder.glob("*.onnx")):
            _quantize(path)
    t5.config.save_pretrained(str(folder))
    if t5.can_generate() and t5.generation_config is not None:
        t5.generation_config.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)


def _example() -> dict[str, Tensor]:
    """Return a batch of two sources, one of which is padded."""
    ids = torch.tensor([[5, 6, 7, 8, 1], [9, 8, 1, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _write_one_graph(t5: PreTrainedModel, folder: Path) -> None:
    output, axes = (
        ("logits", {0: "batch"})
        if type(t5).__name__.endswith("ForSequenceClassification")
        else ("states", {0: "batch", 1: "source"})
    )
    export_graph(_FirstOutput(t5), _example(), [output], folder / "model.onnx", {**_SOURCE_AXES, output: axes})


def _write_language_model(t5: PreTrainedModel, folder: Path) -> None:
    example, encoder = _example(), _EncoderGraph(t5)
    with torch.no_grad():
        cross = encoder(*example.values())
        first = _empty_cache()
        start = torch.zeros(len(cross), 2, dtype=torch.long)
        states = t5.get_encoder()(**example).last_hidden_state
        _decode(t5, start, example["attention_mask"], states, first)
    sizes = [part.shape[-1] for part in _parts(first.cross_attention_cache.layers)]
    past = _parts(first.self_attention_cache.layers)
    before = dict(zip(_names("past", len(past)), past, strict=True))
    after = _names("present", len(past))
    cross_axes = {"cross": {0: "batch", 2: "encoded"}}
    export_graph(encoder, example, ["cross"], folder / "encoder.onnx", {**_SOURCE_AXES, **cross_axes})
    export_graph(
        _DecoderGraph(t5, sizes, states.shape[-1]),
        {"decoder_input_ids": start, "attention_mask": example["attention_mask"], "cross": cross, **before},
        ["logits", *after],
        folder / "decoder.onnx",
        {
            "decoder_input_ids": {0: "batch", 1: "target"},
            "attention_mask": _SOURCE_AXES["attention_mask"],
            **cross_axes,
            "logits": {0: "batch", 1: "target"},
            **{name: {0: "batch", 2: "past"} for name in before},
            **{name: {0: "batch", 2: "present"} for name in after},
        },
    )


def _names(when: str, count: int) -> list[str]:
    return [f"{when}_{i // 2}_{('key', 'value')[i % 2]}" for i in range(count)]


def _parts(layers: Iterable[Any]) -> list[Tensor]:
    """Return keys and values of layers, which follow on each other."""
    return [part for layer in layers for part in (layer.keys, layer.values)]


def _empty_cache() -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def _filled(parts: Sequence[Tensor]) -> DynamicCache:
    """Return a cache of keys and values, which follow on each other."""
    cache = DynamicCache()
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


def _decode(t5: PreTrainedModel, ids: Tensor, mask: Tensor, states: Tensor, cache: EncoderDecoderCache) -> Tensor:
    return cast(
        Tensor,
        t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=cast(Any, states)),
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        ).logits,
    )


class _FirstOutput(nn.Module):
    def __init__(self, t5: PreTrainedModel) -> None:
        super().__init__()
        self.t5 = t5

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.t5(input_ids=input_ids, attention_mask=attention_mask)
        return cast(Tensor, output.logits if "logits" in output else output.last_hidden_state)


class _EncoderGraph(nn.Module):
    """``forward(input_ids, attention_mask) -> cross``: a step of the decoder fills the cache of its cross-attentions."""

    def __init__(self, t5: PreTrainedModel) -> None:
        super().__init__()
        self.t5 = t5

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.t5.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        cache = _empty_cache()
        _decode(self.t5, input_ids[:, :1], attention_mask, states, cache)
        return torch.cat(_parts(cache.cross_attention_cache.layers), dim=-1)


class _DecoderGraph(nn.Module):
    """``forward(decoder_input_ids, attention_mask, cross, *past) -> logits, *present``."""

    def __init__(self, t5: PreTrainedModel, sizes: list[int], width: int) -> None:
        super().__init__()
        self.t5, self.sizes, self.width = t5, sizes, width

    def forward(self, ids: Tensor, attention_mask: Tensor, cross: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        # With the cache of the cross-attention full, only the shape of the encoder's states is read.
        states = cross[:, 0, :, :1].expand(-1, -1, self.width)
        cache = EncoderDecoderCache(_filled(past), _filled(cross.split(self.sizes, dim=-1)))
        logits = _decode(self.t5, ids, attention_mask, states, cache)
        return (logits, *_parts(cache.self_attention_cache.layers))


def _quantize(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exact, log = path.rename(path.with_suffix(".exact")), logging.getLogger()
    log.addFilter(_is_not_advice)
    try:
        quantize_dynamic(
            exact,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,  # sums of products overflow 16 bits on processors without VNNI
            weight_type=QuantType.QInt8,
        )
    finally:
        log.removeFilter(_is_not_advice)
    exact.unlink()


def _is_not_advice(record: logging.LogRecord) -> bool:
    return "run pre-processing before quantization" not in record.getMessage()


@dataclass
class _Encoded(BaseModelOutput):
    """``last_hidden_state`` holds ``cross`` [B, N, S, C], so that ``generate`` repeats it for beams."""


class _Session:
    """A graph that takes and returns tensors on the CPU, without copying them."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {given.name: given.shape for given in self.session.get_inputs()}
        self.outputs = [found.name for found in self.session.get_outputs()]

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        return dict(zip(self.outputs, map(torch.from_numpy, self.session.run(None, arrays)), strict=True))


class _OnnxEncoder(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, session: _Session) -> None:
        super().__init__()
        self.session = session

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> _Encoded:
        return _Encoded(last_hidden_state=self.session(input_ids=input_ids, attention_mask=attention_mask)["cross"])


class _OnnxModel(PreTrainedModel):
    """Graphs that are called as a model of transformers."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)  # says that the model is on the CPU in float32


class OnnxT5(_OnnxModel, GenerationMixin):
    """The two graphs of a language model, with the ``generate`` of transformers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(AutoConfig.from_pretrained(str(folder)))
        self.encoder = _OnnxEncoder(_Session(folder / "encoder.onnx"))
        self.session = _Session(folder / "decoder.onnx")
        self.past = [name for name in self.session.inputs if name.startswith("past_")]
        self.generation_config = GenerationConfig.from_pretrained(str(folder))

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder."""
        return self.encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        """Decode the next tokens, or the tokens of ``labels``.

        Shapes:
            input_ids, attention_mask: [B, S].
            decoder_input_ids, labels: [B, T].
            Output: Logits [B, T, V].
        """
        assert attention_mask is not None
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        if decoder_input_ids is None:
            assert labels is not None
            decoder_input_ids = self._start_with(labels)
        past = self._past(past_key_values, len(decoder_input_ids))
        found = self.session(
            decoder_input_ids=decoder_input_ids, attention_mask=attention_mask, cross=encoder_outputs[0], **past
        )
        if past_key_values is not None:
            past_key_values.self_attention_cache.layers = _filled(list(found.values())[1:]).layers
        return Seq2SeqLMOutput(logits=cast(Any, found["logits"]), past_key_values=past_key_values)

    def _start_with(self, labels: Tensor) -> Tensor:
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)

    def _past(self, cache: EncoderDecoderCache | None, rows: int) -> dict[str, Tensor]:
        layers = [] if cache is None else cache.self_attention_cache.layers
        parts = _parts([layer for layer in layers if isinstance(layer, DynamicLayer) and layer.is_initialized])
        if not parts:
            shapes = (self.session.inputs[name] for name in self.past)
            parts = [torch.zeros(rows, shape[1], 0, shape[3]) for shape in shapes]
        return dict(zip(self.past, parts, strict=True))


class OnnxOneGraph(_OnnxModel):
    """The graph of a classifier or of an encoder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(AutoConfig.from_pretrained(str(folder)))
        self.session = _Session(folder / "model.onnx")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput | BaseModelOutput:
        """Return the logits [B, C] or the states [B, S, H] of input_ids [B, S] and attention_mask [B, S]."""
        found = self.session(input_ids=input_ids, attention_mask=attention_mask)
        if "logits" in found:
            return SequenceClassifierOutput(logits=cast(Any, found["logits"]))
        return BaseModelOutput(last_hidden_state=cast(Any, found["states"]))


class OnnxModel(TorchModel):
    """Graphs that answer by the library's own functions; ranking scores each candidate by itself."""

    def rank(self, sources: Sources, candidates: Candidates, **options: Any) -> Ranking:
        """Score every candidate target for every source; see the base."""
        return Exported.rank(self, sources, candidates, **options)


def read_onnx(folder: Path, details: Details) -> OnnxModel:
    """Read what ``write_onnx`` wrote.

    Args:
        folder: The folder.
        details: What it holds.

    Returns:
        The model.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    require("onnxruntime", "export")
    model = OnnxT5(folder) if details.kind == "language model" else OnnxOneGraph(folder)
    return OnnxModel(model, AutoTokenizer.from_pretrained(str(folder)), details)
