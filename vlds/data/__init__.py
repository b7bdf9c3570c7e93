"""The data room: shard -> Sample -> Batch."""

from vlds.data.errors import BadSample, ErrorPolicy, ShardError
from vlds.data.index import DatasetInfo, ShardInfo

__all__ = ["BadSample", "DatasetInfo", "ErrorPolicy", "ShardError", "ShardInfo"]
