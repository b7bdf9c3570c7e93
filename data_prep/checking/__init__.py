"""`verify`: every byte, picture, id and annotation of packed data sets."""
