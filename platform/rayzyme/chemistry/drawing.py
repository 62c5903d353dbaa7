"""Reactions as pictures: SVG that can stand inside an HTML page, made without a network.

RDKit draws the molecules, all at one scale; the equation is set here, because a cofactor beside water needs several
rows and counted molecules ("2 H2O") to be read, which RDKit's own layout of reactions does not offer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from rdkit import Chem

from rayzyme.chemistry.reactions import abbreviated, parse_reaction, read_molecule
from rayzyme.errors import InvalidReaction

_PIXELS_PER_BOND_UNIT = 22
_GAP = 12
_ROW_GAP = 18
_MARGIN = 8
_PLUS_WIDTH = 14
_ARROW_WIDTH = 56
_DIGIT_WIDTH = 10
_BODY = re.compile(r"<!-- END OF HEADER -->\s*(.*)</svg>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Something in a row: SVG with its own origin and size in pixels. A row may begin only where it says so."""

    svg: str
    width: float
    height: float
    may_begin_row: bool = False


def draw_reaction(text: str, width: int = 700, height: int | None = 180, max_height: int | None = None) -> str:
    """Draw a reaction on a transparent background; atom maps and agents are left out, equal molecules counted.

    Args:
        text: Reaction SMILES.
        width: Width in pixels; the picture scales without loss, and molecules are never larger than usual.
        height: Height in pixels; None makes it as high as the drawing is at this width.
        max_height: Height in pixels that it then has at most.

    Returns:
        An `<svg>` element without XML prolog, with a title for screen readers.

    Raises:
        InvalidReaction: It cannot be read or drawn, or the size is not positive.
    """
    limit = max_height if height is None else height
    if width <= 0 or (limit is not None and limit <= 0):
        raise InvalidReaction(f"a drawing of {width} x {limit} pixels is impossible; give positive sizes")
    reaction = parse_reaction(text)
    try:
        pieces = [*_side(reaction.reactants), _arrow(), *_side(reaction.products)]
    except (RuntimeError, ValueError) as fault:
        raise InvalidReaction(f"reaction ({abbreviated(text)}): RDKit cannot draw it: {fault}") from fault
    layouts = [_rows(pieces, width * factor) for factor in (1.0, 1.3, 1.7, 2.5, 4.0)]
    rows = min(layouts, key=lambda rows: _shrinking(rows, width, limit))
    return _picture(rows, width, height, _shrinking(rows, width, limit), title=f"Reaction {reaction.equation}")


def _side(side: str) -> list[_Piece]:
    """A side's molecules with plus signs between them."""
    counts: Counter[str] = Counter()
    for fragment in Chem.GetMolFrags(_without_numbers(side), asMols=True):
        counts[Chem.MolToSmiles(fragment)] += 1
    pieces: list[_Piece] = []
    for smiles, count in counts.items():
        if pieces:
            pieces.append(_plus())
        if count > 1:
            pieces.append(_count(count))
        pieces.append(_molecule(smiles))
    return pieces


def _without_numbers(side: str) -> Chem.Mol:
    molecule = read_molecule(side)
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    return molecule


def _molecule(smiles: str) -> _Piece:
    from rdkit.Chem.Draw import rdMolDraw2D

    canvas = rdMolDraw2D.MolDraw2DSVG(-1, -1)
    options: Any = canvas.drawOptions()
    options.clearBackground = False
    options.scalingFactor = _PIXELS_PER_BOND_UNIT
    options.bondLineWidth = 1.5
    canvas.DrawMolecule(read_molecule(smiles))
    canvas.FinishDrawing()
    body = _BODY.search(canvas.GetDrawingText())
    if body is None:
        raise ValueError("the drawing has an unexpected form")
    return _Piece(body.group(1), canvas.Width(), canvas.Height())


def _plus() -> _Piece:
    line = "M 7,1 V 13 M 1,7 H 13"
    return _Piece(_stroke(line), _PLUS_WIDTH, 14, may_begin_row=True)


def _arrow() -> _Piece:
    tip = _ARROW_WIDTH - 1
    return _Piece(
        _stroke(f"M 1,7 H {tip} M {tip - 7},2 L {tip},7 L {tip - 7},12"), _ARROW_WIDTH, 14, may_begin_row=True
    )


def _stroke(path: str) -> str:
    return (
        f"<path d='{path}' style='fill:none;stroke:#000000;stroke-width:1.6px;stroke-linecap:round;"
        "stroke-linejoin:round'/>"
    )


def _count(count: int) -> _Piece:
    return _Piece(
        f"<text x='0' y='14' font-family='sans-serif' font-size='16'>{count}</text>",
        _DIGIT_WIDTH * len(str(count)) - _GAP / 2,
        18,
    )


def _rows(pieces: Iterable[_Piece], width: float) -> list[list[_Piece]]:
    """Pieces in rows of at most this width where that is possible; a row begins with an operator."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if piece.may_begin_row or not groups:
            groups.append([piece])
        else:
            groups[-1].append(piece)
    rows = [groups[0]]
    for group in groups[1:]:
        if _width([*rows[-1], *group]) <= width:
            rows[-1] = [*rows[-1], *group]
        else:
            rows.append(group)
    return rows


def _width(row: list[_Piece]) -> float:
    return sum(piece.width for piece in row) + _GAP * (len(row) - 1)


def _size(rows: list[list[_Piece]]) -> tuple[float, float]:
    heights = [max(piece.height for piece in row) for row in rows]
    return max(map(_width, rows)) + 2 * _MARGIN, sum(heights) + _ROW_GAP * (len(rows) - 1) + 2 * _MARGIN


def _shrinking(rows: list[list[_Piece]], width: int, height: int | None) -> float:
    """By how much the rows must shrink to fit; 1 where they fit as they are."""
    natural_width, natural_height = _size(rows)
    return max(1.0, natural_width / width, natural_height / height if height else 0.0)


def _picture(rows: list[list[_Piece]], width: int, height: int | None, shrinking: float, title: str) -> str:
    _, natural_height = _size(rows)
    shown_height = round(natural_height / shrinking) if height is None else height
    view_width, view_height = width * shrinking, shown_height * shrinking
    top = (view_height - natural_height) / 2 + _MARGIN
    placed = []
    for row in rows:
        left = (view_width - _width(row)) / 2
        row_height = max(piece.height for piece in row)
        for piece in row:
            y = top + (row_height - piece.height) / 2
            placed.append(f'<g transform="translate({left:.1f},{y:.1f})">{piece.svg}</g>')
            left += piece.width + _GAP
        top += row_height + _ROW_GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{shown_height}" '
        f'viewBox="0 0 {view_width:.1f} {view_height:.1f}" role="img">'
        f"<title>{escape(title)}</title>{''.join(placed)}</svg>"
    )
