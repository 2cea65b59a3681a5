"""A small BERT in PyTorch."""

import torch
import torch.nn.functional as F
from objective import objective
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x, attend):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend[:, None, None, :])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Bert(nn.Module):
    def __init__(self, vocab_size, length, dim, heads, layers):
        super().__init__()
        self.token, self.place, self.part = (
            nn.Embedding(vocab_size, dim),
            nn.Embedding(length, dim),
            nn.Embedding(2, dim),
        )
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.pool, self.is_next = nn.Linear(dim, dim), nn.Linear(dim, 2)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        nn.init.normal_(self.token.weight, std=0.06)

    def forward(self, tokens, part, attend, places):
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]] + self.part(part)
        for block in self.blocks:
            x = block(x, attend)
        x = self.norm(x)
        masked = torch.take_along_dim(x, places[..., None].long(), dim=1)
        return (masked, self.token.weight, self.bias), self.is_next(torch.tanh(self.pool(x[:, 0])))


def train(batches, rates, record, **sizes):
    """Trains, calling record with both losses of a step; returns a function from a batch to the model's outputs."""
    torch.manual_seed(0)
    model = Bert(**sizes)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)

    def outputs(batch):
        return model(batch["tokens"], batch["part"], batch["attend"], batch["mlm_places"])

    for batch, rate in zip(batches, rates, strict=True):
        batch = {name: torch.from_numpy(array) for name, array in batch.items()}
        optimizer.param_groups[0]["lr"] = rate
        loss, stats = objective(*outputs(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        record({name: of.mean.item() for name, of in stats.items()})

    @torch.no_grad()
    def predict(batch):
        head, nsp_logits = outputs({name: torch.from_numpy(array) for name, array in batch.items()})
        return tuple(x.detach().numpy() for x in head), nsp_logits.numpy()

    return predict
