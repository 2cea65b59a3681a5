"""Hugging Face Trainer: a causal language model

Give the Trainer `loss_of` as its `compute_loss_func`; nothing else changes. The Trainer
counts the tokens to predict in all micro-batches of a step and hands the count over as
`num_items_in_batch`: that is the divisor. A function that returns the mean over its own
micro-batch looks as good, and trains on another loss: the Trainer adds up what it
returns, four times too much for four micro-batches, and a token among few weighs more
than one among many. Printed: the losses that the Trainer reports at five steps, first
of large batches with the model's own loss. The parameters are compared as well.
"""

import tempfile

try:
    import accelerate  # noqa: F401  (the Trainer needs it)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
except ImportError as missing:
    install = "pip install torch transformers accelerate"
    raise SystemExit(f"{missing.name} is missing: {install}") from None

import maskloss as ml


def loss_of(outputs, labels, num_items_in_batch=None):
    logits, following = outputs.logits[:, :-1], labels[:, 1:]
    options = {"ignore_index": -100, "denominator": num_items_in_batch}
    return ml.cross_entropy(logits, following, **options)


def train(batch_size, loss=None):
    """The losses of five steps of 8 sequences each, and the parameters after them."""
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    model, data = LlamaForCausalLM(LlamaConfig(**size, **layers)), []
    for length in torch.randint(2, 17, (40,)):
        tokens, there = torch.randint(64, (16,)), torch.arange(16) < length
        data.append({"input_ids": tokens, "labels": tokens.where(there, -100)})
    steps = {"max_steps": 5, "gradient_accumulation_steps": 8 // batch_size}
    steps.update(per_device_train_batch_size=batch_size, optim="sgd", learning_rate=0.5)
    quiet = {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(folder, use_cpu=True, **steps, **quiet)
        trainer = Trainer(model, options, train_dataset=data, compute_loss_func=loss)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(f"{8 // batch_size} x {batch_size}", *(f"{loss:.4f}" for loss in losses))
    return torch.tensor(losses), torch.cat([p.flatten() for p in model.parameters()])


loss, parameters = train(8)
found = train(2, loss_of)
own_mean = train(2, lambda outputs, labels, **counted: loss_of(outputs, labels))
assert torch.allclose(found[0], loss)
assert torch.allclose(found[1], parameters, atol=1e-6)
assert not torch.allclose(own_mean[1], parameters, atol=1e-3)
