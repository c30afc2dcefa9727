"""GPUs that a plan can be made for without having one: what their makers publish.

Sources: NVIDIA's architecture whitepapers (GA102, Ada, Blackwell RTX) and data sheets (L4, L40S, A100, H100). Tensor
figures are dense, with sums in float32. That of the RTX 3060, which no whitepaper lists, is twice its float32 figure,
as for every GA10x that one does list; that of the RTX 4070 Ti SUPER likewise, as for AD10x. Nothing here was measured.
"""

from dataclasses import dataclass

_GB, _TERA = 1e9, 1e12
_PCIE_4, _PCIE_5 = 31.5, 63.0
"""GB/s in one direction over 16 lanes: 16 or 32 GT/s each, 128 of 130 bits."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. memory: GB as it is sold, counted here as 10⁹ bytes, so that the 7 % to 2³⁰ cover what driver and CUDA
    take. bandwidth: of that memory, GB/s. bfloat16: TFLOPS of the tensor cores. float64: TFLOPS of a product, on tensor
    cores where these have it. host: of the link to the machine's memory, GB/s in one direction.
    """

    name: str
    memory: float
    bandwidth: float
    bfloat16: float
    float64: float
    host: float

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * _GB)

    @property
    def bandwidth_bytes(self) -> float:
        """Bytes a second."""
        return self.bandwidth * _GB

    @property
    def host_bytes(self) -> float:
        """Bytes a second."""
        return self.host * _GB

    @property
    def flops(self) -> float:
        """Operations a second in bfloat16 or float16."""
        return self.bfloat16 * _TERA

    @property
    def double_flops(self) -> float:
        """Operations a second in float64."""
        return self.float64 * _TERA


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("RTX 3060 12GB", 12, 360, 25.5, 0.199, _PCIE_4),
        Gpu("RTX 4070 Ti SUPER", 16, 672, 88.2, 0.689, _PCIE_4),
        Gpu("RTX 4080", 16, 717, 97.5, 0.761, _PCIE_4),
        Gpu("RTX 3090", 24, 936, 71.0, 0.556, _PCIE_4),
        Gpu("RTX 4090", 24, 1008, 165.2, 1.29, _PCIE_4),
        Gpu("RTX 5090", 32, 1792, 209.5, 1.64, _PCIE_5),
        Gpu("L4", 24, 300, 121.0, 0.473, _PCIE_4),
        Gpu("L40S", 48, 864, 362.0, 1.43, _PCIE_4),
        Gpu("A100 80GB", 80, 2039, 312.0, 19.5, _PCIE_4),
        Gpu("H100 SXM", 80, 3350, 989.4, 66.9, _PCIE_5),
    )
}
"""By name, in the order in which they are listed to people."""
