"""The description of the package is README.md, less the links that would lead nowhere on a package index.

Everything else about the package stands in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)#]+)[^)]*\)")


def description() -> str:
    """The text of README.md: a link to a file of the repository becomes text and file, and a picture its caption."""

    def written_out(link: re.Match[str]) -> str:
        picture, text, file = link.groups()
        if not (ROOT / file).exists():
            return link[0]
        return text if picture or file in text else f"{text} ({file})"

    return LINK.sub(written_out, (ROOT / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    setup(long_description=description(), long_description_content_type="text/markdown")
