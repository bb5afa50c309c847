"""The torch models: backbones, similarity, the prototype head, the network, checkpoints.

The only part of the ground floor that imports torch; the serving install never touches it.
"""
