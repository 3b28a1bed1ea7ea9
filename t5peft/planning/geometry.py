"""Shapes of the published T5 checkpoints, so that a plan needs neither weights nor a network.

Those of T5, mT5, umT5, ByT5 and CodeT5 are taken from the ``config.json`` of each checkpoint on the hub. The sources of the others:

- MADLAD-400 3B (Kudugunta et al. 2023): the default sizes of CrispStrobe/CrispASR, which runs it (``src/t5_translate.cpp``). No
  source has those of the larger ones, so their configs are read from the hub.
- Aya-101 (Üstün et al. 2024): its paper, which tunes mT5-XXL.
- Flan-UL2 (Tay et al. 2023): the table of configs in deepjavalibrary/djl-serving. The number of weights gives the width.
- CodeT5+ 220M and 770M (Wang et al. 2023), monoT5 (Nogueira et al. 2020), Sentence-T5 and GTR (Ni et al. 2022), ProtT5 (Elnaggar et
  al. 2021): their cards, which name the T5 or CodeT5 that they start from. Sentence-T5 and GTR are encoders only.
- ProstT5 (Heinzinger et al. 2024): its config, which has 150 tokens and the other sizes of T5 3B.
- Chronos (Ansari et al. 2024): its README, which names the T5-Efficient of each, and the cards of those. A key has 64 numbers, as
  the weights on the cards (15.58 and 31.23 million) show.

A test counts the weights of each, and compares with the number that its paper or card gives (Raffel et al. 2020; Xue et al. 2021,
2022; Chung et al. 2022, 2023; Wang et al. 2021, and those above).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig, MT5Config, PretrainedConfig, T5Config, UMT5Config

from t5peft.models.embedded import resolve_backbone
from t5peft.models.families import FAMILIES
from t5peft.models.folders import ensure_holds_model
from t5peft.planning.other_geometry import OTHER_CHECKPOINTS

# d_model, d_kv, d_ff, encoder layers, decoder layers, heads
_V1_0 = {
    "small": (512, 64, 2048, 6, 6, 8),
    "base": (768, 64, 3072, 12, 12, 12),
    "large": (1024, 64, 4096, 24, 24, 16),
    "3b": (1024, 128, 16384, 24, 24, 32),
    "11b": (1024, 128, 65536, 24, 24, 128),
}
_V1_1 = {
    "small": (512, 64, 1024, 8, 8, 6),
    "base": (768, 64, 2048, 12, 12, 12),
    "large": (1024, 64, 2816, 24, 24, 16),
    "xl": (2048, 64, 5120, 24, 24, 32),
    "xxl": (4096, 64, 10240, 24, 24, 64),
}
_BYT5 = {
    "small": (1472, 64, 3584, 12, 4, 6),
    "base": (1536, 64, 3968, 18, 6, 12),
    "large": (1536, 64, 3840, 36, 12, 16),
    "xl": (2560, 64, 6720, 36, 12, 32),
    "xxl": (4672, 64, 12352, 36, 12, 64),
}
_MADLAD = {"3b": (1024, 128, 8192, 32, 32, 16)}
_CHRONOS = {
    "tiny": (256, 64, 1024, 4, 4, 4),
    "mini": (384, 64, 1536, 4, 4, 8),
    **{size: _V1_0[size] for size in ("small", "base", "large")},
}
_ENCODERS = {"base": _V1_0["base"], "large": _V1_0["large"], "xl": _V1_0["3b"], "xxl": _V1_0["11b"]}
_MONO = {size: _V1_0[size] for size in ("base", "large", "3b")}
_Shape = tuple[int, int, int, int, int, int]


def _config(kind: Callable[..., PretrainedConfig], shape: _Shape, vocabulary: int, gated: bool) -> PretrainedConfig:
    d_model, d_kv, d_ff, encoder, decoder, heads = shape
    return kind(
        d_model=d_model,
        d_kv=d_kv,
        d_ff=d_ff,
        num_layers=encoder,
        num_decoder_layers=decoder,
        num_heads=heads,
        vocab_size=vocabulary,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
    )


def _families() -> list[tuple[str, type[PretrainedConfig], dict[str, _Shape], int, bool]]:
    codet5 = {size: _V1_0[size] for size in ("small", "base", "large")}
    umt5 = {size: _V1_1[size] for size in ("small", "base", "xl", "xxl")}
    codet5p = {"220m": _V1_0["base"], "770m": _V1_0["large"]}
    ul2 = {"ul2": (4096, 256, 16384, 32, 32, 16)}
    return [
        ("t5-{}", T5Config, _V1_0, 32128, False),
        ("google-t5/t5-{}", T5Config, _V1_0, 32128, False),
        ("google/t5-v1_1-{}", T5Config, _V1_1, 32128, True),
        ("google/flan-t5-{}", T5Config, _V1_1, 32128, True),
        ("google/mt5-{}", MT5Config, _V1_1, 250112, True),
        ("google/umt5-{}", UMT5Config, umt5, 256384, True),
        ("google/byt5-{}", T5Config, _BYT5, 384, True),
        ("Salesforce/codet5-{}", T5Config, codet5, 32100, False),
        ("Salesforce/codet5p-{}", T5Config, codet5p, 32100, False),
        ("google/madlad400-{}-mt", T5Config, _MADLAD, 256000, True),
        ("CohereLabs/aya-{}", T5Config, {"101": _V1_1["xxl"]}, 250112, True),
        ("google/flan-{}", T5Config, ul2, 32128, True),
        ("castorini/monot5-{}-msmarco", T5Config, _MONO, 32128, False),
        ("sentence-transformers/gtr-t5-{}", T5Config, _ENCODERS, 32128, False),
        ("sentence-transformers/sentence-t5-{}", T5Config, _ENCODERS, 32128, False),
        ("Rostlab/{}", T5Config, {"prot_t5_xl_uniref50": _V1_0["3b"]}, 128, False),
        ("Rostlab/{}", T5Config, {"ProstT5": _V1_0["3b"]}, 150, False),
        ("amazon/chronos-t5-{}", T5Config, _CHRONOS, 4096, False),
    ]


def known_checkpoints() -> dict[str, tuple[type[PretrainedConfig], _Shape, int, bool]]:
    """Return the shapes of the known checkpoints by their names on the hub."""
    return {
        pattern.format(size): (kind, shape, vocabulary, gated)
        for pattern, kind, shapes, vocabulary, gated in _families()
        for size, shape in shapes.items()
    }


def config_of(backbone: str) -> PretrainedConfig:
    """Return the configuration of a backbone.

    Args:
        backbone: "mini", a known checkpoint, a local folder, or a name on the hub.

    Raises:
        FileNotFoundError: It was not found.
        ValueError: It is not a T5.
    """
    known = known_checkpoints()
    if backbone in OTHER_CHECKPOINTS:
        return OTHER_CHECKPOINTS[backbone]()
    if backbone in known:
        config = _config(*known[backbone])
        if backbone.startswith("google/madlad400"):
            config.pad_token_id, config.eos_token_id = 1, 2
        if backbone.startswith("google/flan-ul2"):  # the one gated T5 whose head is its table
            config.feed_forward_proj, config.dense_act_fn = "gated-silu", "silu"
            config.tie_word_embeddings = config.scale_decoder_outputs = True
        if backbone.startswith("sentence-transformers/"):
            config.architectures, config.embedding_size = ["T5EncoderModel"], 768
        return config
    path = Path(resolve_backbone(backbone)).expanduser()
    ensure_holds_model(path)
    try:
        config = AutoConfig.from_pretrained(path if path.is_dir() else backbone)
    except OSError as error:
        raise FileNotFoundError(
            f"Got backbone {backbone!r}, which is neither a folder with a config.json nor on the hub; expected 'mini', a folder, "
            f"or one of {', '.join(sorted({*known, *OTHER_CHECKPOINTS}))}."
        ) from error
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"Got a {config.model_type!r} checkpoint in {backbone}; expected one of {', '.join(FAMILIES)}."
        )
    return config
