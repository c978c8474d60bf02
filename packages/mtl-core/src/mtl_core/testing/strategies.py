"""Hypothesis strategies that draw the structure of task gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from mtl_core import checks
from mtl_core.collecting.gramian import gramian_of

__all__ = ["STRUCTURES", "Structure", "gramians", "jacobian_of", "jacobians", "losses", "rotations"]

Structure = Literal[
    "generic", "balanced", "duplicated", "opposite", "near_parallel", "zero_row", "rank_deficient", "one"
]
"""What is special about a drawn Jacobian."""

STRUCTURES: tuple[Structure, ...] = get_args(Structure)


def jacobian_of(
    structure: Structure,
    *,
    n_tasks: int,
    n_parameters: int,
    spread: float = 0.0,
    scale: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""A Jacobian of a given structure, the same for the same arguments.

    Args:
        structure: ``generic`` rows; ``balanced`` rows of equal norm; the last row a copy of the first (``duplicated``),
            its negative multiple (``opposite``), at an angle of 1e-6 to it (``near_parallel``) or zero (``zero_row``);
            rows in a space of half the dimension (``rank_deficient``); all rows equal (``one``).
        n_tasks: ``m``.
        n_parameters: ``d``.
        spread: decades between the smallest and the largest row norm.
        scale: decades by which everything is scaled.
        seed: of the random directions.
        dtype: of the result, which is rounded from float64.

    Returns:
        ``[m, d]``.
    """
    generator = torch.Generator().manual_seed(seed)
    size: float = 10.0**scale
    rows: Tensor = torch.randn(n_tasks, n_parameters, generator=generator, dtype=torch.float64)
    if structure == "rank_deficient":
        rank = max(1, min(n_tasks, n_parameters) // 2)
        basis = torch.randn(rank, n_parameters, generator=generator, dtype=torch.float64)
        rows = torch.randn(n_tasks, rank, generator=generator, dtype=torch.float64) @ basis
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
    if structure == "one":
        return (rows[:1].expand(n_tasks, -1) * size).to(dtype).contiguous()
    if structure != "balanced" and n_tasks > 1:
        exponents = torch.linspace(-spread / 2, spread / 2, n_tasks, dtype=torch.float64)
        rows = rows * torch.pow(10.0, exponents[torch.randperm(n_tasks, generator=generator)]).unsqueeze(1)
    if n_tasks > 1:
        if structure == "duplicated":
            rows[-1] = rows[0]
        elif structure == "opposite":
            rows[-1] = -rows[0] * float(torch.rand((), generator=generator) + 0.5)
        elif structure == "near_parallel":
            aside = torch.randn(n_parameters, generator=generator, dtype=torch.float64)
            rows[-1] = rows[0] + 1e-6 * rows[0].norm() * aside / aside.norm()
        elif structure == "zero_row":
            rows[-1] = 0.0
    return (rows * size).to(dtype)


@st.composite
def jacobians(
    draw: st.DrawFn,
    *,
    structures: Sequence[Structure] = STRUCTURES,
    n_tasks: Sequence[int] = (1, 2, 3, 5, 11),
    max_parameters: int = 24,
    max_spread: float = 6.0,
    max_scale: float = 8.0,
    dtypes: Sequence[torch.dtype] = (torch.float64,),
) -> Tensor:
    """Draw a Jacobian ``[m, d]``; it shrinks towards few tasks, no spread, scale 1 and the first structure.

    Args:
        draw: given by hypothesis.
        structures: to choose from.
        n_tasks: numbers of tasks to choose from.
        max_parameters: largest ``d``.
        max_spread: most decades between row norms.
        max_scale: most decades of the global scale, either way.
        dtypes: to choose from.

    Returns:
        a strategy of tensors.
    """
    checks.positive_int("max_parameters", max_parameters)
    return jacobian_of(
        draw(st.sampled_from(list(structures))),
        n_tasks=draw(st.sampled_from(list(n_tasks))),
        n_parameters=draw(st.integers(1, max_parameters)),
        spread=draw(st.floats(0.0, max_spread)) if max_spread else 0.0,
        scale=draw(st.floats(-max_scale, max_scale)) if max_scale else 0.0,
        seed=draw(st.integers(0, 2**16)),
        dtype=draw(st.sampled_from(list(dtypes))),
    )


def gramians(
    *,
    structures: Sequence[Structure] = STRUCTURES,
    n_tasks: Sequence[int] = (1, 2, 3, 5, 11),
    max_spread: float = 6.0,
    max_scale: float = 8.0,
) -> st.SearchStrategy[Tensor]:
    """Draw the Gramian ``[m, m]`` of a structured Jacobian, in float64; arguments as for ``jacobians``."""
    drawn = jacobians(structures=structures, n_tasks=n_tasks, max_spread=max_spread, max_scale=max_scale)
    return drawn.map(gramian_of)


@st.composite
def losses(
    draw: st.DrawFn, *, n_tasks: Sequence[int] = (1, 2, 3, 5, 11), low: float = 1e-6, high: float = 1e6
) -> Tensor:
    """Draw losses ``[m]`` in float64, ``m`` one of ``n_tasks``, spread over decades between ``low`` and ``high``."""
    checks.positive("low", low)
    count = draw(st.sampled_from(list(n_tasks)))
    decades = st.floats(float(torch.tensor(low).log10()), float(torch.tensor(high).log10()))
    return torch.tensor([10.0 ** draw(decades) for _ in range(count)], dtype=torch.float64)


def rotations(n_parameters: int, seed: int) -> Tensor:
    """A random orthogonal matrix ``[d, d]`` in float64."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(n_parameters, n_parameters, generator=generator, dtype=torch.float64)
    orthogonal: Tensor = torch.linalg.qr(square).Q
    return orthogonal
