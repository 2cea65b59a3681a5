"""Python's own documentation as BERT's training text: WordPiece, sentence pairs, masked tokens, padding."""

import ast
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from objective import NO_LABEL
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)


def paragraphs(texts):
    """A document per text: its paragraphs of more than 20 characters, where there are two or more."""
    split = ([" ".join(p.split()) for p in text.split("\n\n")] for text in texts)
    return [d for d in ([p for p in ps if len(p) > 20] for ps in split) if len(d) > 1]


def topic_documents():
    """The language reference, as `help()` shows it: what BERT trains on."""
    return paragraphs(topics.values())


def docstring_documents():
    """The docstrings of the standard library's modules: more words for the vocabulary."""
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        # Parsed, not imported: to import some of these modules has effects.
        nodes = ast.walk(ast.parse(path.read_bytes()))
        documented = (n for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
        texts.append("\n\n".join(filter(None, map(ast.get_docstring, documented))))
    return paragraphs(texts)


def train_tokenizer(docs, vocab_size=8192):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator((p for d in docs for p in d), trainer)
    return tokenizer


def segments(docs, tokenizer, length):
    """Per document its token ids in consecutive segments of at most `length`, no segment across two paragraphs."""
    encoded = [[e.ids for e in tokenizer.encode_batch(d)] for d in docs]
    return [[ids[i : i + length] for ids in d for i in range(0, len(ids), length)] for d in encoded]


def mask_tokens(tokens, rng, vocab_size, rate=0.15):
    """Of the real tokens 15 % get a label; of these 80 % read [MASK], 10 % a random token, 10 % stay.

    The labels lie in as many slots as the longest row can need; a shorter row leaves its last slots without a label.
    """
    real = tokens >= len(SPECIAL)
    count = np.minimum(np.maximum(1, np.rint(rate * real.sum(1))), real.sum(1))
    slots = np.arange(round(rate * tokens.shape[1]))
    used = slots < count[:, None]
    order = np.argsort(np.where(real, rng.random(tokens.shape), 2.0), axis=1)  # real ones first, in random order
    places = np.where(used, order[:, slots], 0).astype(np.int32)
    original = np.take_along_axis(tokens, places, 1)
    kind = rng.random(places.shape)
    other = rng.integers(len(SPECIAL), vocab_size, places.shape, dtype=np.int32)
    read = np.where(kind < 0.8, np.int32(MASK), np.where(kind < 0.9, other, original))
    masked = tokens.copy()
    rows = np.arange(len(tokens))[:, None] + 0 * places
    masked[rows[used], places[used]] = read[used]
    return masked, places, np.where(used, original, np.int32(NO_LABEL))


def batches(docs, rng, vocab_size, *, steps, batch_size, length, single=0.25):
    """A quarter is one segment alone; of the pairs, half go on in the same document, half in another."""
    starts = np.array([(d, i) for d, segs in enumerate(docs) for i in range(len(segs) - 1)])
    order = np.concatenate([rng.permutation(len(starts)) for _ in range(-(-steps * batch_size // len(starts)))])
    for step in range(steps):
        tokens = np.full((batch_size, length), PAD, np.int32)
        part = np.zeros((batch_size, length), np.int32)
        is_pair = rng.random(batch_size) >= single
        is_next = is_pair & (rng.random(batch_size) < 0.5)
        for row, (d, i) in enumerate(starts[order[step * batch_size : (step + 1) * batch_size]]):
            first = [CLS, *docs[d][i], SEP]
            second = []
            if is_next[row]:
                second = [*docs[d][i + 1], SEP]
            elif is_pair[row]:
                other = docs[(d + rng.integers(1, len(docs))) % len(docs)]
                second = [*other[rng.integers(len(other))], SEP]
            n = len(first) + len(second)
            tokens[row, :n] = first + second
            part[row, len(first) : n] = 1
        masked, places, labels = mask_tokens(tokens, rng, vocab_size)
        yield {
            "tokens": masked,
            "part": part,
            "attend": tokens != PAD,
            "mlm_places": places,
            "mlm_labels": labels,
            "nsp_labels": is_next.astype(np.int32),
            "is_pair": is_pair,
        }
