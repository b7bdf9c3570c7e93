"""From official files to shards: one file a data set, one command line, `vlds data`.

A wheel holds this package as `vlds.data_prep`: `data_prep` is a name that others use too. So its
modules name each other relative to it.
"""
