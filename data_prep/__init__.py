"""From official files to shards: one file a data set, one command line, `python -m data_prep`."""
