"""Models with fewer bits per weight: DiffQ and the baselines it is compared with."""

from sonorant.quantization.diffq import DiffQ, DiffQConfig
from sonorant.quantization.lsq import LSQ
from sonorant.quantization.quantizer import Choice, Quantizer
from sonorant.quantization.uniform import UniformQuantizer

__all__ = ["LSQ", "Choice", "DiffQ", "DiffQConfig", "Quantizer", "UniformQuantizer"]
