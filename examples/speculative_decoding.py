"""Train a small model and a smaller one on a text, then decode with a draft: of the smaller model, and of the text so far.

python examples/speculative_decoding.py
"""

from time import perf_counter

import torch
from text import VOCAB_SIZE, load_tokens
from typer import run

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, SpeculativeDecoding


def train(hidden_size: int, num_hidden_layers: int, steps: int) -> BDLRUForCausalLM:
    config = BDLRUConfig(
        hidden_size=hidden_size, num_hidden_layers=num_hidden_layers, vocab_size=VOCAB_SIZE, eos_token_id=None
    )
    model, text = BDLRUForCausalLM(config), load_tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        start = torch.randint(len(text) - 128, (8,))
        batch = torch.stack([text[i : i + 128] for i in start])
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


def main(steps: int = 300, hidden_size: int = 128, new_tokens: int = 200) -> None:
    torch.manual_seed(0)
    model, small = train(hidden_size, 4, steps), train(hidden_size // 2, 1, steps)
    prompt = load_tokens()[None, 2000:2200]
    model.generate(prompt, max_new_tokens=2)  # compiles what there is to compile
    start = perf_counter()
    plain = model.generate(prompt, max_new_tokens=new_tokens)
    print(f"plain greedy: {new_tokens / (perf_counter() - start):.1f} tokens/s")
    for name, decoding in (("assistant", SpeculativeDecoding(small)), ("prompt lookup", SpeculativeDecoding())):
        out = model.generate(prompt, max_new_tokens=new_tokens, custom_generate=decoding)
        print(f"{name}: {decoding.report}; as plain greedy: {torch.equal(out, plain)}")


if __name__ == "__main__":
    run(main)
