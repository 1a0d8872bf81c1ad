"""What tests do with a model: livelier weights, decoding with the cache and by whole forwards, steps of training."""

import torch


def lively(model, std=0.3):
    """The model with matrices larger than the defaults, so that a mistake shows."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=std)
    return model


@torch.no_grad()
def decode(model, x, prefill):
    """Logits of `prefill` tokens at once, then of one at a time from the cache."""
    out = model(x[:, :prefill], use_cache=True)
    logits = [out.logits]
    for t in range(prefill, x.shape[1]):
        out = model(x[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, 1)


@torch.no_grad()
def greedy(model, x, steps, **kwargs):
    """Greedy decoding by whole forwards without a cache."""
    for _ in range(steps):
        x = torch.cat([x, model(x, **kwargs).logits[:, -1:].argmax(-1)], 1)
    return x


def train(model, loss_of, steps, lr, check=lambda: None):
    """The losses before each of some steps of AdamW; `check` is called between backward and step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        check()
        optimizer.step()
        losses.append(loss.item())
    return losses
