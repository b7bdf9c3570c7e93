"""Lists the packages; everything else is in pyproject.toml.

recipes/, sweeps/ and ds_configs/ are at the top of the repository, where readers look for them.
They are installed as data of `vlds`, where `vlds.runtime.process` looks for them.
"""

from setuptools import find_packages, setup

DATA = {f"vlds.{name}": name for name in ("recipes", "sweeps", "ds_configs")}

setup(
    packages=[*find_packages(include=["vlds", "vlds.*", "data_prep", "data_prep.*"]), *DATA],
    package_dir=DATA,
)
