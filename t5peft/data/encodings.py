"""The encodings that a text file may have, by what its bytes give: letters that are common in a language that uses them."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from operator import itemgetter

_PACKED = {"gzip": b"\x1f\x8b", "xz": b"\xfd7zXZ", "bzip2": b"BZh", "a ZIP or Excel file": b"PK\x03\x04"}
_MARKS = {32: (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), 16: (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}
_SAMPLE = 1 << 16  # bytes
_LEAST = 0.5  # a lower share of common letters is chance
_NEAR = 0.8  # encodings of so much of the best share are named too
_LONG_RUN = 1.8  # bytes above ASCII that follow each other, on average: one in a Latin script, more in others

_WESTERN = "äöüßéèêëàâçñóíúáãõôîûïìòùæøåœÄÖÜÉ’‘“”–—…€£°"
_CYRILLIC = "оеаинтсрвл"
_KANA = "".join(map(chr, [*range(0x3041, 0x3094), *range(0x30A1, 0x30F7)])) + "ー、。"
_KANJI = (
    "日一国人年大本中長出三時行見月分後前生五間上東四今金九入学高円子外八六下来気小七山話女北午百書先名川千水半男西電校語土木聞食車何"
    "南万毎白天母火右読友左休父雨会同事自社発者地業方新場員立開手力問代明動京目通言理体田主題意不作用度強公持野以思家世多正安院心界教文"
)
_SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都"
    "同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间"
    "由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水"
)
_TRADITIONAL = _SIMPLIFIED.translate(
    str.maketrans(
        "这个们来为国说时会对于着过发后里种经么学现当没动还进样开从实军无与长机关点业将两间问并应战头体见产制话给门儿东声员",
        "這個們來為國說時會對於著過發後裡種經麼學現當沒動還進樣開從實軍無與長機關點業將兩間問並應戰頭體見產製話給門兒東聲員",
    )
)
_HANGUL = (
    "이다는의에가을를은하고지도로서한사기인어리아나자대해시그있일정보과와으수들게부라스전상안여주제만음니장구우거무것면오원습했요미조세저비"
    "동성공신생국말유내없물마연소경치트방용식더단문합생각명진양불화모든위때려않됩입중할네관데적당행간발선"
)


@dataclass(frozen=True)
class _Script:
    """Letters that texts of some languages consist of.

    Args:
        common: Their common letters.
        encodings: Those in which files in these languages are, the likeliest first.
        share: The share of the common letters in a text beyond ASCII, at least.
        is_latin: Whether most of a text is ASCII, so that these letters seldom follow each other.
    """

    common: str
    encodings: tuple[str, ...]
    share: float = 0.8
    is_latin: bool = False


_SCRIPTS = (
    _Script(_WESTERN, ("latin-1", "cp1252", "mac_roman", "cp850"), is_latin=True),
    _Script("ąćęłńśźżčďěňřšťůžőűéáíúýóöüäâăîşţ„”", ("cp1250", "iso8859-2"), is_latin=True),
    _Script("ıİşŞğçöüÖÜÇ’“”", ("cp1254",), is_latin=True),
    _Script(_CYRILLIC, ("cp1251", "koi8-r", "cp866"), share=0.65),
    _Script("αοιετσνηυρπκμλωςάίόέήώύθδγχφ", ("cp1253",)),
    _Script("יוהלאברמתנשפקםדעטצ", ("cp1255",)),
    _Script("اليمنورتبةعدفهسكقحجأش", ("cp1256",)),
    _Script(_KANA + _KANJI, ("shift_jis", "cp932", "euc_jp"), share=0.5),
    _Script(_SIMPLIFIED + "，。、", ("gbk", "gb18030"), share=0.4),
    _Script(_TRADITIONAL + "，。、", ("big5", "cp950"), share=0.4),
    _Script(_HANGUL, ("euc_kr", "cp949"), share=0.4),
)


def advice_on_encoding(data: bytes, place: int, line: int) -> str:
    """Return what to do about a file that is not in the encoding that was given.

    Args:
        data: The bytes of the file.
        place: The first byte that cannot be read.
        line: Its line, for the sentence.

    Returns:
        A sentence that names the encodings that fit.
    """
    for packed, start in _PACKED.items():
        if data.startswith(start):
            return f"Its first bytes are those of {packed}: unpack it, or give the file the extension that it has."
    for size, marks in _MARKS.items():  # the longer one first, as it begins with the shorter one
        if data.startswith(marks):
            return f"Its first bytes are those of UTF-{size}: give encoding='utf-{size}' (--encoding utf-{size})."
    if b"\0" in data[:_SAMPLE]:
        return advice_on_zeros(data)
    replaced = data.decode("utf-8", "replace")
    if sum(character > "\x7f" for character in replaced) > 2 * replaced.count("\ufffd"):
        return f"Most of it is UTF-8, so line {line} is damaged or comes from another file: fix that line."
    found = _encodings_of(data, max(0, data.rfind(b"\n", 0, place) + 1))
    if not found:
        return (
            "No encoding that was tried gives text of a language: ask the author of the file, and give encoding=... "
            "(--encoding), such as cp1252, mac_roman, cp437, cp1251, shift_jis, gb18030, big5 or euc_kr."
        )
    first, *others = found
    more = f" If letters are wrong then, try {others[0]}." if others else ""
    return f"It seems to be {first}: give encoding='{first}' (--encoding {first}), or save it as UTF-8.{more}"


def encoding_of_shifts(text: str) -> str | None:
    """Return the encoding whose escape sequences a text has, which is ASCII to any other; ``None`` for other text."""
    found = re.search(r"\x1b\$(?:[@B]|\)C)", text)
    return None if found is None else "iso2022_kr" if found[0].endswith("C") else "iso2022_jp"


def advice_on_zeros(data: bytes) -> str:
    """Return what to do about a file with zero bytes, which no text has but that of UTF-16 and UTF-32.

    Args:
        data: The bytes of the file.

    Returns:
        A sentence that names the encoding.
    """
    start = data[:_SAMPLE]
    highest = [max(start[place::4], default=0) for place in range(4)]  # no character is beyond 0x10ffff
    if highest[3] == 0 and highest[2] <= 0x10:
        name = "utf-32-le"
    elif highest[0] == 0 and highest[1] <= 0x10:
        name = "utf-32-be"
    else:
        name = "utf-16-le" if start[1::2].count(0) >= start[::2].count(0) else "utf-16-be"
    if not _is_in(data, name):
        return "It holds zero bytes, as no text does: it is damaged, or not a text file."
    return f"It seems to be {name[:6].upper()}: give encoding='{name}' (--encoding {name})."


def _encodings_of(data: bytes, start: int) -> list[str]:
    """Return the encodings, at most two, that give text of a language, the likeliest first."""
    sample = data[start : start + _SAMPLE]
    high = re.findall(rb"[\x80-\xff]+", sample)
    is_latin = sum(map(len, high)) < _LONG_RUN * len(high)
    shares: dict[str, tuple[float, str]] = {}  # by what the sample is in an encoding
    for script in _SCRIPTS:
        for name in script.encodings if script.is_latin == is_latin else ():
            text = _text_of(sample, name)
            shares[text] = max(shares.get(text, (0.0, name)), (_share(text, script), name), key=itemgetter(0))
    best = max((share for share, _ in shares.values()), default=0)
    likely = [(share, name) for share, name in shares.values() if share >= max(_LEAST, _NEAR * best)]
    names = [name for _, name in sorted(likely, key=itemgetter(0), reverse=True)]
    return [name for name in names if _is_in(data, name)][:2]


def _text_of(sample: bytes, name: str) -> str:
    """Return the text of bytes whose last character may be cut; empty if they are not in this encoding."""
    if name == "latin-1" and re.search(rb"[\x80-\x9f]", sample):  # control characters
        return ""
    try:
        return codecs.getincrementaldecoder(name)().decode(sample)
    except UnicodeDecodeError:
        return ""


def _share(text: str, script: _Script) -> float:
    """Return the share of common letters among those beyond ASCII, 1 for as many as expected."""
    beyond = [letter for letter in text if letter > "\x7f"]
    return min(1, sum(letter in script.common for letter in beyond) / (len(beyond) or 1) / script.share)


def _is_in(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except UnicodeDecodeError:
        return False
    return True
