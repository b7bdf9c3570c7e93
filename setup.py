"""Lists the packages; everything else is in pyproject.toml.

data_prep/, recipes/, sweeps/ and ds_configs/ are at the top of the repository, where readers look
for them. They are installed inside `vlds`, so that a wheel takes no other name: `vlds data` finds
`vlds.data_prep`, and `vlds.runtime.process` the files.
"""

from setuptools import find_packages, setup

INSIDE = {f"vlds.{name}": name for name in ("data_prep", "recipes", "sweeps", "ds_configs")}

setup(
    packages=[
        *find_packages(include=["vlds", "vlds.*"]),
        *(f"vlds.{name}" for name in find_packages(include=["data_prep.*"])),
        *INSIDE,
    ],
    package_dir=INSIDE,
)
