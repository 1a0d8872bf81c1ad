"""PyTorch version of `fla.modules.rotary.ops`."""

import torch

from fla_bdlru.fla_cpu.common import check_shape, upcast
from fla_bdlru.fla_cpu.documents import check_documents, token_positions


def rotary_embedding_fwdbwd(x, cos, sin, seqlen_offsets, cu_seqlens, interleaved, inplace, conjugate):
    # x: [B, T, H, D]; cos, sin: [positions, R]; the first 2R channels are rotated
    (positions, R), D = cos.shape, x.shape[-1]
    if 2 * R > D:
        raise ValueError(f"The rotary dimension {2 * R} is larger than the head dimension {D}.")
    if x.dtype != cos.dtype or cos.dtype != sin.dtype:
        raise ValueError(f"x, cos and sin have types {x.dtype}, {cos.dtype} and {sin.dtype}; expected one type.")
    check_shape("sin", sin, cos.shape)
    check_documents(x, cu_seqlens, None)
    sequence, position = token_positions(x, cu_seqlens)
    per_sequence = isinstance(seqlen_offsets, torch.Tensor)
    if per_sequence:
        check_shape("seqlen_offsets", seqlen_offsets, (x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1,))
    position = position + (seqlen_offsets[sequence] if per_sequence else seqlen_offsets)
    readable = not torch.compiler.is_compiling() and not position.is_meta
    if readable and position.numel() and int(position.max()) >= positions:
        raise ValueError(f"Position {int(position.max())} is outside the rotary cache of {positions} positions.")
    # Left padding gives negative positions: their rotated channels are zero (in place: left as they are).
    inside = (position >= 0).view(*x.shape[:2], 1, 1)
    index = position.clamp_min(0)
    c, s = (upcast(t)[index].view(*x.shape[:2], 1, R) for t in (cos, -sin if conjugate else sin))
    rotated = upcast(x.narrow(-1, 0, 2 * R))
    first, second = (rotated[..., ::2], rotated[..., 1::2]) if interleaved else rotated.chunk(2, -1)
    pair = first * c - second * s, first * s + second * c
    rotated = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    if inplace:
        x[..., : 2 * R] = torch.where(inside, rotated.to(x.dtype), x[..., : 2 * R])
        return x
    return torch.cat([rotated.masked_fill(~inside, 0.0).to(x.dtype), x[..., 2 * R :]], -1)
