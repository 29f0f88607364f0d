"""Healthy machines for the NVML stand-in, as its "key=value" lines.

Figures from the makers' data sheets and from the output of `nvidia-smi -q` as NVIDIA documents it; nothing
here was measured. What a card does not have is not named, and then is NOT_SUPPORTED.
"""

from __future__ import annotations

#: The PCI addresses of a DGX H100's GPUs, in NVML's order.
DGX_H100 = (
    "0000:18:00.0", "0000:2a:00.0", "0000:3a:00.0", "0000:5d:00.0",
    "0000:9a:00.0", "0000:ab:00.0", "0000:ba:00.0", "0000:db:00.0",
)  # fmt: skip
#: Of a DGX A100.
DGX_A100 = (
    "0000:07:00.0", "0000:0f:00.0", "0000:47:00.0", "0000:4e:00.0",
    "0000:87:00.0", "0000:90:00.0", "0000:b7:00.0", "0000:bd:00.0",
)  # fmt: skip
#: Of a DGX B200.
DGX_B200 = (
    "0000:1b:00.0", "0000:43:00.0", "0000:52:00.0", "0000:61:00.0",
    "0000:9d:00.0", "0000:c3:00.0", "0000:d1:00.0", "0000:df:00.0",
)  # fmt: skip
#: Of a GB200 compute tray: a PCI domain for each GPU.
TRAY_GB200 = ("0008:01:00.0", "0009:01:00.0", "0018:01:00.0", "0019:01:00.0")
#: Of a board with eight MI300X.
OAM_MI300X = (
    "0000:05:00.0", "0000:26:00.0", "0000:46:00.0", "0000:65:00.0",
    "0000:85:00.0", "0000:a6:00.0", "0000:c6:00.0", "0000:e5:00.0",
)  # fmt: skip
#: Of an EC2 p5.48xlarge, each after its four EFA devices.
EC2_P5 = (
    "0000:53:00.0", "0000:64:00.0", "0000:75:00.0", "0000:86:00.0",
    "0000:97:00.0", "0000:a8:00.0", "0000:b9:00.0", "0000:ca:00.0",
)  # fmt: skip
#: Of an Azure ND96isr_H100_v5: a PCI domain for each, as ndv5-topo.xml of Azure's images has them.
AZURE_ND = (
    "0001:00:00.0", "0002:00:00.0", "0003:00:00.0", "0008:00:00.0",
    "0009:00:00.0", "000a:00:00.0", "000b:00:00.0", "000c:00:00.0",
)  # fmt: skip
DGX_V100 = ("0000:06:00.0", "0000:07:00.0")
WORKSTATION = ("0000:01:00.0",)

H100_VALUES = """
driver=570.133.20
nvml=12.570.133.20
cuda=12080
name=NVIDIA H100 80GB HBM3
vbios=96.00.89.00.01
inforom=G520.0200.00.05
inforom_valid=1
gsp=570.133.20
pci_subsystem=0x16c110de
virtualization=0
temperature=31
margin=56
shutdown=92
slowdown=89
gpu_max=87
memory_max=95
field.82=41
field.193=i-8
field.194=i-2
field.196=i0
power_mw=72300
power_limit_mw=700000
power_default_limit_mw=700000
power_min_limit_mw=200000
power_max_limit_mw=700000
energy_mj=81234567
sm_clock=345
sm_clock_max=1980
memory_clock=2619
memory_clock_max=2619
application_clock=1980
application_clock_default=1980
throttle=0x1
violation.0=0
violation.1=0
violation.3=0
violation.5=0
utilisation=0
memory_utilisation=0
memory_total=85520809984
memory_used=0
memory_reserved=543817728
ecc=1
ecc_default=1
ecc_locations=dram,sram
sram_threshold_exceeded=0
remap.correctable=0
remap.histogram=2560,0,0,0,0
memory_unrepairable=0
repair_pending.channel=0
repair_pending.tpc=0
persistence=1
display_active=0
compute_mode=0
mig=0
field.230=0
pcie_generation=5
pcie_generation_max=5
pcie_width=16
pcie_width_max=16
pcie_replay=0
nvlinks=18
field.164=26562
field.38=0
field.45=0
field.52=0
field.59=0
fabric.state=3
fabric.status=0
fabric.clique=0
fabric.summary=1
p2p=0
"""


def _changed(lines: str, **changes: str) -> str:
    """`lines` with other values; a dot in a key is written as two underscores."""
    new = {key.replace("__", "."): value for key, value in changes.items()}
    kept = [line for line in lines.strip().splitlines() if line.split("=")[0] not in new]
    return "\n".join(["", *kept, *(f"{key}={value}" for key, value in new.items()), ""])


