"""The advice on a file in another encoding names the one that it is in."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from t5peft.data import load_records
from t5peft.data.formats import TextFormat, decoded, read_file

JAPANESE = "本日は晴天なり。東京の天気は良いです\nこの映画はとても面白かった\nサービスが悪い\n"
SIMPLIFIED = "这部电影非常好看，我很喜欢\n服务太差了，再也不会来了\n今天天气不错\n"
TRADITIONAL = "這部電影非常好看，我很喜歡\n服務太差了，再也不會來了\n今天天氣不錯\n"
KOREAN = "이 영화는 정말 재미있었습니다\n서비스가 너무 나빠요 다시는 안 갑니다\n"
RUSSIAN = "этот фильм очень хороший\nплохое обслуживание\n"
FRENCH = "c'était très agréable, ça va\nun café à l'été\n"
GERMAN = "schöne Grüße aus München, größer\nÄpfel\n"
SPANISH = "el niño comió aquí más piña\nasí está\n"
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
TEXTS = [
    *((JAPANESE, name) for name in ("shift_jis", "euc_jp")),
    ("x\n東京\n", "shift_jis"),
    *((SIMPLIFIED, name) for name in ("gbk",)),
    ("x\n你好\n", "gbk"),
    (TRADITIONAL, "big5"),
    (KOREAN, "euc_kr"),
    ("x\n안녕하세요\n", "euc_kr"),
    *((RUSSIAN, name) for name in ("cp1251", "koi8-r", "cp866")),
    *((text, name) for text in (FRENCH, GERMAN, SPANISH) for name in ("latin-1", "mac_roman", "cp850")),
    ("“ok” it’s 5 € – schön\n", "cp1252"),
    *(("zażółć gęślą jaźń proszę się nie śmiać\n", name) for name in ("cp1250", "iso8859-2")),
    ("bu çok güzel bir şey ışık ağaç\n", "cp1254"),
    ("καλημέρα σας τι κάνετε\n", "cp1253"),
    ("הסרט הזה היה טוב מאוד ואני ממליץ עליו\nשירות גרוע\n", "cp1255"),
    ("السلام عليكم كيف الحال\n", "cp1256"),
    *((text, name) for text in (JAPANESE, FRENCH, "plain, text\n") for name in WIDE),
]


@pytest.mark.parametrize(("text", "name"), TEXTS)
@pytest.mark.parametrize("first", ["", "plain words, and more\n" * 9000])
def test_the_encoding_is_named(text: str, name: str, first: str) -> None:
    with pytest.raises(ValueError, match=rf"give encoding='{name}' \(--encoding {name}\)"):
        decoded(f"{first}{text}".encode(name), "a.txt", "utf-8")


@pytest.mark.parametrize("large", [False, True])
def test_the_encoding_that_is_advised_reads_the_file(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("t5peft.data.formats.LARGE_BYTES", 1)
    path = tmp_path / "a.csv"
    path.write_bytes(f"text\n①②\n{JAPANESE}".encode("cp932"))  # digits in circles are of Windows only
    with pytest.raises(ValueError, match="give encoding='cp932'"):
        read_file(path, TextFormat())
    assert load_records(path, encoding="cp932")[0] == {"text": "①②"}


@pytest.mark.parametrize("seed", range(8))
def test_noise_gets_no_encoding(seed: int) -> None:
    noise = bytes(byte for byte in random.Random(seed).randbytes(4000) if byte)
    with pytest.raises(ValueError, match="No encoding that was tried gives text of a language"):
        decoded(noise, "a.txt", "utf-8")
    with pytest.raises(ValueError, match="damaged, or not a text file"):
        decoded(noise + bytes(1) + b"\xd8\xd8", "a.txt", "utf-8")
