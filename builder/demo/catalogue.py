"""The made-up shop's vocabulary: kinds, looks and brands, and how titles and queries are composed from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product as cross
from random import Random

# kind → its names; the first is the most common
KINDS = {
    "mug": ("mug", "coffee mug", "tea mug"),
    "teapot": ("teapot", "tea pot"),
    "bowl": ("bowl", "serving bowl"),
    "plate": ("plate", "dinner plate"),
    "spoon": ("spoon", "tablespoon"),
    "bottle": ("bottle", "water bottle"),
    "vase": ("vase", "flower vase"),
    "candle": ("candle", "pillar candle"),
    "lamp": ("lamp", "table lamp"),
    "clock": ("clock", "wall clock"),
    "pillow": ("pillow", "throw pillow", "cushion"),
    "rug": ("rug", "area rug"),
    "chair": ("chair", "dining chair"),
    "hat": ("hat", "sun hat"),
    "sock": ("socks", "crew socks"),
    "boot": ("boots", "rain boots"),
    "mitten": ("mittens", "winter mittens"),
    "umbrella": ("umbrella", "rain umbrella"),
    "backpack": ("backpack", "school bag"),
    "kite": ("kite", "beach kite"),
    "ball": ("ball", "play ball"),
    "drum": ("drum", "toy drum"),
}
# kinds that are bought together: complements of each other
GROUPS = (
    {"mug", "teapot", "spoon"},
    {"bowl", "plate", "spoon"},
    {"bottle", "backpack"},
    {"vase", "candle", "lamp"},
    {"clock", "lamp", "chair"},
    {"pillow", "rug", "chair"},
    {"hat", "mitten", "sock"},
    {"boot", "umbrella", "sock"},
    {"kite", "ball", "drum"},
)
COMPLEMENTS = {kind: set().union(*(group for group in GROUPS if kind in group)) - {kind} for kind in KINDS}
COLOURS = {
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "lemon"),
    "green": ("green", "forest green"),
    "blue": ("blue", "navy"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown", "chocolate"),
    "black": ("black", "jet black"),
    "white": ("white", "ivory"),
}
PATTERNS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripes"),
    "dotted": ("dotted", "polka dot"),
    "checked": ("checked", "plaid"),
    "zigzag": ("zigzag", "chevron"),
}
MATERIALS = {
    "tableware": ("ceramic", "bamboo", "steel", "enamel"),
    "home": ("wood", "glass", "metal", "recycled"),
    "soft": ("cotton", "wool", "nylon", "organic"),
}
_TABLEWARE = {"mug", "teapot", "bowl", "plate", "spoon", "bottle"}
_SOFT = {"pillow", "rug", "hat", "sock", "boot", "mitten", "umbrella", "backpack", "kite"}
BRANDS = ("Tallowick", "Norbrim", "Ferrowby", "Quillmont", "Brambleset", "Osterwell", "Havenlock", "Pindrift")
_EXTRAS = ("Gift Idea", "Set of 2", "Pack of 4", "for Home and Office", "Large", "Small", "Best Seller", "New Design")
_COLLECTIONS = ("Morning Collection", "Cottage Series", "Everyday Line", "Seaside Edition")


@dataclass(frozen=True)
class Look:
    """What an image shows of a product."""

    kind: str
    colour: str
    pattern: str


@dataclass(frozen=True)
class Goods:
    """Attributes of a product: its look, and those that no image shows."""

    look: Look
    brand: str
    material: str


@dataclass(frozen=True)
class Wish:
    """What a query asks for; None means any."""

    look: Look
    brand: str | None = None
    material: str | None = None


def looks() -> Iterator[Look]:
    """All looks, in a fixed order."""
    return (Look(*parts) for parts in cross(KINDS, COLOURS, PATTERNS))


def held_out(look: Look) -> bool:
    """Whether this look is left out of the tiny CLIP's training; the shop's test queries ask for such looks only.

    One look in six, by a hash: it does not depend on the seed of the shop or of the training.
    """
    return hashlib.sha256(f"{look.kind} {look.colour} {look.pattern}".encode()).digest()[0] % 6 == 0


def materials(kind: str) -> tuple[str, ...]:
    """Materials that products of this kind may have."""
    return MATERIALS["tableware" if kind in _TABLEWARE else "soft" if kind in _SOFT else "home"]


def goods(look: Look, rng: Random) -> Goods:
    """A product of this look with a random brand and material."""
    return Goods(look, rng.choice(BRANDS), rng.choice(materials(look.kind)))


def grade(wish: Wish, item: Goods) -> str:
    """The ESCI label of a product for a query, from attributes alone.

    E: everything asked for; S: the same kind, but another attribute differs; C: a complementary kind; I: all others.
    """
    if item.look.kind == wish.look.kind:
        exact = item.look == wish.look and wish.brand in (None, item.brand) and wish.material in (None, item.material)
        return "E" if exact else "S"
    return "C" if item.look.kind in COMPLEMENTS[wish.look.kind] else "I"


def query_text(wish: Wish, rng: Random) -> str:
    """The text of a search: everything that is asked for, in one of several orders."""
    kind, colour, pattern = _words(wish.look, rng, plain_word=1.0)
    described = [word for word in (wish.material, colour, pattern) if word]
    rng.shuffle(described)
    head, tail = (described, []) if rng.random() < 0.7 else (described[:-1], described[-1:])
    brand = [wish.brand.lower()] if wish.brand else []
    return " ".join([*brand, *head, kind, *tail])


def title(item: Goods, rng: Random) -> str:
    """The title of a listing: some leave out or misspell the colour or the pattern, a few leave out the kind too."""
    kind, colour, pattern = (word.title() for word in _words(item.look, rng, plain_word=0.3))
    if rng.random() < 0.06:  # only the image shows the kind
        return f"{item.brand} {rng.choice(_COLLECTIONS)} No. {rng.randrange(2, 99)}, {item.material.title()}"
    colour = _misspelt(colour, rng) if rng.random() < 0.1 else colour
    pattern = _misspelt(pattern, rng) if rng.random() < 0.1 else pattern
    shown_colour, shown_pattern = rng.random() < 0.45, rng.random() < 0.45
    front = [pattern] if shown_pattern and pattern else []
    material = [item.material.title()] if rng.random() < 0.75 else []
    colour_first = rng.random() < 0.5
    if shown_colour and colour_first:
        front.insert(rng.randrange(len(front) + 1), colour)
    brand = [item.brand] if rng.random() < 0.85 else []
    name = " ".join([*brand, *front, *material, kind])
    extras = rng.sample(_EXTRAS, rng.randrange(3))
    if shown_colour and not colour_first:
        extras.append(colour)
    return ", ".join([name, *extras])


def _words(look: Look, rng: Random, plain_word: float) -> tuple[str, str, str]:
    """Words for kind, colour and pattern; the pattern "plain" is named with probability `plain_word`, else ""."""

    def word(known: tuple[str, ...]) -> str:
        return known[0] if rng.random() < 0.6 else rng.choice(known)

    pattern = word(PATTERNS[look.pattern])
    if look.pattern == "plain" and rng.random() >= plain_word:
        pattern = ""
    return word(KINDS[look.kind]), word(COLOURS[look.colour]), pattern


def _misspelt(word: str, rng: Random) -> str:
    """The word with one letter left out, doubled or swapped with the next."""
    if len(word) < 4:
        return word
    at = rng.randrange(1, len(word) - 1)
    change = rng.randrange(3)
    middle = ("", word[at] * 2, word[at + 1] + word[at])[change]
    return word[:at] + middle + word[at + (2 if change == 2 else 1) :]
