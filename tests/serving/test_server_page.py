"""The page to try an adapter, in a browser: records, streams, labels, candidates, errors, at desk and telephone width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import HTMLResponse
from served_folder import app_of, listening, serving, write_folder

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")

HARNESS = """<!doctype html><body style="margin:0"><iframe id="page" src="/" style="border:0;width:WIDTHpx;height:1400px"></iframe>
<pre id="result"></pre><script>
const frame = document.getElementById("page"), errors = [];
// Timers run ahead of the server in virtual time; requests do not.
const until = async (test) => { for (let i = 0; i < 2000 && !test(); i++) await fetch("/health"); };
frame.addEventListener("load", async () => {
  const page = frame.contentDocument, view = frame.contentWindow, at = (id) => page.getElementById(id);
  view.addEventListener("error", (event) => errors.push(event.message));
  view.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
  await until(() => at("model").options.length > 1);
  const choose = (name) => { at("model").value = name; at("model").dispatchEvent(new view.Event("change")); };
  const fill = (...texts) => [...at("fields").querySelectorAll("textarea")].forEach((field, i) => { field.value = texts[i]; });
  const told = () => at("figures").textContent || at("answer").className;
  const ask = async () => { at("form").requestSubmit(); await until(() => !at("ask").disabled && told()); };
  const seen = () => ({ answer: at("answer").textContent, bad: at("answer").className, figures: at("figures").textContent,
    labels: [...at("fields").querySelectorAll("label")].map((one) => one.textContent),
    bars: [...page.querySelectorAll(".bar")].map((bar) => [...bar.querySelectorAll("span")].map((span) => span.textContent)),
    curl: at("curl").textContent });
  const found = { state: at("state").textContent, options: [...at("model").options].map((one) => one.textContent) };
  choose("beams"); fill("a film", "2"); await ask(); found.beams = seen();
  choose("base"); fill("a source"); at("max_tokens").value = 9; await ask(); found.base = seen();
  fill("x".repeat(3000)); await ask(); found.long = seen();
  choose("lora"); fill("it's a film"); at("candidates").value = "yes\\nno\\n"; await ask(); found.ranked = seen();
  at("candidates").value = ""; choose("head"); fill("a film"); await ask(); found.head = seen();
  choose("labels"); fill("a film"); await ask(); found.labels = seen();
  document.getElementById("result").textContent = JSON.stringify({ ...found, errors,
    overflow: page.documentElement.scrollWidth - view.innerWidth });
});
</script></body>"""

API = """<!doctype html><body><iframe id="page" src="/docs" style="width:390px;height:1400px"></iframe>
<pre id="result"></pre><script>
document.getElementById("page").addEventListener("load", async (event) => {
  const page = event.target.contentDocument;
  for (let i = 0; i < 400 && !page.querySelector(".route"); i++) await fetch("/health");
  page.querySelectorAll("details").forEach((one) => { one.open = true; });
  const routes = [...page.querySelectorAll("summary code")].map((one) => one.textContent);
  document.getElementById("result").textContent = JSON.stringify({ routes,
    text: page.body.innerText, overflow: page.documentElement.scrollWidth - page.defaultView.innerWidth });
});
</script></body>"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(write_folder(tmp_path_factory.mktemp("served"))) as client:
        for path, page in (
            ("/w1280", HARNESS.replace("WIDTH", "1280")),
            ("/w390", HARNESS.replace("WIDTH", "390")),
            ("/api", API),
        ):
            app_of(client).add_api_route(path, lambda page=page: HTMLResponse(page), include_in_schema=False)
        with listening(client) as address:
            yield address


def in_browser(url: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=60000",
            f"--user-data-dir={folder / 'browser'}", "--window-size=1400,1500", "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    match = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stdout[-2000:]
    assert match[1], console
    return json.loads(unescape(match[1])) | {"console": console}


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_an_adapter_is_tried_in_the_browser(url: str, tmp_path: Path, width: int) -> None:
    found = in_browser(f"{url}/w{width}", tmp_path)
    assert found["errors"] == []
    # the browser itself writes a line for the request that is refused on purpose
    assert [line for line in found["console"] if "status of 400" not in line] == []
    assert found["overflow"] <= 0
    assert "5 adapters" in found["state"]
    assert found["options"] == ["base (no adapter)", "beams", "head", "labels", "lora", "plain"]
    assert found["beams"]["labels"] == ["count", "text"]
    assert found["base"]["answer"] == "$" * 9
    assert "9 tokens in, 9 out" in found["base"]["figures"]
    assert found["long"]["bad"] == "bad"
    assert found["long"]["answer"].startswith("Got a source of 3001 tokens")
    assert {name for name, _ in found["ranked"]["bars"]} == {"yes", "no"}
    assert "it'\\''s a film" in found["ranked"]["curl"]
    for name, labels in (("head", {"r", "g", "b"}), ("labels", {"0", "1"})):
        bars = found[name]["bars"]
        assert {label for label, _ in bars} == labels
        assert found[name]["answer"] == bars[0][0]
        assert sum(float(share.removesuffix(" %")) for _, share in bars) == pytest.approx(100, abs=0.3)


def test_the_page_of_the_api_shows_every_route(url: str, tmp_path: Path) -> None:
    found = in_browser(f"{url}/api", tmp_path)
    assert found["console"] == []
    assert {"/v1/completions", "/v1/rank", "/v1/adapters/load", "/metrics"} <= set(found["routes"])
    assert "num_beams" in found["text"]
    assert found["overflow"] <= 0
