"""Pages of the documentation that stand elsewhere in the repository, and their links.

mkdocs calls the functions by their names. RESULTS.md, SPEED.md, CONTRIBUTING.md, CHANGELOG.md and the table of examples are read
where they are. A link to a file that is not a page becomes its path in code.
"""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "benchmarks/results.md": "benchmarks/RESULTS.md",
    "benchmarks/speed.md": "benchmarks/SPEED.md",
    "contributing/index.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "licenses.md": "LICENSES.md",
    "examples.md": "examples/README.md",
}
"""The file of the repository that each generated page is read from."""

_LINK = re.compile(r"(?<!!)\[(`?[^\]\[]+`?)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"```.*?```", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages.

    Args:
        files: The files of the site.
        config: The configuration.
    """
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site.

    Args:
        markdown: The text of a page.
        page: The page.
        config: The configuration.
        files: The files of the site.
    """
    name = page.file.src_uri
    origin = PurePosixPath(PAGES.get(name, f"docs/{name}"))

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(origin.parent / target).replace(os.sep, "/")
        page_name = next((one for one, source in PAGES.items() if source == path), None)
        if page_name is None and path.startswith("docs/") and files.get_file_from_path(path[5:]) is not None:
            page_name = path[5:]
        if page_name is not None:
            return f"[{text}]({os.path.relpath(page_name, PurePosixPath(name).parent).replace(os.sep, '/')}{anchor})"
        if (ROOT / path).exists():
            return text if "`" in text else f"{text} (`{path}`)"
        return match[0]  # which mkdocs reports

    parts, end = [], 0
    for block in _CODE.finditer(markdown):
        parts += [_LINK.sub(link, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, _LINK.sub(link, markdown[end:])])


def on_post_build(config: MkDocsConfig) -> None:
    """Check the built site: every link leads somewhere, and no page needs the network.

    Args:
        config: The configuration.

    Raises:
        PluginError: A page has a dead link, or loads a script, a style or a picture from elsewhere.
    """
    if problems := site_problems(Path(config.site_dir)):
        raise PluginError("The built site has these problems:\n" + "\n".join(problems))


def site_problems(folder: Path) -> list[str]:
    """Return the dead links of a built site, and what its pages load from the network.

    Args:
        folder: The site.
    """
    pages = {path: _Links(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    problems = []
    for path, links in pages.items():
        name = path.relative_to(folder)
        if name.name == "404.html":  # its links are absolute
            continue
        problems += [f"{name} loads {url} from the network" for url in links.loaded if re.match(r"(https?:)?//", url)]
        for url in {*links.links, *links.loaded}:
            target, _, anchor = url.partition("#")
            target = target.partition("?")[0]
            if re.match(r"[a-z]+:|//", url):
                continue
            file = Path(os.path.normpath(path.parent / unquote(target))) if target else path
            if not file.is_file():
                problems.append(f"{name} links to {url}, which does not exist")
            elif anchor and file in pages and unquote(anchor) not in pages[file].ids:
                problems.append(f"{name} links to {url}, whose anchor does not exist")
    return problems


class _Links(HTMLParser):
    """The links of a page, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = {"__skip"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe") and given.get("src"):
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])
