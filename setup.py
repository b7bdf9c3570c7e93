"""Lists the packages; everything else is in pyproject.toml.

data_prep/, recipes/, sweeps/ and ds_configs/ are at the top of the repository, where readers look
for them. They are installed inside `vlds`, so that a wheel takes no other name: `vlds data` finds
`vlds.data_prep`, and `vlds.runtime.process` the files.
"""

from setuptools import find_namespace_packages, setup

INSIDE = ("data_prep", "recipes", "sweeps", "ds_configs")


def folders(top: str) -> list[str]:
    """A folder and those in it: templates and recipes too, which setuptools takes for packages."""
    return find_namespace_packages(include=[top, f"{top}.*"], exclude=["*.__pycache__"])


setup(
    packages=[*folders("vlds"), *(f"vlds.{name}" for top in INSIDE for name in folders(top))],
    package_dir={f"vlds.{name}": name for name in INSIDE},
)
