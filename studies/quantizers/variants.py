"""Rows of the table of quantizers, by the name of their recipe in :mod:`vqjax.quantizers.recipes`.

The name is all that a record says of a row, so another recipe needs another name.
"""

from typing import NamedTuple


class Variant(NamedTuple):
    """One quantizer.

    Attributes:
      kind: Name of the class in :mod:`vqjax`.
      source: The paper.
      use: When to choose it.
    """

    kind: str
    source: str
    use: str


VARIANTS = {
    "vq": Variant(
        "VectorQuantizer",
        source="van den Oord 2017; Fifty 2025",
        use="the default; learned codes",
    ),
    "product_vq": Variant(
        "ProductVQ",
        source="Jégou 2011",
        use="many vectors from small codebooks, side by side",
    ),
    "residual_vq": Variant(
        "Residual(VectorQuantizer)",
        source="Zeghidour 2021",
        use="variable bit rates; audio",
    ),
    "grouped_residual_vq": Variant(
        "Grouped(Residual(VectorQuantizer))",
        source="Yang 2023",
        use="residual stages for wide vectors",
    ),
    "sim_vq": Variant(
        "SimVQ",
        source="Zhu 2024",
        use="large codebooks without dead codes",
    ),
    "residual_sim_vq": Variant(
        "Residual(SimVQ)",
        source="Zhu 2024",
        use="the same, in stages",
    ),
    "ibq": Variant(
        "IBQ",
        source="Shi 2025",
        use="large codebooks in which every vector trains all codes",
    ),
    "fsq": Variant(
        "FSQ",
        source="Mentzer 2023",
        use="nothing to learn, no collapse; few features",
    ),
    "residual_fsq": Variant(
        "Residual(FSQ)",
        source="Mentzer 2023; Zeghidour 2021",
        use="the same at higher rates",
    ),
    "grouped_residual_fsq": Variant(
        "Grouped(Residual(FSQ))",
        source="Yang 2023; Mentzer 2023",
        use="the same for wide vectors",
    ),
    "fsp": Variant(
        "FSP",
        source="arXiv 2602.17133",
        use="decoders that have to tolerate noise, such as before diffusion",
    ),
    "latent": Variant(
        "LatentQuantizer",
        source="Hsu 2023",
        use="features with few learned values each; disentanglement",
    ),
    "lfq": Variant(
        "LFQ",
        source="Yu 2023",
        use="2^14 codes and more, for models of indices",
    ),
    "bsq": Variant(
        "BSQ",
        source="Zhao 2024",
        use="the same with a bounded error",
    ),
    "residual_lfq": Variant(
        "Residual(LFQ)",
        source="Yu 2023; Zeghidour 2021",
        use="bits in stages",
    ),
    "grouped_residual_lfq": Variant(
        "Grouped(Residual(LFQ))",
        source="Yang 2023; Yu 2023",
        use="the same for wide vectors",
    ),
    "binary_mapper": Variant(
        "BinaryMapper",
        source="Fleuret 2025",
        use="random bits with an exact gradient; free transformer",
    ),
    "random_projection": Variant(
        "RandomProjectionQuantizer",
        source="Chiu 2022",
        use="targets to predict; the encoder is not trained and stays random here",
    ),
    "multi_scale_vq": Variant(
        "MultiScaleVQ",
        source="Tian 2024",
        use="indices from coarse to fine, for next-scale prediction",
    ),
}
"""Quantizers by name, in the order of the table."""
