"""The losses of PyTorch, Optax and Keras under their own names and signatures, on maskloss' mathematics.

One module a framework, imported by name: ``from maskloss.drop_in.torch import cross_entropy``.
"""
