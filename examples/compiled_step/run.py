"""A compiled training step of a small decoder: the loss in one with the projection, or F.linear and F.cross_entropy.

    python examples/compiled_step/run.py           # about a minute on two cores
    python examples/compiled_step/run.py --quick   # small, to try it

Where only the answer of a prompt counts, 15 % of the tokens are kept. Both losses are compiled with the layers around
them (fullgraph) and start from the same weights; their losses must agree. Each is measured in a process of its own:
seconds of a step, and the peak of memory beyond what was there before it.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

import maskloss as ml

IGNORED = -100
PAGE = 4096


class Decoder(nn.Module):
    def __init__(self, vocabulary, features, layers=2, heads=4):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, features)
        layer = nn.TransformerEncoderLayer(features, heads, 4 * features, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens):
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.layers(self.embedding(tokens), mask=causal, is_causal=True)


def in_one(hidden, kernel, labels, mask):
    return ml.linear_cross_entropy(hidden, kernel, labels, mask=mask)


def apart(hidden, kernel, labels, mask):
    return F.cross_entropy(F.linear(hidden, kernel).flatten(0, 1), torch.where(mask, labels, IGNORED).flatten())


LOSSES = {"ml.linear_cross_entropy": in_one, "F.linear + F.cross_entropy": apart}


def resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def peak_during(call):
    """The most memory that the process had while the call ran, beyond what it had before."""
    before, done = resident(), threading.Event()
    most = [before]

    def watch():
        while not done.wait(0.001):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return most[0] - before


def measure(name, kept, quick):
    vocabulary, features, shape, steps = (97, 16, (2, 8), 2) if quick else (30522, 384, (8, 256), 2)
    torch.manual_seed(0)
    model, loss_of = Decoder(vocabulary, features), LOSSES[name]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    tokens = torch.randint(0, vocabulary, shape)
    labels, mask = torch.roll(tokens, -1, 1), torch.rand(shape) < kept

    @torch.compile(fullgraph=True)
    def loss_of_step(tokens, labels, mask):
        return loss_of(model(tokens), model.embedding.weight, labels, mask)  # tied, as in most small decoders

    def step():
        optimizer.zero_grad()
        loss = loss_of_step(tokens, labels, mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    losses, seconds = [], []
    for _ in range(1 + steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    bytes_of_logits = 4 * shape[0] * shape[1] * vocabulary
    return {
        "losses": losses,
        "first": seconds[0],
        "step": median(seconds[1:]),
        "memory": peak_during(step) / bytes_of_logits,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, to try it")
    parser.add_argument("--only", nargs=2, metavar=("LOSS", "KEPT"), help="of one loss, as JSON")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only[0], float(args.only[1]), args.quick)))
        return
    print("kept   loss, compiled with the step      first call    step    peak of memory, in sizes of the logits")
    for kept in (0.15,) if args.quick else (1.0, 0.15):
        found = {}
        for name in LOSSES:
            command = [sys.executable, __file__, "--only", name, str(kept), *(["--quick"] if args.quick else [])]
            found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            x = found[name]
            print(
                f"{kept:4.0%}   {name:30} {x['first']:8.1f} s {1e3 * x['step']:8.0f} ms {x['memory']:8.2f}", flush=True
            )
        ours, theirs = (torch.tensor(x["losses"]) for x in found.values())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
