"""SPICE 1.0: agreement in objects, attributes and relations. Off by default.

The Java program comes with pycocoevalcap. The parser and the models that it needs do not, and it
runs on old Java only. Papers quote the mean of the captions' F values.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence

from vlds.runtime.folders import scratch_folder
from vlds.runtime.json_files import read_json
from vlds.tasks.metrics import coco_package
from vlds.tasks.metrics.plain_scores import mean

MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
LAST_JAVA = 15
"""From Java 16 on, SPICE's libraries cannot access Java's internal classes."""


def missing() -> str | None:
    """What is missing on this machine for SPICE, with the cure; None if nothing."""
    if (missing_package := coco_package.missing()) is not None:
        return missing_package
    library = coco_package.folder("spice") / "lib"
    if absent := [name for name in MODELS if not (library / name).is_file()]:
        return (
            f"{' and '.join(absent)} missing in {library} (take them from "
            "stanford-corenlp-full-2015-12-09.zip of the Stanford NLP group)"
        )
    if (version := java_version()) > LAST_JAVA:
        return f"SPICE 1.0 does not run on Java {version} (put Java 8 or 11 first in PATH)"
    return None


def java_version() -> int:
    """Major version of the `java` in PATH: 8, 11, 17, ..."""
    output = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    # Java 8 and before call themselves 1.8: 'version "1.8.0_392"', 'version "17.0.9"'.
    match = re.search(r'version "(?:1\.)?(\d+)', output)
    assert match is not None, output
    return int(match[1])


def spice(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """SPICE of tokenized captions against their tokenized references."""
    pairs = zip(captions, references, strict=True)
    entries = [
        {"image_id": index, "test": caption, "refs": list(given)}
        for index, (caption, given) in enumerate(pairs)
    ]
    # Its cache is gone afterwards, too: pycocoevalcap keeps one in site-packages.
    with scratch_folder() as scratch:
        inputs, outputs = scratch / "captions.json", scratch / "scores.json"
        inputs.write_text(json.dumps(entries), encoding="utf-8")
        command = ["java", "-Xmx8G", "-Dfile.encoding=UTF-8", "-jar", "spice-1.0.jar", str(inputs),
                   "-cache", str(scratch), "-out", str(outputs), "-subset", "-silent"]  # fmt: skip
        done = subprocess.run(command, cwd=coco_package.folder("spice"), capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(
                f"SPICE ended with exit code {done.returncode}: "
                f"{done.stderr.decode(errors='replace')[-500:]}"
            )
        scored = read_json(outputs)
    return mean([float(entry["scores"]["All"]["f"]) for entry in scored])
