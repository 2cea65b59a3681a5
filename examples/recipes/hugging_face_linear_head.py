"""Hugging Face models: the output layer and the loss in one, without logits

Call the model's body in place of the model, and hand its hidden states and the output
layer's weight to `ml.linear_cross_entropy`: a chunk of logits exists at a time, forward
and backward. All logits of 8192 tokens and 128256 classes would be 4.2 GB, and a loss
that is given them writes them several times. Positions that do not count are not
multiplied with the weight at all; that the weight is tied to the embedding, as here,
changes nothing. Printed: the loss, and the largest tensor of the step as rows of
logits, first with the model's own loss. Every gradient is compared.
"""

try:
    import torch
    from torch.utils import _python_dispatch, _pytree
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as missing:
    install = "pip install torch transformers"
    raise SystemExit(f"{missing.name} is missing: {install}") from None

import maskloss as ml

CLASSES, ROWS, TIME = 16000, 8, 96


def own_loss(model, tokens, labels):
    return model(tokens, labels=labels).loss


def linear_loss(model, tokens, labels):
    hidden = model.model(tokens).last_hidden_state[:, :-1]
    weight = model.lm_head.weight  # a row of features for each class
    return ml.linear_cross_entropy(hidden, weight, labels[:, 1:], ignore_index=-100)


class LargestTensor(_python_dispatch.TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        sizes = [getattr(x, "nbytes", 0) // 4 for x in _pytree.tree_leaves(made)]
        self.elements = max([self.elements, *sizes])
        return made


def step(loss_of):
    torch.manual_seed(0)
    size = {"vocab_size": CLASSES, "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**size, **layers, tie_word_embeddings=True)
    model, tokens = LlamaForCausalLM(config), torch.randint(CLASSES, (ROWS, TIME))
    there = torch.arange(TIME) < torch.randint(2, TIME, (ROWS, 1))
    with LargestTensor() as largest:
        loss = loss_of(model, tokens, tokens.where(there, -100))
        loss.backward()
    print(f"{loss_of.__name__}: {loss:.4f}, {largest.elements // CLASSES} rows")
    return [loss, *(parameter.grad for parameter in model.parameters())]


for right, found in zip(step(own_loss), step(linear_loss), strict=True):
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-6)
