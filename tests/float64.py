"""Random inputs in float64, and recurrences as loops over them: one token, one document at a time."""

import itertools

import torch
import torch.nn.functional as F


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def log_decay(*shape):
    return F.logsigmoid(rand(*shape))


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def outer(k, v):
    return k[..., None] * v[..., None, :]


def read(S, q):
    return (q[..., None, :] @ S)[..., 0, :]


def sizes(batch, cu_seqlens):
    """Batch size, number of sequences, boundaries as a tensor."""
    return (batch, batch, None) if cu_seqlens is None else (1, len(cu_seqlens) - 1, torch.tensor(cu_seqlens))


def spans(x, cu_seqlens):
    """(row, start, stop) of every sequence of `x`, [B, T, ...]."""
    if cu_seqlens is None:
        return [(b, 0, x.shape[1]) for b in range(x.shape[0])]
    return [(0, int(start), int(stop)) for start, stop in itertools.pairwise(cu_seqlens)]


def loop(step, inputs, state, cu_seqlens=None, reverse=False):
    """Outputs and final states, where `step(state, *inputs of one token)` gives the output and the next state."""
    outputs, states = {}, []
    for n, (b, start, stop) in enumerate(spans(inputs[0], cu_seqlens)):
        S = [s[n] for s in state] if isinstance(state, tuple) else state[n]
        for t in reversed(range(start, stop)) if reverse else range(start, stop):
            outputs[b, t], S = step(S, *(x[b, t] for x in inputs))
        states.append(S)
    batch, length = inputs[0].shape[:2]
    o = torch.stack([torch.stack([outputs[b, t] for t in range(length)]) for b in range(batch)])
    if isinstance(state, tuple):
        return o, *(torch.stack(s) for s in zip(*states))
    return o, torch.stack(states)


def recurrence(q, k, v, state, beta=None, g=None, gk=None, gv=None, scale=None, reverse=False, cu_seqlens=None):
    """S <- decay * S; S += k (v - S^T k)^T beta, or k v^T; o = S^T q."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if state is None:
        state = v.new_zeros(len(spans(q, cu_seqlens)), v.shape[2], q.shape[-1], v.shape[-1])
    decay = v.new_zeros(*v.shape[:3], 1, 1)
    for part, index in ((g, (..., None, None)), (gk, (..., None)), (gv, (..., None, slice(None)))):
        decay = decay if part is None else decay + part[index]
    beta = beta[..., None] if beta is not None and beta.dim() == 3 else beta

    def step(S, q, k, v, decay, *beta):
        S = decay.exp() * S
        S = S + outer(k, beta[0] * (v - read(S, k)) if beta else v)
        return scale * read(S, q), S

    inputs = (q, k, v, decay) if beta is None else (q, k, v, decay, beta)
    return loop(step, inputs, state, cu_seqlens, reverse)
