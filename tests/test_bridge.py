"""A TransformerBridge gives the same numbers as a HookedTransformer of the same checkpoint.

Also run by `make test-tl4`, with TransformerLens 4, which has no HookedTransformer: there the numbers are held to those
that transformers' own model gives with a hook of PyTorch.
"""
