"""Fast kernels keep what others hang on a model: hooks are called, and copies and pickles are plain."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Case, ready_t5, stir, trained, wrap
from fresh import run_fresh
from grids import sampled
from narrow import gradient
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tiny import tiny_batch, tiny_records, tiny_t5
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, load_backbone, lora_wrap, predict
from t5peft.compat.torch import GLOBAL_HOOKS, HOOKS
from t5peft.data.collate import collate, collate_padding_free
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.fast import FAST_CLASSES, fast_classes, fast_kernels, t5peft_attention
from t5peft.nn.loss import target_loss

PADS = {"pad_token_id": 0, "decoder_start_token_id": 0}
METHODS_OF_FLOATS = [name for name, method in METHODS.items() if method.quantize is None]


def tuned(method: str = "lora", **options: Any) -> nn.Module:
    return stir(wrap(Case(method, options), ready_t5("v1.1"))).train()


def watched_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose hooks a step must call, by name: every module with a forward of its own."""
    containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterDict, nn.ParameterList)
    return {name: module for name, module in model.named_modules() if not isinstance(module, containers)}


def forward_hook(module: nn.Module, call: Callable[..., None]) -> Any:
    return module.register_forward_hook(lambda *_: call())


def forward_pre_hook(module: nn.Module, call: Callable[..., None]) -> Any:
    return module.register_forward_pre_hook(lambda *_: call())


def full_backward_hook(module: nn.Module, call: Callable[..., None]) -> Any:
    return module.register_full_backward_hook(lambda *_: call())


def full_backward_pre_hook(module: nn.Module, call: Callable[..., None]) -> Any:
    return module.register_full_backward_pre_hook(lambda *_: call())


KINDS = [forward_hook, forward_pre_hook, full_backward_hook, full_backward_pre_hook]


def calls_of(model: nn.Module, kind: Callable[..., Any], step: Callable[[], Any]) -> Counter[str]:
    """How often ``step`` calls a hook of each module."""
    calls: Counter[str] = Counter()
    handles = [
        kind(module, partial(calls.update, [name]))
        for name, module in watched_modules(model).items()
        # torch calls backward hooks only of modules that return tensors.
        if "backward" not in kind.__name__ or not list(module.children()) or isinstance(module, LoraLayer)
    ]
    step()
    for handle in handles:
        handle.remove()
    return calls


def step(model: nn.Module) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**tiny_batch()).loss
    loss.backward()
    return loss.item(), {name: gradient(p).clone() for name, p in trained(model).items()}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(("method", "kind"), sampled(METHODS_OF_FLOATS, KINDS, every=2))
def test_hooks_of_every_module_are_called_as_without_kernels(method: str, kind: Callable[..., Any]) -> None:
    if method == "adalora" and "backward" in kind.__name__:
        pytest.skip("peft's layer adds to its result in place, which torch refuses of a module with such a hook")
    model = tuned(method)
    plain = calls_of(model, kind, lambda: step(model))
    with fast_kernels(model):
        assert calls_of(model, kind, lambda: step(model)) == plain
    if method == "lora":
        parts = ("base_layer", "lora_A.default", "lora_B.default", "lora_dropout.default")
        for part in parts:
            assert plain[f"base_model.model.decoder.block.1.layer.0.SelfAttention.q.{part}"] == 1


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B", "lora_dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_in_one_layer_changes_what_the_layer_returns_as_without_kernels(
    part: str, kind: Callable[..., Any]
) -> None:
    """And a layer without hooks keeps its kernel."""
    model = tuned()
    layer = [module for module in model.modules() if isinstance(module, LoraLayer)][-1]
    module = layer.base_layer if part == "base_layer" else getattr(layer, part)["default"]
    expected, called = step(model), []
    kind(module, lambda: called.append(part))
    with fast_kernels(model):
        found = step(model)
    assert called
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def doubled(module: nn.Module, inputs: Any, outputs: Any) -> tuple[Tensor]:
    return (2 * inputs[0],)


