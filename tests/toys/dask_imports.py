"""What the tests' Dask workers are forked with: imports that would take each of them seconds."""

from data_prep import cli as packing  # noqa: F401
from data_prep.checking import verify  # noqa: F401
from tests.toys import deadly_encoder  # noqa: F401
from vlds.evaluation import features  # noqa: F401
