"""Mixed batches: one forward pass whose rows belong to different adapters of different methods.

The backbone is a plain T5. Hooks on its modules add to the rows of an adapter what that adapter changes, and leave the other rows
as they are, bit for bit. Rows that share an adapter are computed together, and adapters of equal shapes with equally many rows are
computed in one batched product. No weight is copied for each row.

    mixed = MixedModel(load_backbone("mini")[0])
    adapters = [read_adapter(name, folder / name, mixed.t5) for name in names]
    ids = mixed.generate(sources, adapters, max_new_tokens=20)

peft has mixed batches for LoRA (``adapter_names``). It loops over the adapters of a model that holds them all as modules.

Letters: B rows, S source tokens, S' those with prompts, T tokens, H d_model, I inputs, O outputs, P prefix length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

from t5peft.data.collate import pad_rows
from t5peft.evaluation.ranking import score_candidates
from t5peft.models.backbone import correct_config
from t5peft.models.encoders import has_decoder
from t5peft.models.families import family_of
from t5peft.models.unwrap import ensure_unwrapped
from t5peft.nn.attention import use_attention
from t5peft.nn.fast import fast_kernels
from t5peft.nn.kernels.linear import row_multiple
from t5peft.nn.kernels.native import takes_native
from t5peft.nn.kernels.varlen import VarlenLayout
from t5peft.serving.requests import Ids
from t5peft.serving.routing import Routing, in_parts
from t5peft.serving.separate import encode_separately, generate_separately
from t5peft.serving.weights import Adapters, AdapterWeights

_KEPT_ROUTINGS = 4  # of the encoder, the decoder and their beams


class MixedModel:
    """A backbone whose batches hold rows of different adapters.

    Args:
        t5: A plain T5, which belongs to this object from now on.

    Raises:
        ValueError: The model is wrapped, or not a T5 with a decoder.
    """

    def __init__(self, t5: PreTrainedModel) -> None:
        ensure_unwrapped(t5)
        if not has_decoder(t5):
            raise ValueError(f"Got a {type(t5).__name__}, which has no decoder; expected a T5 with one.")
        self.t5 = t5.eval().requires_grad_(False)
        correct_config(t5)
        use_attention(t5)
        self._routing: Routing | None = None
        self._tokens: Routing | None = None
        self._kept: dict[tuple[int, ...], Routing] = {}
        self._added = ExitStack()
        for handle in self._add_hooks():
            self._added.callback(handle.remove)
        if t5.device.type == "cpu":
            self._added.enter_context(fast_kernels(t5))

    def close(self) -> None:
        """Take all hooks and kernels off the backbone."""
        self._added.close()
        self._kept.clear()

    @property
    def packs(self) -> bool:
        """Whether sources can lie end to end in one row, without padding: where the compiled kernels run."""
        table = self.t5.get_input_embeddings().weight
        return "kernels" not in family_of(self.t5.config).lacks and takes_native(cast(Tensor, table))

    @contextmanager
    def rows(self, adapters: Adapters, lengths: Sequence[int] = ()) -> Iterator[None]:
        """Give row i of every batch to ``adapters[i]`` inside the block.

        A batch of k times as many rows has k beams of each row next to each other. Rows of one adapter are fastest where they stand
        next to each other; ``order`` of the routing puts them there.

        Args:
            adapters: One for each row; None for the backbone as it is.
            lengths: Tokens of each row, where some modules get all of them end to end in one row.
        """
        outer = self._routing, self._tokens
        of_tokens = [adapter for adapter, length in zip(adapters, lengths, strict=False) for _ in range(length)]
        self._routing, self._tokens = self._routing_for(adapters), Routing(of_tokens) if lengths else None
        try:
            with torch.inference_mode():
                yield
        finally:
            self._routing, self._tokens = outer

    def encode(self, sources: Ids, adapters: Adapters) -> tuple[Tensor, Tensor]:
        """Encode sources, each with its adapter.

        Args:
            sources: Token ids of each row, which end in ``</s>``.
            adapters: One for each row.

        Returns:
            States [B, S', H], padded on the right, and their mask [B, S'].
        """
        if self.packs:
            packed, lengths = self._encode_packed(sources, adapters)
            states = pad_sequence(list(packed[0].split(lengths)), batch_first=True)
            return states, _mask_of(lengths, states)
        embeddings = self._embed(sources, adapters)
        padded = pad_sequence(embeddings, batch_first=True)
        mask = _mask_of([len(row) for row in embeddings], padded)
        with self.rows(adapters):
            output = self.t5.get_encoder()(inputs_embeds=padded, attention_mask=mask)
        return output.last_hidden_state, mask

    def read_packed(self, sources: Ids, adapters: Adapters) -> tuple[list[Tensor], list[int]]:
        """Encode sources end to end in one row, and let the decoder read them, where ``packs``.

        Args:
            sources: As for ``encode``.
            adapters: One for each row.

        Returns:
            Keys and values [1, T, N D] of all tokens in each layer of the decoder in turn, and the tokens of each row.
        """
        states, lengths = self._encode_packed(sources, adapters)
        endings = family_of(self.t5.config).cross_attention
        attentions: list[Any] = [module for name, module in self.t5.named_modules() if name.endswith(endings)]
        with self.rows(adapters, lengths):
            return [read(states) for attention in attentions for read in (attention.k, attention.v)], lengths

    def _encode_packed(self, sources: Ids, adapters: Adapters) -> tuple[Tensor, list[int]]:
        """Return the states [1, T, H] of the tokens of all sources, and the tokens of each row."""
        embeddings = self._embed(sources, adapters)
        lengths = [len(row) for row in embeddings]
        missing = -sum(lengths) % row_multiple(sum(lengths))  # that linear maps would fill up, each of them
        filled, own = ([*lengths, missing], [*adapters, None]) if missing else (lengths, adapters)
        row = torch.cat([*embeddings, embeddings[0].new_zeros(missing, embeddings[0].shape[-1])])[None]
        with self.rows(own, filled):
            output = self.t5.get_encoder()(
                inputs_embeds=row,
                attention_mask=row.new_zeros(1, 1, 1, 1),
                layout=VarlenLayout(tuple(filled), tuple(filled)),
            )
        return output.last_hidden_state[:, : sum(lengths)], lengths

    @contextmanager
    def encoded(
        self, separate: PeftModel | None, sources: Ids, adapters: Adapters
    ) -> Iterator[tuple[PreTrainedModel, BaseModelOutput, Tensor]]:
        """Encode sources, and let the decoder go on with them inside the block.

        Args:
            separate: The model of all the rows, where they are computed separately.
            sources: Token ids of each row.
            adapters: One for each row.

        Yields:
            The T5, the output of its encoder, and the mask.
        """
        if separate is None:
            t5, (states, mask) = self.t5, self.encode(sources, adapters)
        else:
            t5, states, mask = encode_separately(separate, sources)
        with self.rows(adapters):
            yield t5, BaseModelOutput(last_hidden_state=cast(Any, states)), mask

    def generate(
        self,
        sources: Ids,
        adapters: Adapters,
        *,
        max_new_tokens: int,
        num_beams: int = 1,
        between: Callable[[], None] | None = None,
    ) -> Tensor:
        """Generate an answer for each row, by the ``generate`` of transformers.

        Args:
            sources: Token ids of each row, which end in ``</s>``.
            adapters: One for each row.
            max_new_tokens: Maximum tokens of an answer, including ``</s>``.
            num_beams: 1 is greedy search.
            between: Called between two steps, where other rows may use this model.

        Returns:
            Token ids [B, up to 1 + max_new_tokens], the start token first, padded on the right.
        """
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False}
        options |= {
            "stopping_criteria": None if between is None else calling(between),
            "return_dict_in_generate": False,
        }

        def run(separate: PeftModel | None, indices: list[int]) -> list[list[int]]:
            rows, own = [sources[i] for i in indices], [adapters[i] for i in indices]
            if separate is not None:
                return generate_separately(separate, rows, options)
            with self.encoded(None, rows, own) as (t5, states, mask):
                generator: Any = t5
                found: Tensor = generator.generate(encoder_outputs=states, attention_mask=mask, **options)
            return found.tolist()

        return _padded(in_parts(adapters, run), self.t5)

    def rank(self, sources: Ids, candidates: Sequence[Ids], adapters: Adapters) -> list[list[float]]:
        """Return the log-probability of each candidate of each row, as ``t5peft.rank`` does.

        Args:
            sources: Token ids of each row, which end in ``</s>``.
            candidates: Token ids of the candidates of each row.
            adapters: One for each row.
        """
        head = family_of(self.t5.config).head

        def score(separate: PeftModel | None, indices: list[int]) -> list[list[float]]:
            part = [sources[i] for i in indices], [adapters[i] for i in indices]
            with self.encoded(separate, *part) as (t5, states, mask):
                return score_candidates(t5, states, mask, [candidates[i] for i in indices])

        # The head scores parts of batches, so each adapter on it has a batch of its own.
        return in_parts(adapters, score, lambda adapter: adapter.separate is not None or head in adapter.maps)

    def classify(self, sources: Ids, adapters: Sequence[AdapterWeights]) -> list[list[float]]:
        """Return the log-probability of each class of each row, by the head of its adapter.

        Args:
            sources: Token ids of each row, which end in ``</s>``.
            adapters: One with a classification head for each row.

        Raises:
            ValueError: An adapter has no such head.
        """
        if without := sorted({adapter.name for adapter in adapters if adapter.head is None}):
            raise ValueError(f"Got the adapters {without}, which have no classification head; expected one. Use rank.")
        # As T5ForSequenceClassification: the decoder reads the source, and the head the state that predicts the end token, or that
        # of this token.
        later = family_of(self.t5.config).class_reads_last_token

        def score(_: PeftModel | None, indices: list[int]) -> Iterator[list[float]]:
            rows, own = [list(sources[i]) for i in indices], [adapters[i] for i in indices]
            read = [[self.t5.config.decoder_start_token_id, *row][: len(row) + later] for row in rows]
            with self.encoded(None, rows, own) as (t5, states, mask):
                hidden = t5.get_decoder()(
                    input_ids=_padded(read, t5),
                    encoder_hidden_states=states.last_hidden_state,
                    encoder_attention_mask=mask,
                    use_cache=False,
                ).last_hidden_state
            for row, state, adapter in zip(rows, hidden, own, strict=True):
                logits = cast(Any, adapter).head(state[len(row) - 1 + later][None])
                yield logits.log_softmax(-1)[0].tolist()

        return in_parts(adapters, score)

    def _embed(self, sources: Ids, adapters: Adapters) -> list[Tensor]:
        """Return the embeddings [S', H] of each row, its prompt before its source."""
        table = cast(nn.Embedding, self.t5.get_input_embeddings())
        with torch.inference_mode():
            ids = torch.tensor([token for source in sources for token in source], device=self.t5.device)
            rows = table(ids).split([len(source) for source in sources])
            return [
                row if adapter is None or adapter.prompt is None else torch.cat([adapter.prompt.to(row.dtype), row])
                for row, adapter in zip(rows, adapters, strict=True)
            ]

    def _routing_for(self, adapters: Adapters) -> Routing:
        """Return the routing of the rows, with what it has computed before where the rows are the same."""
        key = tuple(map(id, adapters))
        routing = self._kept.pop(key, None) or Routing(adapters)
        self._kept[key] = routing  # the last one used stands last; a routing holds its adapters, so no id is used twice
        while len(self._kept) > _KEPT_ROUTINGS:
            del self._kept[next(iter(self._kept))]
        return routing

    def _add_hooks(self) -> Iterator[RemovableHandle]:
        family = family_of(self.t5.config)
        attentions, norms = (*family.self_attention, *family.cross_attention), (*family.norms, family.final_norm)
        for name, module in self.t5.named_modules():
            if not family.is_tuned(name):
                continue
            if isinstance(module, nn.Linear):
                yield module.register_forward_pre_hook(partial(self._scale_inputs, name))
                yield module.register_forward_hook(partial(self._change_outputs, name))
            elif name.rpartition(".")[2] in norms:
                yield module.register_forward_hook(partial(self._renormalize, name, family.norm_epsilon))
            elif name.endswith(family.feed_forward):
                yield module.register_forward_hook(partial(self._add_bottlenecks, name))
            elif name.endswith(attentions):
                yield module.register_forward_pre_hook(partial(self._add_prefixes, name), with_kwargs=True)

    def _changes(self, name: str) -> bool:
        return self._routing is not None and self._routing.changes(name)

    def _at(self, x: Tensor) -> Routing:
        """Return the routing of x: of tokens where they are end to end in one row, or of the rows of a batch."""
        assert self._routing is not None  # by ``_changes``
        if self._tokens is not None and x.shape[:2] == (1, len(self._tokens.adapters)):
            return self._tokens
        return self._routing.at(x)

    def _scale_inputs(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self._changes(name) or (scales := self._at(inputs[0]).input_scales(name)) is None:
            return None
        scaled = inputs[0].clone()
        scales.multiply(self._at(scaled).rows_of(scaled))
        return (scaled, *inputs[1:])

    def _change_outputs(
        self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if not self._changes(name):
            return None
        routing = self._at(output)
        x, y = routing.rows_of(inputs[0]), routing.rows_of(output)
        for group in routing.low_rank(name, takes_native(x, y)):
            group.add(x, y)
        if (scales := routing.output_scales(name)) is not None:
            scales.multiply(y)
        for bottleneck in routing.bottlenecks(name):
            bottleneck.add(x, y)
        return output

    def _renormalize(
        self, name: str, epsilon: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if self._changes(name) and (norms := self._at(output).norms(name)) is not None:
            routing = self._at(output)
            norms.replace(routing.rows_of(inputs[0]), routing.rows_of(output), getattr(module, epsilon))
        return output

    def _add_bottlenecks(
        self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if self._changes(name):
            routing = self._at(output)
            for bottleneck in routing.bottlenecks(name):
                bottleneck.add(routing.rows_of(inputs[0]), routing.rows_of(output))
        return output

    def _add_prefixes(
        self, name: str, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        states = inputs[0] if inputs else options["hidden_states"]
        if not self._changes(name):
            return None
        routing = self._at(states)
        prefixes = cast(Routing, self._routing if routing is self._tokens else routing).prefixes(name)
        if prefixes is None:
            return None
        return inputs, {**options, "prefix": prefixes}


def calling(call: Callable[[], None]) -> StoppingCriteriaList:
    """Return criteria for ``generate`` of transformers that call a function after each step and stop nothing.

    Args:
        call: The function.

    Returns:
        The criteria.
    """

    def go_on(input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        call()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([go_on])


def _mask_of(lengths: Sequence[int], states: Tensor) -> Tensor:
    """Return the mask [B, S] of padded states [B, S, H]."""
    columns = torch.arange(states.shape[1], device=states.device)
    return (columns < torch.tensor(lengths, device=states.device)[:, None]).long()


def _padded(rows: Ids, t5: PreTrainedModel) -> Tensor:
    return pad_rows(rows, t5.config.pad_token_id).to(t5.device)