def test_a_hook_that_changes_an_output_or_a_gradient_does_so() -> None:
    changed = []
    for fast in (False, True):
        model = tuned()
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        layers[0].lora_A["default"].register_forward_hook(lambda module, inputs, output: 3 * output)
        layers[1].base_layer.register_forward_pre_hook(lambda module, inputs: (0.5 * inputs[0],))
        layers[-1].lora_B["default"].register_full_backward_hook(doubled)
        if fast:
            with fast_kernels(model):
                changed.append(step(model))
        else:
            changed.append(step(model))
    torch.testing.assert_close(changed[1], changed[0], rtol=1e-4, atol=1e-5)
    assert abs(changed[0][0] - step(tuned())[0]) > 1e-3


GLOBAL: list[Callable[..., RemovableHandle]] = [
    torch_module.register_module_forward_hook,
    torch_module.register_module_forward_pre_hook,
    torch_module.register_module_full_backward_hook,
    torch_module.register_module_full_backward_pre_hook,
]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:For backward hooks to be called")
@pytest.mark.parametrize("register", GLOBAL)
def test_hooks_of_all_modules_are_called_for_those_that_a_kernel_skips(register: Callable[..., Any]) -> None:
    model = lora_wrap(tiny_t5()).train()
    counted = {module: name for name, module in model.named_modules() if ".q." in name and "lora_drop" not in name}
    seen: list[Counter[str]] = []
    for fast in (False, True):
        calls: Counter[str] = Counter()
        handle = register(lambda module, *_, calls=calls: calls.update([counted[module]] if module in counted else []))
        try:
            if fast:
                with fast_kernels(model):
                    step(model)
            else:
                step(model)
        finally:
            handle.remove()
        seen.append(calls)
    assert seen[0]
    assert seen[0] == seen[1]


def test_the_names_by_which_torch_holds_hooks_are_those_that_we_read() -> None:
    plain = nn.Linear(1, 1)
    for kind, name in zip(KINDS, HOOKS, strict=True):
        assert not getattr(plain, name)
        handle = kind(plain, lambda: None)
        assert getattr(plain, name)
        handle.remove()
    for register, name in zip(GLOBAL, GLOBAL_HOOKS, strict=True):
        handle = register(lambda *_: None)
        assert getattr(torch_module, name)
        handle.remove()


def test_a_forward_of_an_instance_or_of_a_subclass_is_called() -> None:
    """As accelerate sets one to move weights, and as a user's own linear map has one."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for change in ("instance", "subclass"):
        model = tuned()
        layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
        base = layer.base_layer
        if change == "instance":
            base.forward = lambda x, plain=base.forward: 2 * plain(x)
        else:
            base.__class__ = Doubled
        expected = step(model)
        with fast_kernels(model):
            torch.testing.assert_close(step(model), expected, rtol=1e-4, atol=1e-5)
        assert abs(expected[0] - step(tuned())[0]) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_the_head_are_called(kind: Callable[..., Any]) -> None:
    model, called = tuned(), []
    kind(unwrap_t5(model).lm_head, lambda: called.append(1))
    batch = collate(tiny_records(3), **PADS)
    expected = target_loss(tuned(), batch)[0].item()
    with fast_kernels(model):
        loss, _ = target_loss(model, batch)
        loss.backward()
    assert called
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_hooks_are_called_while_adapters_are_merged_for_prediction() -> None:
    from tiny import tiny_tokenizer

    model = tuned()
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    expected = predict(model, tiny_tokenizer(), ["a", "bcd"], max_new_tokens=4)
    seen: list[str] = []
    for part, module in (("base", layer.base_layer), ("A", layer.lora_A["default"]), ("B", layer.lora_B["default"])):
        module.register_forward_hook(lambda *_, part=part: seen.append(part))
    assert predict(model, tiny_tokenizer(), ["a", "bcd"], max_new_tokens=4) == expected
    assert set(seen) == {"base", "A", "B"}


# Copies and pickles


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, by_pickle, by_torch]


def attentions_of(model: nn.Module) -> list[tuple[str, type, str]]:
    """The attention function of every part, and the type of its name."""
    parts = [
        (name, module.config._attn_implementation)
        for name, module in model.named_modules()
        if hasattr(module, "config")
    ]
    return [(name, type(attention), attention) for name, attention in parts]


@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_copy_has_the_attention_that_the_model_has_outside(
    attention: str, make: Callable[[nn.Module], nn.Module]
) -> None:
    model = tiny_t5()
    model.set_attn_implementation(attention)
    before = attentions_of(model)
    for block in (fast_kernels, t5peft_attention):
        with block(model):
            made = make(model)
            assert model.config._attn_implementation == "t5peft"
            with block(model):
                pass
            assert model.config._attn_implementation == "t5peft"
        assert attentions_of(made) == attentions_of(model) == before


@pytest.mark.parametrize(("method", "make"), sampled(METHODS_OF_FLOATS, COPIES, every=2))
def test_a_copy_made_on_kernels_is_plain(method: str, make: Callable[[nn.Module], nn.Module]) -> None:
    model = tuned(method)
    classes = [type(module) for module in model.modules()]
    expected = step(model)
    with fast_kernels(model):
        made = make(model)
        assert any(type(module) in FAST_CLASSES.values() for module in model.modules())
    assert [type(module) for module in made.modules()] == classes
    assert attentions_of(made) == attentions_of(model)
    torch.testing.assert_close(step(made), expected, rtol=1e-5, atol=1e-6)
    for name, tensor in model.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor)


@pytest.mark.parametrize("make", COPIES)
def test_a_copy_is_merged_and_runs_on_the_attention_of_torch(make: Callable[[nn.Module], nn.Module]) -> None:
    model, batch = tuned(), tiny_batch()
    with fast_kernels(model):
        made = make(model)
    assert isinstance(made, PeftModel)
    merged = made.merge_and_unload()
    merged.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        torch.testing.assert_close(merged.eval()(**batch).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", COPIES)
def test_a_copy_of_an_8_bit_model_is_plain(make: Callable[[nn.Module], nn.Module], folders: dict[str, Path]) -> None:
    pytest.importorskip("bitsandbytes")
    model = METHODS["qlora"].wrap(load_backbone(folders["v1.1"], quantize="int8", dtype=torch.float32)[0], rank=2)
    classes = [type(module) for module in model.modules()]
    with fast_kernels(model):
        assert any(
            type(module) is fast_classes().get(plain) for module, plain in zip(model.modules(), classes, strict=True)
        )
        made = make(model)
    assert [type(module) for module in made.modules()] == classes


class Keep(TrainerCallback):
    """Copies the model in the middle of training, by all ways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copies: list[nn.Module] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1:
            assert any(type(module) in FAST_CLASSES.values() for module in model.modules())
            torch.save(model, self.folder / "model.pt")
            self.copies = [make(model) for make in COPIES]


