"""Kept rows in blocks: a row function run over logits, or over a projection that makes them a chunk at a time."""
