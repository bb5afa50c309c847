"""The torch models: backbones, similarity, the prototype head, the network, checkpoints.

The only subpackage of `protoserve` that imports torch; serving does not import it.
"""
