"""Links of the pages to files of the repository outside docs/, which a code host shows and a site does not have.

A picture is copied into the site. Any other file or folder is linked where the repository is (`repo_url`), or in this
checkout while that is not known. What does not exist is a warning, which `mkdocs build --strict` refuses.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
CODE_OR_LINK = re.compile(r"^```.*?^```|`[^`]*`|\]\((\.\./[^)#\s]*)(?:#([^)\s]+))?", re.DOTALL | re.MULTILINE)
PICTURES = (".png", ".svg")
log = get_plugin_logger(__name__)
anchor_of = slugify(case="lower")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    def on_site(link: re.Match[str]) -> str:
        if link[1] is None:  # code
            return link[0]
        name = posixpath.normpath(posixpath.join("docs", page.file.src_uri, "..", link[1]))
        if name.startswith("docs/"):
            return link[0]
        file = ROOT / name
        if name.startswith("..") or not file.exists():
            log.warning(f"{page.file.src_uri} links to {link[1]}: the repository has no {name}.")
            return link[0]
        anchor = f"#{link[2]}" if link[2] else ""
        headings = re.findall(r"^#+ (.+)", file.read_text("utf-8"), re.MULTILINE) if file.suffix == ".md" else []
        if anchor and link[2] not in [anchor_of(heading, "-") for heading in headings]:
            log.warning(f"{page.file.src_uri} links to {link[1]}{anchor}: {name} has no such heading.")
        if file.suffix in PICTURES:
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(file)))
            return f"]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}"
        if config.repo_url:
            return f"]({config.repo_url.rstrip('/')}/{'tree' if file.is_dir() else 'blob'}/HEAD/{name}{anchor}"
        return f"]({file.as_uri()}{anchor}"

    return CODE_OR_LINK.sub(on_site, markdown)
