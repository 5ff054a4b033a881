"""Tables of a report in LaTeX (package booktabs)."""

from __future__ import annotations

import re

from replora.reports.render.document import Table

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "→": r"$\to$",
}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}
SIGNED = re.compile(r"(?<![\w.])-(?=\d)")


def latex(table: Table) -> str:
    """A table environment with its caption; the label is `tab:` and the name of the table."""
    layout = "".join("r" if number else "l" for number in table.numeric)
    rows = "\n".join(" & ".join(map(_escaped, row)) + r" \\" for row in table.rows)
    head = " & ".join(map(_escaped, table.columns))
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_escaped(table.caption)}.}}\n\\label{{tab:{table.name}}}\n"
        f"\\begin{{tabular}}{{{layout}}}\n\\toprule\n{head} \\\\\n\\midrule\n{rows}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def _escaped(text: str) -> str:
    return SIGNED.sub("$-$", "".join(SPECIAL.get(character, character) for character in text))
