"""The data room: shard -> Sample -> Batch."""

from vlds.data.decode import decode_image
from vlds.data.errors import BadSample, ErrorPolicy, ShardError
from vlds.data.index import DatasetInfo, ShardInfo, index_folder
from vlds.data.source import Source
from vlds.data.store import Dataset, open_dataset
from vlds.data.stream import EvalStream, TrainStream

__all__ = [
    "BadSample",
    "Dataset",
    "DatasetInfo",
    "ErrorPolicy",
    "EvalStream",
    "ShardError",
    "ShardInfo",
    "Source",
    "TrainStream",
    "decode_image",
    "index_folder",
    "open_dataset",
]
