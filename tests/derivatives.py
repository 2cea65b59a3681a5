"""Calls whose derivatives are examined, as data: in float64, small enough for finite differences of second order."""

import numpy as np

N, C = 4, 5


def arrays():
    rng = np.random.default_rng(7)
    class_mask = rng.random((N, C)) > 0.25
    labels = np.array([0, 3, 4, 2])
    class_mask[np.arange(N), labels] = True
    distributions = rng.random((N, C))
    return {
        "logits": rng.normal(size=(N, C)),
        "labels": labels,
        "distributions": distributions / distributions.sum(-1, keepdims=True),
        "mask": np.array([True, False, True, True]),
        "weights": np.array([0.5, 2.0, -0.25, 1.5]),
        "class_weights": rng.random(C) + 0.5,
        "class_mask": class_mask,
        "denominator": np.array(2.5),
    }


# name -> (labels, array options, other options). The differentiable ones among the arrays are examined, logits always.
CALLS = {
    "plain": ("labels", (), {}),
    "mask": ("labels", ("mask",), {}),
    "weights": ("labels", ("weights", "mask"), {}),
    "weights, sequences": ("labels", ("weights", "mask"), {"reduction": "mean_over_sequences"}),
    "class weights": ("labels", ("class_weights", "mask"), {}),
    "class weights, smoothing": ("labels", ("class_weights", "class_mask"), {"label_smoothing": 0.2}),
    "smoothing": ("labels", ("mask", "class_mask"), {"label_smoothing": 0.1}),
    "z_loss": ("labels", ("mask",), {"z_loss": 0.1, "reduction": "sum"}),
    "softcap": ("labels", ("mask", "class_mask"), {"softcap": 2.0}),
    "denominator": ("labels", ("mask", "denominator"), {}),
    "mean over kept": ("labels", ("mask", "weights"), {"reduction": "mean_over_kept"}),
    "mean over all": ("labels", ("mask", "weights"), {"reduction": "mean_over_all"}),
    "distributions": ("distributions", ("mask",), {}),
    "distributions, sum": ("distributions", ("weights",), {"reduction": "sum"}),
    "everything, labels": (
        "labels",
        ("mask", "weights", "class_weights", "class_mask"),
        {"label_smoothing": 0.1, "z_loss": 0.05, "softcap": 3.0},
    ),
    "everything, distributions": (
        "distributions",
        ("mask", "weights", "class_weights", "class_mask"),
        {"label_smoothing": 0.1, "z_loss": 0.05, "softcap": 3.0},
    ),
}
DIFFERENTIABLE = ("logits", "distributions", "weights", "class_weights", "denominator")


def call(name, asarray, cross_entropy, **extra):
    """The function of the differentiable arrays, and these arrays, for the call `name`."""
    labels, given, options = CALLS[name]
    values = {key: asarray(value) for key, value in arrays().items() if key in ("logits", labels, *given)}
    variables = [key for key in values if key in DIFFERENTIABLE]

    def function(*xs):
        at = {**values, **dict(zip(variables, xs, strict=True))}
        return cross_entropy(at["logits"], at[labels], **{key: at[key] for key in given}, **options, **extra)

    return function, [values[key] for key in variables]
