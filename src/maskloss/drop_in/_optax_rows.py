"""Where the drop-in for Optax answers otherwise: name, where, when, theirs, ours, why (see _differences)."""

INTEGER = "softmax_cross_entropy_with_integer_labels"
SOFT = "softmax_cross_entropy"
SOFT_AND_SAFE = "softmax_cross_entropy, safe_softmax_cross_entropy"
ALL = "all three"

ROWS = (
    (
        "negative_label",
        INTEGER,
        "A label in [-C, -1]",
        "The loss of a class counted from the end: -1 is the last",
        "ValueError; inside `jit`, NaN",
        "-1 is how padding is marked, and becomes a class that is trained",
    ),
    (
        "label_of_no_class",
        INTEGER,
        "A label of C or more, or below -C",
        "NaN, of a finite gradient",
        "ValueError that names the entry; inside `jit`, NaN, and so is the gradient",
        "A mistake is found where it is made",
    ),
    (
        "excluded_label",
        INTEGER,
        "A label of a class that `where` excludes for its entry",
        "lse - x_label, which can be negative",
        "ValueError; inside `jit`, NaN",
        "The class does not exist, and has no probability",
    ),
    (
        "wide_numpy_label",
        INTEGER,
        "A label of 2**32 or more in a NumPy array, without x64",
        "The loss of its last 32 bits",
        "ValueError",
        "It is no class",
    ),
    (
        "where_on_the_classes",
        INTEGER,
        "`where` of fewer axes than the entries, beside a class axis that is not the last",
        "It lands on the class axis where the sizes agree, else ValueError",
        "ValueError",
        "A number that depends on whether two sizes agree is wrong",
    ),
    (
        "zero_label_at_minus_infinity",
        SOFT,
        "A label of 0 where the logit is minus infinity",
        "NaN",
        "The class adds 0, as in safe_softmax_cross_entropy",
        "0 times infinity; the class has no part in the target",
    ),
    (
        "gradient_of_excluded_labels",
        SOFT,
        "The gradient with respect to labels that `where` excludes",
        "NaN",
        "0",
        "What does not count has no influence",
    ),
    (
        "no_class_is_possible",
        ALL,
        "Every logit of an entry is minus infinity",
        "NaN",
        "Infinity",
        "Each class has probability 0, and costs infinity",
    ),
    (
        "indices_for_distributions",
        SOFT_AND_SAFE,
        "Labels with one number in place of one for each class (shape (N, 1)), or integers of fewer axes",
        "The numbers are broadcast along the classes",
        "ValueError that names softmax_cross_entropy_with_integer_labels",
        "They are class indices, and the loss of them is no cross-entropy",
    ),
    (
        "labels_of_more_axes",
        SOFT,
        "Labels of more axes than the logits, beside an `axis` that is not negative, or None",
        "The softmax is along one axis, the sum along another",
        "ValueError",
        "The two must be the same axis",
    ),
    ("complex_labels", SOFT_AND_SAFE, "Complex labels", "A complex loss", "TypeError", "They are no distribution"),
    (
        "no_classes",
        ALL,
        "A class axis of size 0",
        "0; minus infinity for class indices",
        "ValueError",
        "There is no softmax of nothing",
    ),
    (
        "half_precision",
        ALL,
        "Logits (and labels) in bfloat16 or float16",
        "A loss in half precision, with two or three digits",
        "Computed in float32, which is also the dtype of the loss; the gradient has the dtype of the logits",
        "A mean over such losses is off by percents",
    ),
)
