"""BERT's two objectives: masked-LM and next-sentence.

The arrays decide the library: this file trains in PyTorch and in JAX and evaluates in
NumPy, unchanged.
"""

from functools import partial

import maskloss as ml

NO_LABEL = -100

masked_lm = partial(ml.linear_cross_entropy, ignore_index=NO_LABEL, with_stats=True)
next_sentence = partial(ml.cross_entropy, with_stats=True)


def objective(mlm_head, nsp_logits, batch):
    """The sum of both means, each over what has a label, and statistics that add.

    The head is what the masked-LM logits would be made of: hidden states, the tokens'
    embeddings and a bias.
    """
    hidden, kernel, bias = mlm_head
    mlm, mlm_stats = masked_lm(hidden, kernel, batch["mlm_labels"], bias=bias)
    nsp, nsp_stats = next_sentence(nsp_logits, batch["nsp_labels"], mask=batch["is_pair"])
    return mlm + nsp, {"mlm": mlm_stats, "nsp": nsp_stats}
