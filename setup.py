"""The description of the package is README.md, less the links that would lead nowhere on a package index.

Everything else about the package stands in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)#]+)[^)]*\)")


def description() -> str:
    """The text of README.md: a link to a file of the repository becomes its own text, and a picture its caption."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return LINK.sub(lambda link: link[2] if (ROOT / link[3]).exists() else link[0], readme)


if __name__ == "__main__":
    setup(long_description=description(), long_description_content_type="text/markdown")
