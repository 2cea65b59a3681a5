"""PyTorch: semantic segmentation, with pixels that have no label

Logits of shape (N, C, H, W) have their classes along axis 1, so give `axis=1`; labels
of 255 say that a pixel has none, so give `ignore_index=255`. The loss is that of
F.cross_entropy, and `with_stats=True` returns with it what makes the accuracy of an
epoch: sums over pixels, which add over batches of different sizes. A crop that shows no
labelled pixel at all is NaN in F.cross_entropy, and ends the training; here it is 0,
with a gradient of 0. Printed: loss and pixel accuracy of three epochs; checked against
F.cross_entropy and an arg-max at each step.
"""

try:
    import torch
except ImportError as missing:
    raise SystemExit(f"{missing}: python -m pip install torch") from None

import maskloss as ml

CLASSES, VOID = 4, 255
OPTIONS = {"axis": 1, "ignore_index": VOID, "with_stats": True}


def crops(epoch):
    """Classes are bands of brightness. The last batch has no label at all."""
    generator = torch.Generator().manual_seed(epoch)
    for size, void in (8, 0.1), (8, 0.5), (3, 0.9), (1, 1.0):
        images = torch.rand(size, 1, 16, 16, generator=generator)
        labels = (images[:, 0] * CLASSES).long()
        none = torch.rand(labels.shape, generator=generator) < void
        yield images, labels.where(~none, VOID)


torch.manual_seed(0)
convolution = torch.nn.Conv2d(1, 32, 3, padding=1)
model = torch.nn.Sequential(
    convolution, torch.nn.ReLU(), torch.nn.Conv2d(32, CLASSES, 1)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
for epoch in range(3):
    stats, right = 0, 0
    for images, labels in crops(epoch):
        logits = model(images)
        loss, batch = ml.cross_entropy(logits, labels, **OPTIONS)
        theirs = torch.nn.functional.cross_entropy(logits, labels, ignore_index=VOID)
        assert (
            torch.allclose(loss, theirs)
            if batch.count
            else loss == 0 and theirs.isnan()
        )
        stats, right = (
            stats + batch.detach(),
            right + (logits.argmax(1) == labels).sum(),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert stats.correct == right
    print(
        f"loss {stats.mean:.3f}, accuracy {stats.accuracy:.1%} of {stats.count} pixels"
    )
