"""Drawn product images: a silhouette per kind, filled with a colour and a pattern."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from random import Random
from typing import TYPE_CHECKING

from builder.demo.catalogue import Look
from sqid_lib.errors import missing_extra

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    Pen = ImageDraw.ImageDraw

try:
    from PIL import Image, ImageChops, ImageDraw
except ImportError as error:
    raise missing_extra("pillow", "build", "to draw the demo's images") from error

RGB = {
    "red": (205, 35, 40),
    "orange": (243, 132, 26),
    "yellow": (246, 214, 50),
    "green": (48, 145, 70),
    "blue": (42, 84, 190),
    "purple": (125, 60, 165),
    "pink": (244, 150, 188),
    "brown": (118, 75, 44),
    "black": (32, 32, 36),
    "white": (248, 247, 243),
}
_SIDE = 256  # the canvas all silhouettes are drawn on, before scaling
_LINE = 60  # grey of outlines and details


def draw(look: Look, rng: Random, size: tuple[int, int] = (192, 192)) -> Image.Image:
    """An RGB image of `size` (width, height): the product on a light ground, slightly moved, turned and tinted.

    One in six is black and white, and one in six is so close that it shows colour and pattern but hardly the product:
    images alone do not identify every product either.
    """
    body, lines = _silhouette(look.kind)
    shade = rng.randrange(222, 250)
    ground, grey = (shade, shade + rng.randrange(-4, 5), shade + rng.randrange(-4, 5)), (_LINE, _LINE, _LINE)
    sheet = Image.new("RGB", (_SIDE, _SIDE), ground)
    sheet.paste(grey, (0, 0), lines)
    sheet.paste(_pattern(look, rng), (0, 0), body)
    view = rng.random()
    if view < 1 / 6:
        x, y = _middle(look.kind)
        reach = rng.randrange(30, 46)
        return sheet.resize(size, Image.Resampling.BILINEAR, box=(x - reach, y - reach, x + reach, y + reach))
    if rng.random() < 0.3:
        sheet = sheet.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sheet = sheet.rotate(rng.uniform(-9, 9), resample=Image.Resampling.BILINEAR, fillcolor=ground)
    side = round(min(size) * rng.uniform(0.82, 0.98))
    sheet = sheet.resize((side, side), Image.Resampling.BILINEAR)
    image = Image.new("RGB", size, ground)
    left, top = ((length - side) // 2 + rng.randrange(-4, 5) for length in size)
    image.paste(sheet, (left, top))
    return image.convert("L").convert("RGB") if view > 5 / 6 else image


def backdrop(size: tuple[int, int] = (192, 108)) -> Image.Image:
    """The image in place of the default digital-video image: a plain dark gradient, no product."""
    gradient = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (gradient.point(lambda v: v // 6), gradient.point(lambda v: v // 4), gradient))


@cache
def _silhouette(kind: str) -> tuple[Image.Image, Image.Image]:
    """Two masks: what the pattern fills, and the outline around it with the details on it."""
    body, details = Image.new("L", (_SIDE, _SIDE), 0), Image.new("L", (_SIDE, _SIDE), 0)
    SILHOUETTES[kind](ImageDraw.Draw(body), ImageDraw.Draw(details))
    lines = Image.new("L", (_SIDE, _SIDE), 0)
    for dx, dy in ((-4, 0), (4, 0), (0, -4), (0, 4), (-3, -3), (3, 3), (-3, 3), (3, -3)):
        lines.paste(255, (dx, dy), body)
    lines.paste(255, (0, 0), details)
    return ImageChops.subtract(body, details), lines


@cache
def _middle(kind: str) -> tuple[int, int]:
    """The middle of what the pattern fills, kept away from the border of the canvas."""
    left, top, right, bottom = _silhouette(kind)[0].getbbox() or (0, 0, _SIDE, _SIDE)
    return (left + right) // 2, min(200, max(56, (top + bottom) // 2))


def _pattern(look: Look, rng: Random) -> Image.Image:
    r, g, b = (min(255, max(0, c + rng.randrange(-14, 15))) for c in RGB[look.colour])
    second = (245, 244, 240) if look.colour != "white" else (150, 152, 158)
    image = Image.new("RGB", (_SIDE, _SIDE), (r, g, b))
    pen, step, shift = ImageDraw.Draw(image), rng.randrange(34, 44), rng.randrange(0, 30)
    places = range(shift - step, _SIDE + step, step)
    if look.pattern == "striped":
        for y in places:
            pen.rectangle((0, y, _SIDE, y + step * 0.4), fill=second)
        if rng.random() < 0.3:
            image = image.transpose(Image.Transpose.ROTATE_90)
    elif look.pattern == "dotted":
        for row, y in enumerate(places):
            for x in places:
                cx, radius = x + (step // 2 if row % 2 else 0), step * 0.27
                pen.ellipse((cx - radius, y - radius, cx + radius, y + radius), fill=second)
    elif look.pattern == "checked":
        for row, y in enumerate(places):
            for column, x in enumerate(places):
                if (row + column) % 2:
                    pen.rectangle((x, y, x + step - 1, y + step - 1), fill=second)
    elif look.pattern == "zigzag":
        for y in places:
            points = [
                (x, y + (step * 0.6 if i % 2 else 0)) for i, x in enumerate(range(-step, _SIDE + step, step // 2))
            ]
            pen.line(points, fill=second, width=round(step * 0.3), joint="curve")
    return image


def _mug(body: Pen, line: Pen) -> None:
    body.ellipse((150, 80, 236, 186), fill=255)
    body.ellipse((168, 100, 216, 166), fill=0)
    body.rounded_rectangle((50, 56, 186, 216), 18, fill=255)
    line.line((50, 72, 186, 72), fill=255, width=5)


def _teapot(body: Pen, line: Pen) -> None:
    body.ellipse((176, 84, 250, 176), fill=255)
    body.ellipse((192, 102, 232, 158), fill=0)
    body.polygon([(70, 150), (6, 84), (32, 72), (100, 120)], fill=255)
    body.ellipse((50, 74, 208, 214), fill=255)
    body.ellipse((114, 44, 144, 76), fill=255)
    line.arc((74, 70, 184, 112), 0, 180, fill=255, width=5)


def _bowl(body: Pen, line: Pen) -> None:
    body.pieslice((22, 0, 234, 212), 0, 180, fill=255)
    body.rectangle((92, 204, 164, 224), fill=255)
    line.line((22, 106, 234, 106), fill=255, width=6)


def _plate(body: Pen, line: Pen) -> None:
    body.ellipse((20, 58, 236, 198), fill=255)
    line.ellipse((66, 88, 190, 168), outline=255, width=5)


def _spoon(body: Pen, _line: Pen) -> None:
    body.ellipse((88, 12, 168, 122), fill=255)
    body.rounded_rectangle((114, 100, 142, 246), 12, fill=255)


def _bottle(body: Pen, line: Pen) -> None:
    body.rounded_rectangle((80, 92, 176, 246), 18, fill=255)
    body.polygon([(84, 104), (108, 60), (148, 60), (172, 104)], fill=255)
    body.rectangle((108, 26, 148, 64), fill=255)
    line.rectangle((104, 14, 152, 34), fill=255)


def _vase(body: Pen, _line: Pen) -> None:
    left = [(128 - 26 - 48 * math.sin(t / 20 * math.pi) ** 2, 30 + t * 10.2) for t in range(21)]
    body.polygon(left + [(256 - x, y) for x, y in reversed(left)], fill=255)
    body.ellipse((88, 18, 168, 44), fill=255)


def _candle(body: Pen, line: Pen) -> None:
    body.rectangle((88, 86, 168, 240), fill=255)
    line.line((128, 60, 128, 86), fill=255, width=6)
    line.polygon([(128, 14), (146, 50), (128, 68), (110, 50)], fill=255)


def _lamp(body: Pen, line: Pen) -> None:
    body.polygon([(86, 24), (170, 24), (222, 136), (34, 136)], fill=255)
    line.rectangle((120, 136, 136, 226), fill=255)
    line.ellipse((80, 216, 176, 244), fill=255)


def _clock(body: Pen, line: Pen) -> None:
    body.ellipse((20, 20, 236, 236), fill=255)
    line.ellipse((20, 20, 236, 236), outline=255, width=12)
    line.line((128, 128, 128, 56), fill=255, width=10)
    line.line((128, 128, 182, 152), fill=255, width=10)


def _pillow(body: Pen, _line: Pen) -> None:
    points = [(20, 20), (128, 42), (236, 20), (214, 128), (236, 236), (128, 214), (20, 236), (42, 128)]
    body.polygon(points, fill=255)


def _rug(body: Pen, line: Pen) -> None:
    body.polygon([(62, 74), (250, 74), (194, 186), (6, 186)], fill=255)
    for t in range(12):
        x, y = 62 - t * 5.1, 74 + t * 10.2
        line.line((x, y, x - 18, y), fill=255, width=3)
        line.line((x + 188, y, x + 206, y), fill=255, width=3)


def _chair(body: Pen, line: Pen) -> None:
    body.rounded_rectangle((66, 14, 186, 122), 14, fill=255)
    body.polygon([(66, 132), (186, 132), (214, 172), (42, 172)], fill=255)
    for x in (48, 196):
        line.rectangle((x, 172, x + 12, 246), fill=255)
    line.rectangle((78, 172, 86, 226), fill=255)
    line.rectangle((168, 172, 176, 226), fill=255)


def _hat(body: Pen, line: Pen) -> None:
    body.ellipse((8, 136, 248, 204), fill=255)
    body.pieslice((62, 44, 194, 270), 180, 360, fill=255)
    line.arc((62, 132, 194, 178), 0, 180, fill=255, width=8)


def _sock(body: Pen, line: Pen) -> None:
    body.rectangle((66, 16, 142, 170), fill=255)
    body.rounded_rectangle((66, 142, 220, 222), 38, fill=255)
    line.line((66, 44, 142, 44), fill=255, width=5)


def _boot(body: Pen, line: Pen) -> None:
    body.polygon([(58, 14), (150, 14), (150, 140), (232, 176), (238, 222), (58, 222)], fill=255)
    line.rectangle((52, 222, 240, 240), fill=255)


def _mitten(body: Pen, line: Pen) -> None:
    body.rounded_rectangle((74, 14, 184, 190), 52, fill=255)
    body.polygon([(172, 150), (232, 84), (248, 108), (196, 190)], fill=255)
    body.rectangle((84, 180, 176, 240), fill=255)
    line.line((84, 196, 176, 196), fill=255, width=6)


def _umbrella(body: Pen, line: Pen) -> None:
    body.pieslice((12, 18, 244, 248), 180, 360, fill=255)
    for x in (12, 89, 166):
        body.ellipse((x + 4, 118, x + 74, 150), fill=0)
    line.line((128, 130, 128, 224), fill=255, width=8)
    line.arc((96, 200, 132, 242), 0, 180, fill=255, width=8)


def _backpack(body: Pen, line: Pen) -> None:
    body.rounded_rectangle((50, 42, 206, 240), 46, fill=255)
    line.arc((98, 10, 158, 80), 180, 360, fill=255, width=9)
    line.rounded_rectangle((78, 146, 178, 224), 12, outline=255, width=6)
    line.line((70, 106, 186, 106), fill=255, width=5)


def _kite(body: Pen, line: Pen) -> None:
    body.polygon([(128, 8), (208, 88), (128, 196), (48, 88)], fill=255)
    line.line((128, 8, 128, 196), fill=255, width=4)
    line.line((48, 88, 208, 88), fill=255, width=4)
    line.line([(128, 196), (154, 212), (118, 228), (148, 248)], fill=255, width=5)


def _ball(body: Pen, line: Pen) -> None:
    body.ellipse((24, 24, 232, 232), fill=255)
    line.arc((-100, 24, 108, 232), -58, 58, fill=255, width=6)
    line.arc((148, 24, 356, 232), 122, 238, fill=255, width=6)


def _drum(body: Pen, line: Pen) -> None:
    body.rectangle((34, 92, 222, 198), fill=255)
    body.ellipse((34, 164, 222, 232), fill=255)
    body.ellipse((34, 56, 222, 124), fill=255)
    line.ellipse((34, 56, 222, 124), outline=255, width=7)
    line.line((20, 20, 118, 84), fill=255, width=8)
    line.line((236, 20, 138, 84), fill=255, width=8)


SILHOUETTES: dict[str, Callable[[Pen, Pen], None]] = {
    "mug": _mug,
    "teapot": _teapot,
    "bowl": _bowl,
    "plate": _plate,
    "spoon": _spoon,
    "bottle": _bottle,
    "vase": _vase,
    "candle": _candle,
    "lamp": _lamp,
    "clock": _clock,
    "pillow": _pillow,
    "rug": _rug,
    "chair": _chair,
    "hat": _hat,
    "sock": _sock,
    "boot": _boot,
    "mitten": _mitten,
    "umbrella": _umbrella,
    "backpack": _backpack,
    "kite": _kite,
    "ball": _ball,
    "drum": _drum,
}
