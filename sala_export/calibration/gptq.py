"""GPTQ: int4 rounding that makes up for each column's error in the columns that follow (arXiv 2210.17323).

With H = X^T X the error of a layer's outputs is tr(dW H dW^T). Column by column, the rounding error of column j divided
by U_jj, H^-1 = U^T U, is subtracted from the columns k > j times U_jk, which is the least that is left to do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics.packing import pack_int4
from ..numerics.rounding import round_int4
from ..numerics.weights import INT4_GROUP, int4_scale, int4_tensors

_DAMPING = 0.01
"""Times the mean of the diagonal, added to it: the calibration text is a sample, and H may be singular."""


def inverse_factor(hessian: Tensor) -> Tensor:
    """U, upper triangular fp32 [in, in], with U^T U the inverse of the damped `hessian`.

    Reversed in both dimensions, H = L L^T; reversed again, L is an upper triangular R with H = R R^T, and U = R^-1.
    """
    damping = _DAMPING * hessian.diagonal().mean().clamp(min=2.0**-100)
    damped = hessian.flip(0, 1)
    damped.diagonal().add_(damping)
    factor = torch.linalg.cholesky(damped).flip(0, 1)
    inverse: Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor)), upper=True)
    return inverse


def gptq(weight: Tensor, factor: Tensor, importance: Tensor, shrinks: tuple[float, ...]) -> dict[str, Tensor]:
    """int4 tensors of `weight` fp32 [out, in].

    Args: `factor` as of `inverse_factor`; `importance` fp32 [in] and `shrinks` as `int4_scale` has them, which chooses
    a group's scale when its turn comes, from the weights as they then are.
    """
    rest = weight.t().contiguous()  # [in, out]: a column of the weight is a row here
    codes = torch.empty_like(rest)
    scales = []
    for start in range(0, len(rest), INT4_GROUP):
        end = start + INT4_GROUP
        block = rest[start:end]
        scale = int4_scale(block.t().contiguous(), importance[start:end], shrinks)
        scales.append(scale)
        step = scale.to(torch.float32)[:, 0]
        errors = torch.empty_like(block)
        for row in range(INT4_GROUP):
            column = start + row
            codes[column] = round_int4(block[row] / step)
            errors[row] = (block[row] - codes[column] * step) / factor[column, column]
            block[row + 1 :].addr_(factor[column, column + 1 : end], errors[row], alpha=-1.0)
        rest[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1.0)
    return int4_tensors(pack_int4(codes.t()), torch.cat(scales, dim=1))
