"""What [card] of a recipe states, made safe for a card: text cannot end the YAML block or open a comment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.recipe import CardSettings

# the licences that the Hub knows (huggingface.co/docs/hub/repositories-licenses); it refuses a card with another name
_HUB_LICENCES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr
    llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++
    osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""


def licence_entries(licences: Sequence[str]) -> dict[str, Any]:
    """The keys of the YAML block for some licences: one that the Hub does not know is `other`, with its name."""
    if not licences:
        return {}
    if all(name.lower() in _HUB_LICENCES.split() for name in licences):
        return {"license": [name.lower() for name in licences]}
    return {"license": "other", "license_name": one_line(" and ".join(licences))}


def one_line(text: str) -> str:
    """The text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def markdown(text: str) -> str:
    """Markdown of a recipe: its lines end with a line feed, it holds no control characters and opens no comment."""
    lines = ("".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in text.splitlines())
    return "\n".join(lines).strip().replace("<!--", "&lt;!--")


def citation(text: str) -> str:
    """BibTeX in a block of code that its text cannot close; any other text as Markdown."""
    plain = markdown(text)
    if not plain.startswith("@"):
        return plain
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bibtex\n{plain}\n{fence}"


def additions(card: CardSettings) -> str:
    """Description, homepage and citation, for a card whose own text comes after them; "" where none is stated."""
    homepage = f"Homepage: <{one_line(card.homepage)}>" if card.homepage else ""
    return "\n\n".join(filter(None, (markdown(card.description), homepage, citation(card.citation))))
