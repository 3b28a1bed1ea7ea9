"""The options of ``t5peft serve``, and what it refuses before it loads anything."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from t5peft.cli import main
from t5peft.cli.serve import is_loopback, read_keys, read_pins
from t5peft.serving.launch import public_name


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n\n  two  \n")
    monkeypatch.setenv("T5PEFT_API_KEY", "three")
    assert read_keys(str(path)) == ("one", "two")
    assert read_keys(None) == ("three",)
    monkeypatch.delenv("T5PEFT_API_KEY")
    assert read_keys(None) == ()
    for content, words in (
        ("\n \n", "Got no key"),
        ("a b\n", "with spaces or non-ASCII characters"),
        ("é\n", "non-ASCII characters"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            read_keys(str(path))


def test_pins_are_hashes_and_names(tmp_path: Path) -> None:
    path = tmp_path / "pins"
    path.write_text(f"# ours\n{'a' * 64}  lora\n\n{'B' * 64} an adapter\n")
    assert read_pins(path) == {"lora": "a" * 64, "an adapter": "b" * 64}
    for line in ("lora", f"{'a' * 63}  lora", f"{'a' * 64}", f"{'a' * 64}  x\n{'b' * 64}  x", f"lora {'a' * 64}"):
        path.write_text(line)
        with pytest.raises(ValueError, match="expected a SHA-256 of 64 hexadecimal digits and the name"):
            read_pins(path)


def test_hosts_of_the_loopback_are_known() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""))


def test_a_folder_is_known_by_its_last_part(tmp_path: Path) -> None:
    assert public_name("google/flan-t5-base") == "google/flan-t5-base"
    assert public_name(str(tmp_path)) == tmp_path.name


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", "--backbone", "mini", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("t5peft serve: Got ")
    assert "expected" in printed
    return printed


def test_an_address_that_others_reach_needs_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("T5PEFT_API_KEY", raising=False)
    assert "without an API key" in refused(capsys, "--adapters", str(tmp_path), "--host", "0.0.0.0")


def test_what_is_wrong_is_told_before_the_backbone_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}, on which the server cannot listen" in refused(
            capsys, "--adapters", str(tmp_path), "--port", port
        )
    assert "Got --port 70000" in refused(capsys, "--adapters", str(tmp_path), "--port", "70000")
    nowhere = str(tmp_path / "nowhere")
    assert "Got no folder" in refused(capsys, "--adapters", nowhere, "--port", "0")
    assert "Got no file of" in refused(capsys, "--adapters", str(tmp_path), "--pins", nowhere)
    assert "Got no file of" in refused(capsys, "--adapters", str(tmp_path), "--api-key-file", nowhere)
    assert "max_rows=0" in refused(capsys, "--adapters", str(tmp_path), "--port", "0", "--max-rows", "0")


def test_without_the_extra_the_command_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert 'pip install "t5peft[serving]"' in refused(capsys, "--adapters", str(tmp_path))
