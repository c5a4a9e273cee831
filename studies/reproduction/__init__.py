"""The CIFAR-10 study of the rotation trick, reproduced (docs/reproduction.md)."""
