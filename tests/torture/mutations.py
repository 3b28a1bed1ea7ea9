"""Seeded damage to a file: bits, cuts, swaps, huge numbers, nesting, encodings, links."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

Mutation = Callable[[bytes, random.Random], bytes]


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(max(1, len(data)))


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + 1 + int(rng.expovariate(1 / 40)))


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    changed = bytearray(data or b"\0")
    changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_bit_at_the_start(data: bytes, rng: random.Random) -> bytes:
    """Flip one bit of the first bytes, where formats hold lengths and names."""
    changed = bytearray(data or b"\0")
    changed[rng.randrange(min(len(changed), 400))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_end(data: bytes, rng: random.Random) -> bytes:
    """Cut the end off."""
    return data[: _place(data, rng)]


def cut_middle(data: bytes, rng: random.Random) -> bytes:
    """Take a part out."""
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def repeat_part(data: bytes, rng: random.Random) -> bytes:
    """Write a part twice, such as a key of JSON."""
    start, stop = _span(data, rng)
    return data[:stop] + data[start:]


def swap_parts(data: bytes, rng: random.Random) -> bytes:
    """Swap two parts of the same length."""
    (a, b), start = _span(data, rng), _place(data, rng)
    length = min(b - a, len(data) - start)
    changed = bytearray(data)
    changed[a : a + length], changed[start : start + length] = (
        data[start : start + length],
        data[a : a + length],
    )
    return bytes(changed)


def zero_part(data: bytes, rng: random.Random) -> bytes:
    """Write zeros over a part."""
    start, stop = _span(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def insert_noise(data: bytes, rng: random.Random) -> bytes:
    """Insert random bytes."""
    start = _place(data, rng)
    return data[:start] + rng.randbytes(rng.randrange(1, 40)) + data[start:]


def huge_length(data: bytes, rng: random.Random) -> bytes:
    """Write a huge integer over eight bytes, as the length of a header or a shape."""
    start = rng.choice([0, _place(data, rng)])
    value = rng.choice([2**63 - 1, 2**64 - 1, 2**40, 2**31])
    return data[:start] + value.to_bytes(8, rng.choice(["little", "big"])) + data[start + 8 :]


def huge_number(data: bytes, rng: random.Random) -> bytes:
    """Replace a decimal number by a huge, negative, broken or long one."""
    return _replace_number(
        data, rng, rng.choice([b"99999999999999", b"-1", b"1e999", b"NaN", b"0.5", b"9" * 5000, b"null"])
    )


def _replace_number(data: bytes, rng: random.Random, by: bytes) -> bytes:
    found = list(re.finditer(rb"\d+", data[:100_000]))
    if not found:
        return data + by
    match = rng.choice(found)
    return data[: match.start()] + by + data[match.end() :]


def nest(data: bytes, rng: random.Random) -> bytes:
    """Insert deep nesting."""
    start, mark = _place(data, rng), rng.choice([b"[", b'{"a":', b"- ", b"{a: "])
    return data[:start] + mark * rng.choice([50, 5000]) + data[start:]


def foreign_encoding(data: bytes, rng: random.Random) -> bytes:
    """Write text in another encoding, or with other ends of lines."""
    text = data.decode("latin-1")
    kind = rng.choice(["utf-16", "utf-32", "cp037", "bom", "ends"])
    if kind == "bom":
        return b"\xef\xbb\xbf" + data
    if kind == "ends":
        return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\0"]))
    return text.encode(kind, "replace")


def repeat_key(data: bytes, rng: random.Random) -> bytes:
    """Give an object of JSON or YAML a key twice."""
    text = data.lstrip()
    if text.startswith(b"{"):
        found = re.findall(rb'"[^"]{1,30}"(?=\s*:)', data[:100_000])
        if found:
            return data.replace(
                b"{", b"{" + rng.choice(found) + b": " + rng.choice([b"1", b'"x"', b"[]", b"{}"]) + b", ", 1
            )
    lines = data.split(b"\n")
    return data + b"\n" + rng.choice(lines)


def nothing(data: bytes, rng: random.Random) -> bytes:
    """Leave nothing."""
    return b""


def noise(data: bytes, rng: random.Random) -> bytes:
    """Replace everything by random bytes."""
    return rng.randbytes(rng.randrange(1, 4000))


MUTATIONS: dict[str, Mutation] = {
    function.__name__: function
    for function in (
        flip_bit, flip_bit_at_the_start, cut_end, cut_middle, repeat_part, swap_parts, zero_part, insert_noise, huge_length,
        huge_number, nest, foreign_encoding, repeat_key, nothing, noise,
    )
}  # fmt: skip


def _remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def _make_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, rng: random.Random) -> None:
    """Put a link in the place of the file: to nothing, to itself, to its folder, or to a file without end."""
    path.unlink()
    path.symlink_to(rng.choice(["nothing-here", path.name, ".", "/dev/zero", "/dev/null"]))


REPLACEMENTS: dict[str, Callable[[Path, random.Random], None]] = {
    "remove": _remove,
    "make_folder": _make_folder,
    "link": _link,
}


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file, and return how: one to three times in a row, or by something else in its place."""
    if rng.random() < 0.06:
        name = rng.choice(sorted(REPLACEMENTS))
        REPLACEMENTS[name](path, rng)
        return name
    data, names = path.read_bytes(), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        names.append(rng.choice(sorted(MUTATIONS)))
        data = MUTATIONS[names[-1]](data, rng)
    path.unlink()
    path.write_bytes(data)
    return "+".join(names)
