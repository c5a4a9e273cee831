"""What the table of quantizers says beside measured numbers: class, source, and when to use it."""

from typing import NamedTuple


class Facts(NamedTuple):
    """A row's words.

    Attributes:
      kind: Name of the class in :mod:`vqjax`.
      source: The paper.
      use: When to take it.
    """

    kind: str
    source: str
    use: str


FACTS = {
    "vector": Facts("VectorQuantizer", "van den Oord 2017; Fifty 2025", "the default; codes that mean something"),
    "product_vq": Facts("ProductVQ", "Jégou 2011", "many vectors from small codebooks, tokens side by side"),
    "residual_vq": Facts("ResidualVQ", "Zeghidour 2021", "bit rates that can be cut; audio"),
    "grouped_residual_vq": Facts("GroupedResidualVQ", "Yang 2023", "residual levels for wide vectors"),
    "sim_vq": Facts("SimVQ", "Zhu 2024", "large codebooks without dead codes"),
    "residual_sim_vq": Facts("ResidualSimVQ", "Zhu 2024", "the same, in levels"),
    "ibq": Facts("IBQ", "Shi 2025", "large codebooks that all learn from each token"),
    "fsq": Facts("FSQ", "Mentzer 2023", "nothing to learn, no collapse; few features"),
    "residual_fsq": Facts("ResidualFSQ", "Mentzer 2023; Zeghidour 2021", "the same at higher rates"),
    "grouped_residual_fsq": Facts("GroupedResidualFSQ", "Yang 2023; Mentzer 2023", "the same for wide vectors"),
    "fsp": Facts("FSP", "arXiv 2602.17133", "a decoder that has to bear noise, such as one before diffusion"),
    "latent": Facts("LatentQuantizer", "Hsu 2023", "features with few values each, learned; disentanglement"),
    "lfq": Facts("LFQ", "Yu 2023", "2^14 codes and more, for models of tokens"),
    "bsq": Facts("BSQ", "Zhao 2024", "the same with a bounded error"),
    "residual_lfq": Facts("ResidualLFQ", "Yu 2023; Zeghidour 2021", "bits in levels"),
    "grouped_residual_lfq": Facts("GroupedResidualLFQ", "Yang 2023; Yu 2023", "the same for wide vectors"),
    "binary_mapper": Facts("BinaryMapper", "Fleuret 2025", "random bits with an exact gradient, free transformer"),
    "random_projection": Facts(
        "RandomProjectionQuantizer", "Chiu 2022", "labels to predict; trains no encoder, which stays random here"
    ),
    "multi_scale_vq": Facts("MultiScaleVQ", "Tian 2024", "tokens from coarse to fine, for next-scale prediction"),
}
"""By the quantizer's name in a config."""
