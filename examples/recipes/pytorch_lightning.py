"""PyTorch Lightning: gradient accumulation with an exact mean, and metrics

With `accumulate_grad_batches` Lightning averages the means of the micro-batches. Take
the sum in `training_step` instead, add up its statistics, and scale the gradients once,
before Lightning clips them: by what the micro-batches keep together, and by how many
they are, which Lightning has divided by. Printed: the last of five steps' loss and
accuracy. Loss and weights are compared with large batches under F.cross_entropy.
"""

try:
    import lightning
    import torch
except ImportError as missing:
    raise SystemExit(
        f"{missing.name} is missing: pip install torch lightning"
    ) from None

import maskloss as ml


class Tagger(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.stats = torch.nn.Linear(8, 20, bias=False), 0

    def training_step(self, batch, _):
        features, labels = batch
        options = {"ignore_index": -100, "reduction": "sum", "with_stats": True}
        loss, stats = ml.cross_entropy(self.layer(features), labels, **options)
        self.stats += stats.detach()
        return loss

    def on_before_optimizer_step(self, optimizer):
        scale = self.trainer.accumulate_grad_batches / self.stats.denominator
        for parameter in self.parameters():
            parameter.grad *= scale
        self.log_dict({"loss": self.stats.mean, "accuracy": self.stats.accuracy})
        self.stats = 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


torch.manual_seed(0)
features, lengths = torch.randn(40, 9, 8), torch.arange(40)[:, None] * 7 % 10
labels = torch.randint(20, (40, 9)).where(torch.arange(9) < lengths, -100)
model = Tagger()
weight = model.layer.weight.clone()
names = "logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"
options = {"accelerator": "cpu", "accumulate_grad_batches": 4, "max_epochs": 1}
trainer = lightning.Trainer(**options, **dict.fromkeys(names, False))
data = torch.utils.data.TensorDataset(features, labels)
trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=2))
found = trainer.callback_metrics
print(*(f"{name} {value:.4f}" for name, value in found.items()))
for x, y in zip(features.split(8), labels.split(8), strict=True):
    right = torch.nn.functional.cross_entropy((x @ weight.T).mT, y)
    weight = weight - 0.5 * torch.autograd.grad(right, weight)[0]
assert torch.allclose(found["loss"], right)
assert torch.allclose(model.layer.weight, weight, atol=1e-6)
