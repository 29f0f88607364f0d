"""What a machine calls itself: /sys/class/dmi/id."""

from __future__ import annotations

from tests.lab.parts import Shape

PROVENANCE = "SMBIOS names as the makers' machines show them in dmidecode"


def files(shape: Shape) -> dict[str, str]:
    return {
        "/sys/class/dmi/id/sys_vendor": f"{shape.vendor}\n",
        "/sys/class/dmi/id/product_name": f"{shape.product}\n",
    }
