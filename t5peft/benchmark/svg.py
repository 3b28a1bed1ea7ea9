"""Plots as SVG text, for a page that needs no network and no plotting library.

Every series has a colour, a marker and a dash of its own, so that they are told apart in grayscale; labels stand at the
points and keep out of each other's way. Text and axes take the page's colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 320
TOP, BOTTOM, LEFT = 14, 46, 52
FONT = 12
CHARACTER = 6.5
"""Width of a character of FONT, on average and a little more."""

COLORS = ("#222222", "#c8472b", "#1f6fb5", "#b8860b", "#2e8b57", "#8a4fa3", "#5f6b73", "#d070a0", "#3aa6a6")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4", "4 2 1 2", "3 5", "12 3")
_MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross", "bar", "ring", "star", "box")

Text = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A labelled point of a scatter plot; `style` picks colour and marker."""

    x: float
    y: float
    label: str
    style: int
    deviation: float | None = None


@dataclass(frozen=True)
class Line:
    """A labelled series of (x, y)."""

    points: Sequence[tuple[float, float]]
    label: str
    style: int


@dataclass(frozen=True)
class Axis:
    """A named axis: its range, its ticks, and how a value is written."""

    name: str
    low: float
    high: float
    log: bool
    text: Text

    @classmethod
    def over(cls, name: str, values: Sequence[float], *, text: Text, log: bool = False) -> Axis:
        """An axis that holds the values with a margin; a logarithmic one needs them positive."""
        low, high = min(values), max(values)
        if log:
            wide = max(high / low, 1.6) ** 0.09
            return cls(name, low / wide, high * wide, True, text)
        margin = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
        return cls(name, low - margin, high + margin, False, text)

    def share(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within the range, three to eight."""
        if not self.log or self.high / self.low < 8:
            step = _round_step((self.high - self.low) / 7)
            first = math.ceil(self.low / step)
            return [i * step for i in range(max(first, 1) if self.log else first, math.floor(self.high / step) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for mantissas in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            found = [m * 10.0**p for p in powers for m in mantissas if self.low <= m * 10.0**p <= self.high]
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / 5)]
        return found


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999)


def scatter(points: Sequence[Point], x: Axis, y: Axis, *, title: str) -> str:
    """Points with their labels, error bars where a deviation is known, and the Pareto front: less x, more y."""
    plot = _Plot(x, y, title, right=16)
    plot.parts.append(plot.front(points))
    places = [plot.place(point.x, point.y) for point in points]
    plot.parts += [plot.error_bar(point) for point in points if point.deviation]
    plot.parts += [_marker(px, py, point.style, 5) for point, (px, py) in zip(points, places, strict=True)]
    plot.parts += _labels([(px, py, point.label) for point, (px, py) in zip(points, places, strict=True)], plot.right)
    return plot.text()


def lines(series: Sequence[Line], x: Axis, y: Axis, *, title: str) -> str:
    """Series as lines; each is named at its end."""
    right = 16 + max(len(line.label) for line in series) * CHARACTER
    plot = _Plot(x, y, title, right=round(min(right, 0.4 * WIDTH)))
    ends = []
    for line in series:
        places = [plot.place(*point) for point in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        colour, dash = _style(line.style)
        plot.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}"/>'
        )
        plot.parts += [_marker(px, py, line.style, 3.5) for px, py in places]
        ends.append((*places[-1], line))
    plot.parts += list(_end_labels(ends, plot))
    return plot.text()


class _Plot:
    """Frame, ticks and axis names; `parts` collects what is drawn."""

    def __init__(self, x: Axis, y: Axis, title: str, right: int) -> None:
        self.x, self.y, self.title = x, y, title
        self.right = WIDTH - right
        self.parts: list[str] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + self.x.share(x) * (self.right - LEFT),
            HEIGHT - BOTTOM - self.y.share(y) * (HEIGHT - BOTTOM - TOP),
        )

    def error_bar(self, point: Point) -> str:
        deviation = point.deviation or 0.0
        px, low = self.place(point.x, max(point.y - deviation, self.y.low))
        _, high = self.place(point.x, min(point.y + deviation, self.y.high))
        return f'<path d="M{px:.1f},{low:.1f}V{high:.1f}" stroke="{_style(point.style)[0]}" stroke-width="1.2"/>'

    def front(self, points: Sequence[Point]) -> str:
        """The line above and left of which no point lies."""
        path, best = "", -math.inf
        for point in sorted(points, key=lambda point: (point.x, -point.y)):
            if point.y > best:
                px, py = self.place(point.x, point.y)
                path += f"H{px:.1f}V{py:.1f}" if path else f"M{px:.1f},{py:.1f}"
                best = point.y
        return f'<path d="{path}H{self.right}" fill="none" stroke="currentColor" stroke-opacity="0.35" stroke-dasharray="3 3"/>'

    def _frame(self) -> Iterator[str]:
        bottom = HEIGHT - BOTTOM
        yield f'<path d="M{LEFT},{TOP}V{bottom}H{self.right}" fill="none" stroke="currentColor"/>'
        for tick in self.x.ticks():
            px, _ = self.place(tick, self.y.low)
            yield f'<path d="M{px:.1f},{bottom}v4" stroke="currentColor"/>'
            yield f'<text x="{px:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(self.x.text(tick))}</text>'
        for tick in self.y.ticks():
            _, py = self.place(self.x.low, tick)
            yield f'<path d="M{LEFT - 4},{py:.1f}h4" stroke="currentColor"/>'
            yield f'<path d="M{LEFT},{py:.1f}H{self.right}" stroke="currentColor" stroke-opacity="0.12"/>'
            yield f'<text x="{LEFT - 7}" y="{py + 4:.1f}" text-anchor="end">{escape(self.y.text(tick))}</text>'
        middle = (LEFT + self.right) / 2
        yield f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(self.x.name)}</text>'
        yield (
            f'<text transform="translate(13,{(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.name)}</text>"
        )

    def text(self) -> str:
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}" font-size="{FONT}" '
            f'fill="currentColor" xmlns="http://www.w3.org/2000/svg">{"".join([*self._frame(), *self.parts])}</svg>'
        )


def _style(index: int) -> tuple[str, str]:
    return COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]


def _marker(x: float, y: float, style: int, size: float) -> str:
    colour, kind = _style(style)[0], _MARKERS[style % len(_MARKERS)]
    if kind in ("circle", "ring"):
        fill = colour if kind == "circle" else "none"
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
    shapes = {
        "square": "M-1,-1H1V1H-1Z",
        "triangle": "M0,-1.2L1.1,0.9H-1.1Z",
        "down": "M0,1.2L1.1,-0.9H-1.1Z",
        "diamond": "M0,-1.3L1.3,0L0,1.3L-1.3,0Z",
        "plus": "M-1.2,0H1.2M0,-1.2V1.2",
        "cross": "M-1,-1L1,1M-1,1L1,-1",
        "bar": "M-1.2,0H1.2",
        "star": "M-1.2,0H1.2M-0.6,-1L0.6,1M-0.6,1L0.6,-1",
        "box": "M-1,-1H1V1H-1Z",
    }
    filled = kind not in ("plus", "cross", "bar", "star", "box")
    paint = f'fill="{colour}"' if filled else f'fill="none" stroke="{colour}" stroke-width="{2 / size:.2f}"'
    return f'<path transform="translate({x:.1f},{y:.1f}) scale({size:.1f})" d="{shapes[kind]}" {paint}/>'


Box = tuple[float, float, float, float]


def _labels(items: Sequence[tuple[float, float, str]], right: float) -> Iterator[str]:
    """Names beside their points, each at the nearest place where it covers nothing."""
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in items]
    for x, y, label in items:
        width = len(label) * CHARACTER
        box = next((b for b in _candidates(x, y, width) if _free(b, taken, right)), None)
        if box is None:
            box = (x + 8, y - FONT / 2, x + 8 + width, y + FONT / 2)
        taken.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        if math.hypot(middle[0] - x, middle[1] - y) > width / 2 + 22:
            edge = min(max(x, box[0]), box[2]), box[3] if y > box[3] else box[1] if y < box[1] else middle[1]
            yield (
                f'<path d="M{x:.1f},{y:.1f}L{edge[0]:.1f},{edge[1]:.1f}" stroke="currentColor" stroke-opacity="0.4" '
                'stroke-width="0.8"/>'
            )
        yield f'<text x="{box[0]:.1f}" y="{box[3] - 2:.1f}">{escape(label)}</text>'


def _candidates(x: float, y: float, width: float) -> Iterator[Box]:
    half = FONT / 2 + 1
    for distance in (9, 16, 26, 38, 52, 68, 86):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.7), (-0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)):
            cx, cy = x + dx * distance, y + dy * (distance + (half if dx == 0 else 0))
            left = cx if dx > 0 else cx - width if dx < 0 else cx - width / 2
            yield (left, cy - half, left + width, cy + half)


def _free(box: Box, taken: Sequence[Box], right: float) -> bool:
    inside = box[0] >= LEFT + 2 and box[2] <= right + 12 and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM - 2
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )


def _end_labels(ends: Sequence[tuple[float, float, Line]], plot: _Plot) -> Iterator[str]:
    """Names at the right of the frame, pushed apart, each with its line's marker."""
    spacing = FONT + 2
    ordered = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, height, _ in ordered:
        heights.append(max(height, heights[-1] + spacing) if heights else height)
    excess = heights[-1] - (HEIGHT - BOTTOM)
    if excess > 0:
        for i in reversed(range(len(heights))):
            limit = HEIGHT - BOTTOM if i == len(heights) - 1 else heights[i + 1] - spacing
            heights[i] = min(heights[i], limit)
    for (x, height, line), shown in zip(ordered, heights, strict=True):
        colour, _ = _style(line.style)
        yield (
            f'<path d="M{x + 5:.1f},{height:.1f}L{plot.right + 9},{shown:.1f}" stroke="{colour}" stroke-opacity="0.5" '
            'stroke-width="0.8" fill="none"/>'
        )
        yield f'<text x="{plot.right + 12}" y="{shown + 4:.1f}">{escape(line.label)}</text>'
