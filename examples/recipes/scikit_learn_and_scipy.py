"""NumPy and SciPy: logistic regression where labels and features are missing

`value_and_grad` gives NumPy the loss and its gradient, which is all that SciPy's
L-BFGS asks for. The features are the hidden states of `linear_cross_entropy`, and the
coefficients are its kernel. A label of -1 is unknown, and a row in which a feature is
NaN is masked: neither reaches the loss or the gradient. scikit-learn, given the rows
that are left, finds the same coefficients.
"""

try:
    import numpy as np
    from scipy.optimize import minimize
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install scikit-learn") from None

import maskloss as ml

CLASSES, UNKNOWN = 3, -1
rng = np.random.default_rng(0)
features, species = load_iris(return_X_y=True)
features = (features - features.mean(0)) / features.std(0)
features[rng.random(features.shape) < 0.05] = np.nan
labels = np.where(rng.random(len(species)) < 0.3, UNKNOWN, species)
complete = ~np.isnan(features).any(1)

loss_and_gradient = ml.value_and_grad(ml.linear_cross_entropy, ("kernel", "bias"))
options = {"mask": complete, "ignore_index": UNKNOWN, "reduction": "sum"}


def objective(parameters):
    """The loss and half the sum of the squared coefficients, and the gradient."""
    kernel, bias = np.split(parameters, [CLASSES * features.shape[1]])
    kernel = kernel.reshape(CLASSES, -1)
    loss, (d_kernel, d_bias) = loss_and_gradient(
        features, kernel=kernel, labels=labels, bias=bias, **options
    )
    gradient = np.concatenate([(d_kernel + kernel).ravel(), d_bias])
    return loss + (kernel**2).sum() / 2, gradient


start = np.zeros(CLASSES * (features.shape[1] + 1))
found = minimize(objective, start, jac=True, method="L-BFGS-B", tol=1e-12)
kernel, bias = np.split(found.x, [CLASSES * features.shape[1]])
kernel = kernel.reshape(CLASSES, -1)

kept = complete & (labels != UNKNOWN)
of_scikit_learn = LogisticRegression(tol=1e-8).fit(features[kept], labels[kept])
assert np.allclose(kernel, of_scikit_learn.coef_, atol=1e-4)
assert np.allclose(bias, of_scikit_learn.intercept_, atol=1e-4)

unknown = complete & (labels == UNKNOWN)
right = (features[unknown] @ kernel.T + bias).argmax(1) == species[unknown]
print(f"fitted to {kept.sum()} of {len(labels)} rows; bias", bias.round(2))
print(f"{right.sum()} of the {unknown.sum()} unknown labels predicted")
