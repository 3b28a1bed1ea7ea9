"""Adapters are pushed to the hub and loaded from it by name, by huggingface_hub's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import stir
from hub_stand_in import Hub, running_hub
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSeq2SeqLM, LoraConfig, PeftModel
from tiny import tiny_t5, tiny_tokenizer

from t5peft import Task, load_adapter, load_backbone, lora_wrap, merge, push_adapter, save_adapter
from t5peft.adapters import CardScore, manifest_sha256, write_card
from t5peft.adapters.card import PLACE
from t5peft.adapters.manifest import CONFIG, MANIFEST, WEIGHTS
from t5peft.cli import main
from t5peft.models.manifest import verify

# huggingface_hub gives files to its HTTP client by an argument of earlier versions.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

BASE = "someone/tiny-t5"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with the backbone ``BASE`` in two commits."""
    with pytest.MonkeyPatch.context() as patch, running_hub(patch, tmp_path_factory.mktemp("cache")) as hub:
        for seed in (0, 1):
            folder = tmp_path_factory.mktemp("base")
            tiny_t5(seed=seed).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
            hub.add(BASE, folder)
        yield hub


@pytest.fixture(scope="module")
def adapter(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the backbone's newest commit, with a task and a card."""
    model = stir(lora_wrap(load_backbone(BASE)[0], rank=1))
    folder = save_adapter(model, tmp_path_factory.mktemp("run") / "adapter")
    task = Task("reviews", "classify: {review}", "{stars}", {"1": "bad", "5": "good"}, ("accuracy",))
    task.to_yaml(folder / "task.yaml")
    score = CardScore("test", "accuracy", 0.75, (0.5, 0.9), 0.5, 40)
    write_card(
        folder, task=task, scores=[score], baseline="most frequent label", training={"trained on": "100 records"}
    )
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 1]])
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=ids, labels=ids).logits
    return out


def rank_of(model: PeftModel) -> int:
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    return config.r


