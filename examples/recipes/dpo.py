"""Preference losses: DPO and SimPO from the log-probabilities of answers

`ml.label_log_probs` gives the log-probability of each token, exactly 0 where `mask` has
prompt and padding. `ml.masked_sum` along the time makes the answer's (DPO), and
`ml.masked_mean` the answer's per token (SimPO), with no log_softmax of all logits to
gather from and to multiply by a mask. Printed: both losses. They and their gradients
are compared with the papers' formulas, written out pair by pair.
"""

try:
    import torch
    from torch.nn.functional import logsigmoid
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install torch") from None

import maskloss as ml

PAIRS, BETA, MARGIN = 3, 0.1, 0.5


def log_probs_of(logits):
    return ml.label_log_probs(logits[:, :-1], tokens[:, 1:], mask=answer[:, 1:])


def dpo(policy):
    gain = log_probs_of(policy) - log_probs_of(reference)
    chosen, rejected = ml.masked_sum(gain, answer[:, 1:], axis=-1).chunk(2)
    return -logsigmoid(BETA * (chosen - rejected)).mean()


def simpo(policy):
    log_probs = log_probs_of(policy)
    chosen, rejected = ml.masked_mean(log_probs, answer[:, 1:], axis=-1).chunk(2)
    return -logsigmoid(BETA * (chosen - rejected) - MARGIN).mean()


def by_pairs(score, margin):
    differences = [score(i) - score(i + PAIRS) for i in range(PAIRS)]
    return sum(torch.log1p(torch.exp(margin - BETA * x)) for x in differences) / PAIRS


def log_p(logits, i):
    times = answer[i].nonzero()[:, 0]
    return logits[i, times - 1].log_softmax(-1)[range(len(times)), tokens[i, times]]


torch.manual_seed(0)
policy, reference = torch.randn(2, 2 * PAIRS, 9, 12, requires_grad=True)
tokens, times = torch.randint(12, (2 * PAIRS, 9)), torch.arange(9)
answer = (times > 2) & (times < torch.tensor([[4], [9], [6], [7], [5], [8]]))
rights = {
    dpo: by_pairs(lambda i: (log_p(policy, i) - log_p(reference, i)).sum(), 0),
    simpo: by_pairs(lambda i: log_p(policy, i).mean(), MARGIN),
}
for function, right in rights.items():
    loss = function(policy)
    print(f"{function.__name__:6} {loss:.4f}")
    assert torch.allclose(loss, right)
    found, expected = (torch.autograd.grad(x, policy)[0] for x in (loss, right))
    assert torch.allclose(found, expected, atol=1e-6)
