"""PyTorch: gradient accumulation with an exact mean

Before the loop over a step's micro-batches, add up what each of them counts with
`ml.denominator`: it needs the labels alone, not the logits. Each micro-batch then gets
the sum as its `denominator`, and nothing is divided by the number of micro-batches. The
usual way, a mean of the micro-batches' means, weighs a token among few more than one
among many, and is NaN with F.cross_entropy as soon as one of them keeps none; here that
one adds 0. Printed: how far the parameters are after five steps, both ways, from those
of large batches with F.cross_entropy, relative to how far these have moved.
"""

try:
    import torch
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install torch") from None

import maskloss as ml


def micro_batches_of(step):
    torch.manual_seed(step)
    for length in 1, 9, 0, 4:
        features, labels = torch.randn(2, 9, 8), torch.randint(20, (2, 9))
        yield features, labels.where(torch.arange(9) < length, -100)


def exact_mean(model, batches):
    counts = [ml.denominator(labels, ignore_index=-100) for _, labels in batches]
    options = {"ignore_index": -100, "denominator": sum(counts)}
    for features, labels in batches:
        ml.cross_entropy(model(features), labels, **options).backward()


def mean_of_means(model, batches):
    for features, labels in batches:
        loss = ml.cross_entropy(model(features), labels, ignore_index=-100)
        (loss / len(batches)).backward()


def one_large_batch(model, batches):
    features, labels = map(torch.cat, zip(*batches, strict=True))
    torch.nn.functional.cross_entropy(model(features).mT, labels).backward()


def moved(make_gradients):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 20)
    start, optimizer = model.weight.clone(), torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(5):
        optimizer.zero_grad()
        make_gradients(model, list(micro_batches_of(step)))
        optimizer.step()
    return (model.weight - start).detach()


right = moved(one_large_batch)
for make_gradients in exact_mean, mean_of_means:
    away = float((moved(make_gradients) - right).norm() / right.norm())
    print(f"{make_gradients.__name__:13} {away:.2f}")
    assert (away < 1e-4) == (make_gradients is exact_mean)
