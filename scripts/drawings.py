"""Draw where each method sits in T5, in one style: docs/drawings/NAME.svg.

    python scripts/drawings.py

Frozen parts are plain, trained parts are filled. Colors are variables, so that a page can set them for light and dark.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "drawings"
WIDTH, HEIGHT = 560, 316
STYLE = """<style>
.t5 { --line: var(--drawing-line, #4a5568); --frozen: var(--drawing-frozen, #edf2f7); }
.t5 { --trained: var(--drawing-trained, #f6ad55); --text: var(--drawing-text, #1a202c); }
.t5 .frozen { fill: var(--frozen); stroke: var(--line); }
.t5 .trained { fill: var(--trained); stroke: var(--line); stroke-width: 1.6; }
.t5 .outline { fill: none; stroke: var(--line); stroke-dasharray: 4 3; }
.t5 .line { stroke: var(--line); fill: none; }
.t5 text { fill: var(--text); font: 12px system-ui, sans-serif; text-anchor: middle; }
.t5 .small { font-size: 10px; }
.t5 .left { text-anchor: start; }
</style>"""

# Columns of the encoder and of the decoder: x of the left edge.
ENCODER, DECODER = 70, 330
BLOCK = 150


class Drawing:
    """The parts of one drawing.

    Args:
        title: For those who do not see it.
    """

    def __init__(self, title: str) -> None:
        self.title, self.parts = title, [STYLE]

    def box(self, x: float, y: float, width: float, height: float, text: str = "", *, trained: bool = False) -> None:
        """Add a box with a text in its middle."""
        kind = "trained" if trained else "frozen"
        self.parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"/>')
        if text:
            self.text(x + width / 2, y + height / 2 + 4, text, small=width < 60 or len(text) > 18)

    def text(self, x: float, y: float, text: str, *, small: bool = False, left: bool = False) -> None:
        """Add a text."""
        kind = " ".join(name for name, on in (("small", small), ("left", left)) if on)
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def line(self, *points: tuple[float, float]) -> None:
        """Add a line through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline class="line" points="{path}"/>')

    def outline(self, x: float, y: float, width: float, height: float) -> None:
        """Add a dashed frame."""
        self.parts.append(f'<rect class="outline" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')

    def svg(self) -> str:
        """Return the drawing."""
        title = f"<title>{escape(self.title)}</title>"
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="t5" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title, quote=True)}">{title}\n{body}\n</svg>\n'
        )


# y of each sublayer's box, from the input at the bottom to the output at the top.
ENCODER_ROWS = {"feed-forward": 110, "self-attention": 180}
DECODER_ROWS = {"feed-forward": 40 + 50, "cross-attention": 150, "self-attention": 210}


def t5(title: str, *, all_trained: bool = False, norms: bool = False, quantized: bool = False) -> Drawing:
    """Return the drawing of a plain T5: one layer of the encoder and one of the decoder.

    Args:
        title: For those who do not see it.
        all_trained: Whether every part is trained.
        norms: Whether the layer norms are.
        quantized: Whether the linear maps hold 8 or 4 bits.
    """
    drawing = Drawing(title)
    bits = " (8 bit)" if quantized else ""
    for x, rows, name, top in (
        (ENCODER, ENCODER_ROWS, "encoder layer", 84),
        (DECODER, DECODER_ROWS, "decoder layer", 64),
    ):
        drawing.outline(x - 8, top, BLOCK + 16, 264 - top - 4)
        drawing.text(x - 6, top - 5, name, small=True, left=True)
        drawing.line((x + BLOCK / 2, 272), (x + BLOCK / 2, top))
        for sublayer, y in rows.items():
            drawing.box(x, y, BLOCK, 26, sublayer + bits, trained=all_trained)
            drawing.box(x + 40, y + 31, BLOCK - 80, 12, trained=all_trained or norms)
            drawing.text(x + BLOCK / 2, y + 40.5, "norm", small=True)
        drawing.box(
            x, 272, BLOCK, 24, "source embeddings" if x == ENCODER else "target embeddings", trained=all_trained
        )
    drawing.line((ENCODER + BLOCK / 2, 76), (ENCODER + BLOCK / 2, 56), (275, 56), (275, 163), (DECODER, 163))
    drawing.box(DECODER, 16, BLOCK, 24, "head", trained=all_trained)
    drawing.line((DECODER + BLOCK / 2, 58), (DECODER + BLOCK / 2, 40))
    return drawing


def sublayers() -> list[tuple[float, float, str]]:
    """Return x, y and name of every sublayer."""
    found = [(float(ENCODER), float(y), name) for name, y in ENCODER_ROWS.items()]
    return found + [(float(DECODER), float(y), name) for name, y in DECODER_ROWS.items()]


def beside(drawing: Drawing, kinds: tuple[str, ...], label: str, width: float = 40) -> None:
    """Add a trained box at the right of each sublayer of some kinds."""
    for x, y, name in sublayers():
        if name in kinds:
            drawing.line((x + BLOCK, y + 13), (x + BLOCK + 12, y + 13))
            drawing.box(x + BLOCK + 12, y, width, 26, label, trained=True)


ATTENTIONS = ("self-attention", "cross-attention")
EVERY = (*ATTENTIONS, "feed-forward")


def drawings() -> dict[str, str]:
    """Return the drawings by name."""
    found = {"full": t5("Full fine-tuning: every weight is trained", all_trained=True)}
    found["lora"] = t5("LoRA: two small matrices beside query and value of every attention")
    beside(found["lora"], ATTENTIONS, "A B")
    found["lora-all"] = t5("LoRA at all linear maps: two small matrices beside each of them")
    beside(found["lora-all"], EVERY, "A B")
    found["qlora"] = t5("QLoRA: LoRA beside linear maps of 8 or 4 bits", quantized=True)
    beside(found["qlora"], EVERY, "A B")
    found["adalora"] = t5("AdaLoRA: two small matrices beside each linear map, and singular values between them")
    beside(found["adalora"], EVERY, "A E B")
    found["ia3"] = t5("IA3: vectors that scale keys, values and hidden units")
    beside(found["ia3"], ATTENTIONS, "× k v")
    beside(found["ia3"], ("feed-forward",), "× h")
    found["prefix"] = t5("Prefix tuning: trained keys and values before those of every attention")
    beside(found["prefix"], ATTENTIONS, "k v")
    found["prompt"] = t5("Prompt tuning: trained vectors before the embedded source")
    found["prompt"].box(ENCODER - 52, 272, 48, 24, "prompt", trained=True)
    found["houlsby"] = t5("Houlsby adapters: small networks after self-attention and feed-forward")
    found["pfeiffer"] = t5("Pfeiffer adapters: small networks after the feed-forward")
    for name, kinds in (("houlsby", ("self-attention", "feed-forward")), ("pfeiffer", ("feed-forward",))):
        for x, y, sublayer in sublayers():
            if sublayer in kinds:
                found[name].box(x + 35, y - 14, BLOCK - 70, 12, trained=True)
    found["parallel"] = t5("Parallel adapters: small networks beside the feed-forward")
    for x, y, sublayer in sublayers():
        if sublayer == "feed-forward":
            found["parallel"].line(
                (x + BLOCK / 2, y + 50), (x + BLOCK + 30, y + 50), (x + BLOCK + 30, y - 8), (x + BLOCK / 2, y - 8)
            )
            found["parallel"].box(x + BLOCK + 12, y, 36, 26, "MLP", trained=True)
    found["mam"] = t5("MAM: a prefix before every attention, and a small network beside the feed-forward")
    beside(found["mam"], ATTENTIONS, "k v")
    beside(found["mam"], ("feed-forward",), "MLP")
    found["norm"] = t5("Norm tuning: the weights of every layer norm", norms=True)
    found["ladder"] = t5("Ladder: a small T5 beside the frozen one, which reads its states")
    for x, top in ((ENCODER, 84), (DECODER, 64)):
        found["ladder"].box(x + BLOCK + 14, top + 10, 34, 240 - top, "side", trained=True)
        for y in (120, 200):
            found["ladder"].line((x + BLOCK + 8, y), (x + BLOCK + 14, y))
    found["ladder"].line((DECODER + BLOCK + 31, 74), (DECODER + BLOCK + 31, 48), (DECODER + BLOCK / 2, 48))
    return {name: drawing.svg() for name, drawing in found.items()}


def main() -> None:
    """Write the drawings."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in drawings().items():
        (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