H200_VALUES = _changed(
    H100_VALUES, name="NVIDIA H200", vbios="96.00.BC.00.01", memory_total="150754820096",
    memory_clock="3201", memory_clock_max="3201",
)  # fmt: skip
B200_VALUES = _changed(
    H100_VALUES, name="NVIDIA B200", vbios="97.00.82.00.24", memory_total="192265846784",
    power_mw="142000", power_limit_mw="1000000", power_default_limit_mw="1000000",
    power_min_limit_mw="200000", power_max_limit_mw="1000000",
    sm_clock="120", sm_clock_max="1965", memory_clock="3996",
    memory_clock_max="3996", field__164="53125", field__208="0", field__214="0", field__215="0",
    field__220="0xfff", field__222="0xfff",
)  # fmt: skip
GB200_VALUES = _changed(
    B200_VALUES, name="NVIDIA GB200", vbios="97.00.82.00.2B", memory_total="198674743296",
    power_mw="163000", power_limit_mw="1200000", power_default_limit_mw="1200000",
    power_max_limit_mw="1200000", sm_clock_max="2062", fabric__clique="32766",
    fabric__cluster="00000000-0000-4000-8000-000000000001",
)  # fmt: skip

A100_VALUES = """
driver=535.161.08
nvml=12.535.161.08
cuda=12020
name=NVIDIA A100-SXM4-80GB
vbios=92.00.45.00.03
inforom=G506.0200.00.04
inforom_valid=1
gsp=535.161.08
pci_subsystem=0x146310de
virtualization=0
temperature=29
shutdown=92
slowdown=89
gpu_max=85
memory_max=95
field.82=30
power_mw=61200
power_limit_mw=400000
power_default_limit_mw=400000
power_min_limit_mw=100000
power_max_limit_mw=400000
energy_mj=71234567
sm_clock=210
sm_clock_max=1410
memory_clock=1593
memory_clock_max=1593
application_clock=1410
application_clock_default=1275
throttle=0x1
violation.1=0
utilisation=0
memory_utilisation=0
memory_total=85899345920
memory_used=0
memory_reserved=620756992
ecc=1
ecc_default=1
ecc_locations=dram,sram
remap.correctable=0
remap.histogram=640,0,0,0,0
persistence=1
display_active=0
compute_mode=0
mig=0
pcie_generation=4
pcie_generation_max=4
pcie_width=16
pcie_width_max=16
pcie_replay=0
nvlinks=12
field.164=25000
field.38=0
field.45=0
field.52=0
field.59=0
p2p=0
"""

V100_VALUES = """
driver=535.161.08
nvml=12.535.161.08
cuda=12020
name=Tesla V100-SXM2-32GB
vbios=88.00.80.00.01
temperature=33
shutdown=90
slowdown=87
gpu_max=83
memory_max=85
field.82=32
power_mw=42000
power_limit_mw=300000
sm_clock=135
sm_clock_max=1530
throttle=0x1
memory_total=34359738368
memory_used=0
ecc=1
ecc_default=1
ecc_locations=dram
field.29=0
field.30=0
retired_pending=0
persistence=1
display_active=0
compute_mode=0
pcie_generation=3
pcie_generation_max=3
pcie_width=16
pcie_width_max=16
nvlinks=6
"""

GEFORCE_VALUES = """
driver=570.133.20
nvml=12.570.133.20
cuda=12080
name=NVIDIA GeForce RTX 3060
vbios=94.06.14.00.B2
temperature=44
shutdown=98
slowdown=95
gpu_max=93
power_mw=15200
power_limit_mw=170000
sm_clock=210
sm_clock_max=2130
throttle=0x1
memory_total=12884901888
memory_used=412090368
persistence=0
display_active=1
compute_mode=0
pcie_generation=1
pcie_generation_max=4
pcie_width=16
pcie_width_max=16
"""


def profile(lines: str, addresses: tuple[str, ...]) -> str:
    """`lines` for all GPUs, and for each its number, address, UUID and serial."""
    own = []
    for index, address in enumerate(addresses):
        own += [
            f"{index}.pci={address}",
            f"{index}.minor={index}",
            f"{index}.uuid=GPU-00000000-0000-4000-8000-{index:012d}",
            f"{index}.serial=16500000000{index:02d}",
        ]
    return "\n".join([lines.strip(), f"count={len(addresses)}", *own, ""])


H100 = profile(H100_VALUES, DGX_H100)
A100 = profile(A100_VALUES, DGX_A100)
V100 = profile(V100_VALUES, DGX_V100)
GEFORCE = profile(GEFORCE_VALUES, WORKSTATION)
