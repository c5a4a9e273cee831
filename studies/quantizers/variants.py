"""Rows of the table of quantizers.

The name is all that a record says of a row, so another preset needs another name.
"""

from typing import NamedTuple


class Variant(NamedTuple):
    """One quantizer.

    Attributes:
      preset: Name of its preset of about 8 bits per latent vector, see :mod:`vqjax.training.quantizer_presets`.
      kind: Name of the class in :mod:`vqjax`.
      source: The paper.
      use: When to choose it.
    """

    preset: str
    kind: str
    source: str
    use: str


VARIANTS = {
    "vq": Variant(
        "vector",
        "VectorQuantizer",
        source="van den Oord 2017; Fifty 2025",
        use="the default; learned codes",
    ),
    "product_vq": Variant(
        "product_vq",
        "ProductVQ",
        source="Jégou 2011",
        use="many vectors from small codebooks, side by side",
    ),
    "residual_vq": Variant(
        "residual_vq",
        "ResidualVQ",
        source="Zeghidour 2021",
        use="variable bit rates; audio",
    ),
    "grouped_residual_vq": Variant(
        "grouped_residual_vq",
        "GroupedResidualVQ",
        source="Yang 2023",
        use="residual stages for wide vectors",
    ),
    "sim_vq": Variant(
        "sim_vq",
        "SimVQ",
        source="Zhu 2024",
        use="large codebooks without dead codes",
    ),
    "residual_sim_vq": Variant(
        "residual_sim_vq",
        "ResidualSimVQ",
        source="Zhu 2024",
        use="the same, in stages",
    ),
    "ibq": Variant(
        "ibq",
        "IBQ",
        source="Shi 2025",
        use="large codebooks in which every vector trains all codes",
    ),
    "fsq": Variant(
        "fsq",
        "FSQ",
        source="Mentzer 2023",
        use="nothing to learn, no collapse; few features",
    ),
    "residual_fsq": Variant(
        "residual_fsq",
        "ResidualFSQ",
        source="Mentzer 2023; Zeghidour 2021",
        use="the same at higher rates",
    ),
    "grouped_residual_fsq": Variant(
        "grouped_residual_fsq",
        "GroupedResidualFSQ",
        source="Yang 2023; Mentzer 2023",
        use="the same for wide vectors",
    ),
    "fsp": Variant(
        "fsp",
        "FSP",
        source="arXiv 2602.17133",
        use="decoders that have to tolerate noise, such as before diffusion",
    ),
    "latent": Variant(
        "latent",
        "LatentQuantizer",
        source="Hsu 2023",
        use="features with few learned values each; disentanglement",
    ),
    "lfq": Variant(
        "lfq",
        "LFQ",
        source="Yu 2023",
        use="2^14 codes and more, for models of indices",
    ),
    "bsq": Variant(
        "bsq",
        "BSQ",
        source="Zhao 2024",
        use="the same with a bounded error",
    ),
    "residual_lfq": Variant(
        "residual_lfq",
        "ResidualLFQ",
        source="Yu 2023; Zeghidour 2021",
        use="bits in stages",
    ),
    "grouped_residual_lfq": Variant(
        "grouped_residual_lfq",
        "GroupedResidualLFQ",
        source="Yang 2023; Yu 2023",
        use="the same for wide vectors",
    ),
    "binary_mapper": Variant(
        "binary_mapper",
        "BinaryMapper",
        source="Fleuret 2025",
        use="random bits with an exact gradient; free transformer",
    ),
    "random_projection": Variant(
        "random_projection",
        "RandomProjectionQuantizer",
        source="Chiu 2022",
        use="targets to predict; the encoder is not trained and stays random here",
    ),
    "multi_scale_vq": Variant(
        "multi_scale_vq",
        "MultiScaleVQ",
        source="Tian 2024",
        use="indices from coarse to fine, for next-scale prediction",
    ),
}
"""Quantizers by name, in the order of the table."""
