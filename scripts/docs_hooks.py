"""Pages of the documentation that stand elsewhere in the repository, and their links.

mkdocs calls the functions by their names. RESULTS.md, SPEED.md, CONTRIBUTING.md, CHANGELOG.md and the table of examples are read where
they are. A link to a file that is not a page becomes its path in code.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "benchmarks/results.md": "benchmarks/RESULTS.md",
    "benchmarks/speed.md": "benchmarks/SPEED.md",
    "contributing/index.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
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
