"""The data room: shard -> Sample -> Batch."""

from vlds.data.batch_cut import BatchCut
from vlds.data.decode import decode_image
from vlds.data.errors import BadSample, ErrorPolicy, ShardError
from vlds.data.eval_order import EvalOrder
from vlds.data.index import index_folder
from vlds.data.info import DatasetInfo, ShardInfo
from vlds.data.mixed_stream import MixedStream
from vlds.data.sequential import SequentialStream
from vlds.data.source import Source
from vlds.data.store import Dataset, open_dataset
from vlds.data.stream import EvalStream, TrainStream
from vlds.data.streamed_source import StreamedSource, open_streamed
from vlds.manifest import sha256 as file_sha256

__all__ = [
    "BadSample",
    "BatchCut",
    "Dataset",
    "DatasetInfo",
    "ErrorPolicy",
    "EvalOrder",
    "EvalStream",
    "MixedStream",
    "SequentialStream",
    "ShardError",
    "ShardInfo",
    "Source",
    "StreamedSource",
    "TrainStream",
    "decode_image",
    "file_sha256",
    "index_folder",
    "open_dataset",
    "open_streamed",
]