@pytest.mark.parametrize("method", ["full", "lora", "prefix", "prompt", "ladder", "ia3"])
def test_a_callback_copies_the_model_in_training(method: str, tmp_path: Path) -> None:
    model, keep = tuned(method), Keep(tmp_path)
    before = {name: tensor.clone() for name, tensor in trained(model).items()}
    args = T5PeftTrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-2, save_strategy="no", report_to="none", disable_tqdm=True
    )
    T5PeftTrainer(model, args, train_dataset=tiny_records(8), callbacks=[keep]).train()
    assert len(keep.copies) == len(COPIES)
    for made in keep.copies:
        assert not any(type(module) in FAST_CLASSES.values() for module in made.modules())
        names = trained(made).keys()
        assert names == before.keys()
        assert any(not torch.equal(trained(made)[name], before[name]) for name in names)
        assert torch.isfinite(made.eval()(**tiny_batch()).loss)


@pytest.mark.processes
def test_a_model_saved_on_kernels_is_loaded_in_another_process(tmp_path: Path) -> None:
    model = tuned()
    with fast_kernels(model):
        torch.save(model, tmp_path / "model.pt")
    torch.save(tiny_batch(), tmp_path / "batch.pt")
    code = """
import sys, torch
model = torch.load(sys.argv[1] + "/model.pt", weights_only=False)
merged = model.merge_and_unload()
merged.set_attn_implementation("sdpa")
with torch.no_grad():
    print(float(merged.eval()(**torch.load(sys.argv[1] + "/batch.pt")).loss))
assert not any(name.startswith("t5peft.nn.kernels") for name in map(lambda m: type(m).__module__, merged.modules()))
"""
    done = run_fresh(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        assert float(done.stdout) == pytest.approx(float(model.eval()(**tiny_batch()).loss), rel=1e-4)


def test_a_padding_free_step_calls_hooks_too() -> None:
    model = tuned()
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    called = []
    layer.lora_B["default"].register_forward_hook(lambda *_: called.append(1))
    with fast_kernels(model):
        target_loss(model, collate_padding_free(tiny_records(3), **PADS))
    assert called == [1]
