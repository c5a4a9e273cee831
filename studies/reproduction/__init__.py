"""Reproduction of rotation_vq, the CIFAR-10 study of the rotation trick (docs/reproduction.md)."""
