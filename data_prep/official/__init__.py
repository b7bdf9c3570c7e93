"""Publishers' data sets, one file each. A new one adds a line here."""

from data_prep.official import (
    aokvqa,
    coco,
    easy_vqa,
    flickr30k,
    gqa,
    nlvr2,
    okvqa,
    pretraining,
    refcoco,
    scienceqa,
    snli_ve,
    textvqa,
    value,
    vg,
    vqav2,
)

__all__ = [
    "aokvqa",
    "coco",
    "easy_vqa",
    "flickr30k",
    "gqa",
    "nlvr2",
    "okvqa",
    "pretraining",
    "refcoco",
    "scienceqa",
    "snli_ve",
    "textvqa",
    "value",
    "vg",
    "vqav2",
]
