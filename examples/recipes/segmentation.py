"""PyTorch: semantic segmentation, with pixels that have no label

Logits of shape (N, C, H, W) have their classes along axis 1, so give `axis=1`; labels
of 255 say that a pixel has none, so give `ignore_index=255`. The loss is that of
F.cross_entropy, and `with_stats=True` returns beside it what makes the accuracy of an
epoch: counts of pixels, which add over batches. A batch without any labelled pixel is
NaN in F.cross_entropy, and ends the training; here it is 0, and so is its gradient.
Printed: loss and pixel accuracy of three epochs. In each step the loss and its gradient
are compared with F.cross_entropy, and the accuracy with an arg-max.
"""

try:
    import torch
    from torch.nn.functional import cross_entropy
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install torch") from None

import maskloss as ml

CLASSES, VOID = 4, 255
OPTIONS = {"axis": 1, "ignore_index": VOID, "with_stats": True}


def batches(epoch):
    """Classes are bands of brightness. The last batch has no label at all."""
    torch.manual_seed(epoch)
    for size, void in (8, 0.1), (8, 0.5), (3, 0.9), (1, 1.0):
        images = torch.rand(size, 1, 16, 16)
        labels = (images[:, 0] * CLASSES).long()
        yield images, labels.where(torch.rand(labels.shape) >= void, VOID)


def check(logits, labels, loss, stats):
    assert stats.correct == (logits.argmax(1) == labels).sum()
    found = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    if not stats.count:
        assert loss == 0
        assert not found.any()
        return
    right = cross_entropy(logits, labels, ignore_index=VOID)
    assert torch.allclose(loss, right)
    assert torch.allclose(found, torch.autograd.grad(right, logits)[0], atol=1e-7)


torch.manual_seed(0)
layers = torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.Conv2d(32, CLASSES, 1)
model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
for epoch in range(3):
    all_stats = 0
    for images, labels in batches(epoch):
        logits = model(images)
        loss, stats = ml.cross_entropy(logits, labels, **OPTIONS)
        check(logits, labels, loss, stats)
        all_stats += stats.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {all_stats.mean:.2f}, accuracy {all_stats.accuracy:.0%}")
