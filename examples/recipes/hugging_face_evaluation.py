"""Hugging Face Trainer: an evaluation that does not depend on the batch size

The Trainer's `eval_loss` is the mean over batches of their means: another number for
each way of cutting the evaluation into batches. Two functions more give the mean over
the tokens that count. `log_probs_of` keeps one number per token in place of a row of
logits, which also is what fits in memory; `metrics_of` reduces them in NumPy. Printed:
both, in batches of 2 and of 8. The second is checked against F.cross_entropy of all
sequences at once.
"""

import tempfile

try:
    import accelerate  # noqa: F401  (the Trainer needs it)
    import numpy as np
    import torch
    from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback
except ImportError as missing:
    install = "pip install torch transformers accelerate"
    raise SystemExit(f"{missing.name} is missing: {install}") from None

import maskloss as ml

MASK_TOKEN = 2


def log_probs_of(logits, labels):
    return ml.label_log_probs(logits, labels, ignore_index=-100)


def metrics_of(evaluated):
    log_probs, counts = evaluated.predictions, evaluated.label_ids != -100
    loss = ml.masked_mean(-log_probs, counts)
    return {"token_loss": loss, "perplexity": np.exp(loss)}


torch.manual_seed(0)
size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
model = BertForMaskedLM(BertConfig(num_hidden_layers=1, num_attention_heads=2, **size))
tokens = torch.randint(3, 64, (40, 16))
hidden = torch.rand(40, 16) < torch.linspace(0, 0.4, 40)[:, None]
inputs, labels = tokens.where(~hidden, MASK_TOKEN), tokens.where(hidden, -100)
data = [{"input_ids": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]
with torch.no_grad():
    logits = model.eval()(inputs).logits
right = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
for n in 2, 8:
    options = {"per_device_eval_batch_size": n, "use_cpu": True, "disable_tqdm": True}
    functions = {"preprocess_logits_for_metrics": log_probs_of}
    functions["compute_metrics"] = metrics_of
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, **options)
        trainer = Trainer(model, arguments, eval_dataset=data, **functions)
        trainer.remove_callback(PrinterCallback)
        found = trainer.evaluate()
    names = "eval_loss", "eval_token_loss", "eval_perplexity"
    print(f"batches of {n}:", *(f"{name} {found[name]:.4f}" for name in names))
    assert np.isclose(found["eval_token_loss"], right, rtol=1e-5)
