"""Policy losses: PPO, GRPO, DAPO and Dr. GRPO, and what each of them divides by

`ml.linear_label_log_probs` gives the log-probability of each sampled token from hidden
states and the output layer's weight, without logits, and `ml.reduce` makes one number
of the tokens' clipped objectives. The papers differ in the divisor, one argument here:
the tokens of the batch (DAPO, and PPO in most code), those of each answer and then the
answers (GRPO), or a constant (Dr. GRPO). A mean over padded answers is none of them.
Printed: each loss. It and its gradient are compared with the formula written out.
"""

try:
    import torch
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install torch") from None

import maskloss as ml

ANSWERS, LONGEST, CONSTANT = 4, 6, 4 * 6
# The highest ratio, what ml.reduce is told, and what the paper does with each answer's
# sum s and length n.
PAPERS = {
    "PPO": (1.2, {"reduction": "mean"}, lambda s, n: s.sum() / n.sum()),
    "GRPO": (1.2, {"reduction": "mean_over_sequences"}, lambda s, n: (s / n).mean()),
    "DAPO": (1.28, {"reduction": "mean"}, lambda s, n: s.sum() / n.sum()),
    "Dr. GRPO": (1.2, {"denominator": CONSTANT}, lambda s, n: s.sum() / CONSTANT),
}


def objective(log_probs, old, advantages, highest):
    ratio = torch.exp(log_probs - old)
    return torch.minimum(ratio * advantages, ratio.clamp(0.8, highest) * advantages)


def policy_loss(highest, options, _):
    log_probs = ml.linear_label_log_probs(hidden, weight, tokens, mask=mask)
    values = objective(log_probs, old, advantages[:, None], highest)
    return ml.reduce(-values, mask=mask, **options)


def written_out(highest, _, formula):
    sums = []
    for i, n in enumerate(lengths):
        log_p = torch.log_softmax(hidden[i, :n] @ weight.T, -1)[range(n), tokens[i, :n]]
        sums.append(objective(log_p, old[i, :n], advantages[i], highest).sum())
    return -formula(torch.stack(sums), lengths)


torch.manual_seed(0)
lengths, tokens = torch.tensor([2, 6, 1, 5]), torch.randint(11, (ANSWERS, LONGEST))
mask = torch.arange(LONGEST) < lengths[:, None]
hidden, weight = torch.randn(ANSWERS, LONGEST, 8), torch.randn(11, 8).requires_grad_()
old = -3 + torch.randn(ANSWERS, LONGEST)  # of the policy that the answers are from
advantages = torch.tensor([1.2, -0.9, 0.5, -0.8])
for name, paper in PAPERS.items():
    loss, right = policy_loss(*paper), written_out(*paper)
    print(f"{name:8} {loss:.4f}")
    assert torch.allclose(loss, right)
    found, expected = (torch.autograd.grad(x, weight)[0] for x in (loss, right))
    assert torch.allclose(found, expected, atol=1e-6)
