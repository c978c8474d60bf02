"""Heavy atoms and bonds of a kekulised SMILES string, as far as QM9's are written.

A SMILES string lists atoms in order; two neighbours in the string are bonded, ``(`` and ``)`` enclose branches, a digit
behind an atom opens a ring or closes it, and ``=`` or ``#`` before an atom or digit makes the bond double or triple.
"""

from __future__ import annotations

import re

from mtl_core import InvalidInputError

__all__ = ["heavy_bonds"]

_TOKEN = re.compile(r"\[(?:\d*)([A-Z][a-z]?)[^\]]*\]|([BCNOF])|([-=#])|(\d)|%(\d\d)|([()])|([/\\.])")
_ORDER = {"-": 1, "=": 2, "#": 3}


def heavy_bonds(smiles: str) -> tuple[list[str], list[tuple[int, int, int]]]:
    """The elements of the heavy atoms in order, and bonds (first atom, second atom, order 1, 2 or 3).

    Hydrogens written out, as ``[H]``, are left out, as are the marks of chirality; a dot separates without a bond.

    Raises:
        InvalidInputError: it is not of the form that QM9 uses: aromatic atoms in small letters, other elements, a ring
            that is never closed.

    Example:
        >>> heavy_bonds("OC1CC1=O")
        (['O', 'C', 'C', 'C', 'O'], [(0, 1, 1), (1, 2, 1), (2, 3, 1), (3, 1, 1), (3, 4, 2)])
    """
    elements: list[str] = []
    bonds: list[tuple[int, int, int]] = []
    branches: list[int] = []
    rings: dict[str, tuple[int, int]] = {}
    last, order, end = -1, 0, 0
    for match in _TOKEN.finditer(smiles):
        if match.start() != end:
            break
        end = match.end()
        bracket, plain, bond, digit, two_digits, branch, mark = match.groups()
        if bracket or plain:
            element = bracket or plain
            if element == "H":
                order = 0
                continue
            elements.append(element)
            if last >= 0:
                bonds.append((last, len(elements) - 1, order or 1))
            last, order = len(elements) - 1, 0
        elif bond:
            order = _ORDER[bond]
        elif digit or two_digits:
            ring = digit or two_digits
            if ring in rings:
                start, before = rings.pop(ring)
                # The bond's order may stand at the opening digit or at the closing one.
                bonds.append((last, start, order or before or 1))
            else:
                rings[ring] = (last, order)
            order = 0
        elif branch == "(":
            branches.append(last)
        elif branch == ")" and branches:
            last = branches.pop()
        elif mark == ".":
            last = -1
    if end != len(smiles) or rings or branches:
        raise InvalidInputError(
            f"`smiles` must be a kekulised SMILES string of H, B, C, N, O and F, got {smiles!r}, which cannot be read "
            f"from {smiles[end:] or 'an open ring or branch'!r} on."
        )
    return elements, bonds
