"""Where a drop-in answers otherwise than its framework: the table in the documentation and the tests are made of it."""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    name: str  # of its test
    where: str  # the functions or classes
    when: str  # the call, in words
    theirs: str  # what the framework answers, and so does quirks="theirs"
    ours: str  # what the drop-in answers by default
    why: str


BOTH = "cross_entropy, CrossEntropyLoss"

TORCH = (
    Difference(
        name="nothing_kept",
        where=BOTH,
        when='Every target is ignored, or there is no entry, and `reduction` is `"mean"`',
        theirs="NaN",
        ours="0, with a gradient of 0",
        why="A batch of padding takes no step, where NaN would be in every parameter after one",
    ),
    Difference(
        name="divisor_of_zero",
        where=BOTH,
        when="The class weights of the targets sum to 0",
        theirs="NaN or infinite, and so is the gradient",
        ours="0, with a gradient of 0",
        why="As above; and weights that cancel are no reason to stop a training",
    ),
    Difference(
        name="ignored_nan",
        where=BOTH,
        when="Logits of an ignored entry hold NaN or +inf, or -inf alone",
        theirs="NaN in their gradient",
        ours="0 in their gradient",
        why="An entry that is ignored reaches nothing; NaN would be in every parameter after one step",
    ),
    Difference(
        name="zero_times_infinity",
        where=BOTH,
        when="A logit of -inf meets a probability or a class weight of 0, or the target's with `label_smoothing=1`",
        theirs="NaN",
        ours="The loss of the other classes: the term of that class is 0",
        why="A class that is excluded by -inf has probability 0, and what weighs nothing costs nothing",
    ),
    Difference(
        name="infinite_logits",
        where=BOTH,
        when="An entry that counts has a logit of +inf, or of -inf at every class",
        theirs="NaN, in the gradient as well",
        ours="+inf where the target has a finite logit beside +inf, or where every logit is -inf; else NaN",
        why="The limit of the loss, and what maskloss answers everywhere",
    ),
    Difference(
        name="half_precision",
        where=BOTH,
        when="Logits of float16 or bfloat16, outside of autocast",
        theirs='A loss of that dtype, rounded at each step (with `quirks="theirs"` once, at the end)',
        ours="A loss of float32",
        why="Two or three digits are left of bfloat16, and fewer of a sum over a few hundred entries",
    ),
    Difference(
        name="label_smoothing_outside",
        where=BOTH,
        when="`label_smoothing` is negative or NaN",
        theirs="That of 0, silently",
        ours="RuntimeError, as PyTorch's above 1",
        why="A bad argument never becomes a number",
    ),
    Difference(
        name="byte_wraps",
        where=BOTH,
        when="`label_smoothing`, and a target of 156 in uint8 beside `ignore_index=-100`",
        theirs="-100 is taken for 156, and that entry is not smoothed",
        ours="156 is a class as any other",
        why="-100 is no uint8",
    ),
    Difference(
        name="no_classes",
        where=BOTH,
        when="The logits have a class axis of length 0",
        theirs="0 or NaN, where no target is a class that there is not",
        ours="IndexError; RuntimeError of logits of three or more axes",
        why="A bad argument never becomes a number",
    ),
    Difference(
        name="unread_target",
        where=BOTH,
        when="A target that is no class, under `torch.compile`",
        theirs="RuntimeError",
        ours="NaN for that entry, in its loss and its gradient",
        why="What is compiled looks at no values, and NaN is no number that trains",
    ),
    Difference(
        name="unread_target_in_a_transform",
        where=BOTH,
        when="A target that is no class, in `torch.func.vmap`",
        theirs='RuntimeError (with `quirks="theirs"` NaN as well)',
        ours="NaN for that entry, in its loss and its gradient",
        why="Inside a transformation there are no values to look at",
    ),
    Difference(
        name="complex_weight",
        where=BOTH,
        when="Class weights that are complex, beside probabilities",
        theirs='A complex loss (with `quirks="theirs"` an error)',
        ours="NotImplementedError",
        why="A weight is real",
    ),
)

DIFFERENCES: dict[str, tuple[Difference, ...]] = {"torch": TORCH, "optax": (), "keras": ()}
