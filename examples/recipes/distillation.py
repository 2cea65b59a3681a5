"""Distillation: a teacher's probabilities as labels, at a temperature, under a mask

Floating labels of the logits' shape are distributions: hand the teacher's softmax to
`ml.cross_entropy`. That is the KL divergence of the student from the teacher, but for
the teacher's entropy, which `ml.entropy` gives and which has no gradient here. F.kl_div
has no mask; its "batchmean" divides logits of (batch, time, classes) by the batch
alone, so that the loss grows with the length, and its "mean" divides by the classes
too. Printed: the divergence per token that counts, and its mixture with the loss of the
true labels. Both are compared, with gradients, with F.kl_div of the tokens that count.
"""

try:
    import torch
    from torch.nn import functional as F
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install torch") from None

import maskloss as ml

TEMPERATURE, SHARE = 2.0, 0.7


def divergence(student, teacher, mask):
    """KL(teacher, student) at the temperature, a mean over what counts."""
    student, teacher = student / TEMPERATURE, teacher / TEMPERATURE
    loss = ml.cross_entropy(student, torch.softmax(teacher, -1), mask=mask)
    return loss - ml.masked_mean(ml.entropy(teacher, mask=mask), mask)


def mixture(student, teacher, mask):
    """The factor TEMPERATURE**2 keeps the gradients' size (Hinton et al. 2015)."""
    soft = TEMPERATURE**2 * divergence(student, teacher, mask)
    return SHARE * soft + (1 - SHARE) * ml.cross_entropy(student, labels, mask=mask)


def torch_divergence(student, teacher, mask):
    log_p, log_q = (
        F.log_softmax(x[mask] / TEMPERATURE, -1) for x in (student, teacher)
    )
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


def torch_mixture(student, teacher, mask):
    soft = TEMPERATURE**2 * torch_divergence(student, teacher, mask)
    return SHARE * soft + (1 - SHARE) * F.cross_entropy(student[mask], labels[mask])


torch.manual_seed(0)
student, teacher = torch.randn(2, 4, 7, 10)
student.requires_grad_()
labels, mask = torch.randint(10, (4, 7)), torch.rand(4, 7) < 0.6
for ours, theirs in (divergence, torch_divergence), (mixture, torch_mixture):
    loss, right = ours(student, teacher, mask), theirs(student, teacher, mask)
    print(f"{ours.__name__:10} {loss:.4f}")
    assert torch.allclose(loss, right)
    found, expected = (torch.autograd.grad(x, student)[0] for x in (loss, right))
    assert torch.allclose(found, expected, atol=1e-6)
