"""Hugging Face Trainer: a masked language model

Give the Trainer `loss_of` as its `compute_loss_func`. Labels are -100 where nothing is
hidden, as DataCollatorForLanguageModeling makes them, and `num_items_in_batch` counts
the others in all micro-batches of a step: that is the divisor. Micro-batches hide
different numbers of tokens, and one may hide none: its own mean would be NaN, here it
adds 0. Positions that do not count are not computed either, which is five sixths of
them in BERT's training. Printed: the losses that the Trainer reports at five steps,
first of large batches with the model's own loss. The parameters are compared as well.
"""

import tempfile

try:
    import accelerate  # noqa: F401  (the Trainer needs it)
    import torch
    from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
except ImportError as missing:
    install = "pip install torch transformers accelerate"
    raise SystemExit(f"{missing.name} is missing: {install}") from None

import maskloss as ml

MASK_TOKEN = 2


def loss_of(outputs, labels, num_items_in_batch=None):
    options = {"ignore_index": -100, "denominator": num_items_in_batch}
    return ml.cross_entropy(outputs.logits, labels, **options)


def train(batch_size, loss=None):
    """The losses of five steps of 8 sequences each, and the parameters after them."""
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    model, data = BertForMaskedLM(BertConfig(**size, **layers, **dropout)), []
    for share in torch.linspace(0, 0.4, 40):
        tokens, hidden = torch.randint(3, 64, (16,)), torch.rand(16) < share
        seen, labels = tokens.where(~hidden, MASK_TOKEN), tokens.where(hidden, -100)
        data.append({"input_ids": seen, "labels": labels})
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


(loss, parameters), found = train(8), train(2, loss_of)
assert torch.allclose(found[0], loss)
assert torch.allclose(found[1], parameters, atol=1e-6)