def test_a_pushed_adapter_is_loaded_by_its_name(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    address = push_adapter(adapter, "someone/reviews")
    repo = hub.repos["someone/reviews"]
    commit = repo.branches["main"]
    assert address == f"{hub.endpoint}/someone/reviews/commit/{commit}"
    assert sorted(repo.commits[commit]) == ["README.md", CONFIG, WEIGHTS, MANIFEST, "task.yaml"]
    assert repo.messages == ["initial commit", "Upload an adapter"]
    loaded, tokenizer = load_adapter("someone/reviews", sha256=manifest_sha256(adapter))
    assert tokenizer is not None
    assert torch.equal(logits(loaded), logits(load_adapter(adapter)[0]))
    by_peft = AutoPeftModelForSeq2SeqLM.from_pretrained("someone/reviews", dtype=torch.float32)
    assert torch.equal(logits(by_peft), logits(loaded))
    assert torch.allclose(logits(merge("someone/reviews")[0]), logits(loaded), atol=1e-5)


def test_an_adapter_is_loaded_beside_the_commit_of_its_backbone(hub: Hub, adapter: Path) -> None:
    commit = hub.repos[BASE].branches["main"]
    assert json.loads((adapter / CONFIG).read_text())["revision"] == commit
    expected = logits(load_adapter(adapter)[0])
    tiny = tiny_t5(seed=2)
    files = dict(hub.repos[BASE].commits[commit])
    try:
        hub.repos[BASE].commit({**files, "config.json": b"{}"}, "main", "break it")
        assert torch.equal(logits(load_adapter(adapter)[0]), expected)
        older = next(name for name in hub.repos[BASE].commits if name != commit)
        with pytest.raises(ValueError, match="another backbone"):
            load_adapter(adapter, model=load_backbone(BASE, revision=older)[0])
        with pytest.raises(ValueError, match="another backbone"):
            load_adapter(adapter, model=tiny)
    finally:
        hub.repos[BASE].branches["main"] = commit


def test_a_branch_holds_another_version_and_a_second_push_replaces_the_first(
    hub: Hub, adapter: Path, tmp_path: Path
) -> None:
    push_adapter(adapter, "someone/branches")
    second = save_adapter(stir(lora_wrap(load_backbone(BASE)[0], rank=2)), tmp_path / "second")
    push_adapter(second, "someone/branches", revision="rank-2", message="Rank 2")
    assert rank_of(load_adapter("someone/branches")[0]) == 1
    assert rank_of(load_adapter("someone/branches", revision="rank-2")[0]) == 2
    repo = hub.repos["someone/branches"]
    assert repo.messages[-1] == "Rank 2"
    assert "task.yaml" not in repo.commits[repo.branches["rank-2"]]  # of the first, and not of the second
    push_adapter(second, "someone/branches")
    assert rank_of(load_adapter("someone/branches")[0]) == 2


def test_the_card_on_the_hub_says_what_the_run_says(hub: Hub, adapter: Path) -> None:
    push_adapter(adapter, "someone/card")
    card = ModelCard.load("someone/card")
    assert card.data.base_model == BASE
    assert card.data.eval_results[0].metric_value == 0.75
    for text in (
        f"revision `{hub.repos[BASE].branches['main']}`",
        "- Template: `classify: {review}`",
        "- Labels: 1 (bad), 5 (good)",
        "- Trained on: 100 records",
        "| test | accuracy | 0.750 | [0.500, 0.900] | 0.500 | 40 |",
        manifest_sha256(adapter),
        'load_adapter("someone/card")',
    ):
        assert text in card.text
    assert PLACE not in card.text


def test_a_folder_in_the_form_of_the_hub_holds_the_same_files(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    (adapter / "checkpoint-3").mkdir(exist_ok=True)
    (adapter / "checkpoint-3" / "optimizer.pt").write_bytes(b"large")
    target = tmp_path / "for the hub"
    assert push_adapter(adapter, f"folder:{target}") == str(target)
    assert sorted(path.name for path in target.iterdir()) == ["README.md", CONFIG, WEIGHTS, MANIFEST, "task.yaml"]
    assert torch.equal(logits(load_adapter(target)[0]), logits(load_adapter(adapter)[0]))
    with pytest.raises(FileExistsError, match="new or empty folder"):
        push_adapter(adapter, f"folder:{target}")


def test_the_path_of_a_backbone_on_this_machine_is_not_published(hub: Hub, backbone: str, tmp_path: Path) -> None:
    model = stir(lora_wrap(load_backbone(backbone)[0], rank=1))
    folder = save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="expected a backbone that others can load"):
        push_adapter(folder, "someone/of_a_folder")
    assert "someone/of_a_folder" not in hub.repos
    target = Path(push_adapter(folder, f"folder:{tmp_path / 'out'}", base_model=BASE))
    for path in target.iterdir():
        assert backbone.encode() not in path.read_bytes()
    assert verify(target) == []
    assert json.loads((target / CONFIG).read_text())["base_model_name_or_path"] == BASE


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("someone/nothing", None, "holds no adapter on the hub"),
        ("someone/tiny-t5", "v9", "at the revision 'v9'"),
        ("someone/tiny-t5", None, "holds no adapter; expected"),
    ],
)
def test_a_name_without_an_adapter_is_one_clear_error(hub: Hub, name: str, revision: str | None, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        load_adapter(name, revision=revision)


def test_wrong_names_and_damaged_adapters_are_refused_before_anything_is_sent(
    hub: Hub, adapter: Path, tmp_path: Path
) -> None:
    sent = len(hub.requests)
    with pytest.raises(ValueError, match="expected a name such as 'user/reviews'"):
        push_adapter(adapter, "reviews")
    with pytest.raises(ValueError, match="is not a name on the hub"):
        load_adapter(adapter, revision="main")
    copy = Path(push_adapter(adapter, f"folder:{tmp_path / 'copy'}"))
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(ValueError, match="was changed or damaged"):
        push_adapter(copy, "someone/damaged")
    assert len(hub.requests) == sent


def test_a_hub_that_refuses_is_one_clear_error(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"expected it to accept the adapter\. Log in with `hf auth login`"):
        push_adapter(adapter, "someone/refused")
    assert "someone/refused" not in hub.repos


def test_commands_take_an_adapter_by_its_name(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    push_adapter(adapter, "someone/commands")
    data = tmp_path / "new.jsonl"
    data.write_text(json.dumps({"review": "good", "stars": "5"}) + "\n")
    output = tmp_path / "answers.jsonl"
    assert main(["predict", "someone/commands", "--data", str(data), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["answer"] in ("1", "5")
    assert main(["evaluate", "someone/commands", "--data", str(data)]) == 0
    assert main(["merge", "someone/commands", "--output", str(tmp_path / "merged")]) == 0
    assert main(["predict", "someone/nothing", "--data", str(data)]) == 2
