"""Publishers' data sets, one file each."""
