"""The package pycocoevalcap with the official caption scorers, and the tokenizer they all need.

We never call its `COCOEvalCap`: that always creates SPICE, which downloads 360 MB. We start its
Java programs ourselves, because its own wrappers write temporary files into site-packages and leave
processes behind.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def missing() -> str | None:
    """What is missing on this machine for the official scores, with the cure; None if nothing."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap is missing (pip install 'vlds[coco]')"
    if shutil.which("java") is None:
        return "java is missing (install a Java runtime, such as openjdk-17-jre-headless)"
    return None


def folder(part: str) -> Path:
    """Folder of a part of the package: "meteor", "spice", "tokenizer"."""
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / part


def penn_treebank_tokens(texts: Sequence[str]) -> list[str]:
    """Tokenize like pycocoevalcap: each text becomes one line of tokens.

    Its own wrapper writes a temporary file into site-packages. There a text with a line break that
    only Java knows (U+2028, a carriage return) shifts all later texts by a line. Here texts go
    through a pipe with white space collapsed, and the lines are counted.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = folder("tokenizer") / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    # -preserveLines: a line of tokens for each line. Otherwise every token gets its own line.
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar),
               "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase",
               "-encoding", "UTF-8"]  # fmt: skip
    lines = "".join(" ".join(text.split()) + "\n" for text in texts).encode(errors="replace")
    # A million captions take a minute or two.
    done = subprocess.run(command, input=lines, capture_output=True, timeout=1800)
    # Every line ends in a break, so an empty piece comes last.
    tokens = done.stdout.decode().split("\n")[:-1]
    if done.returncode != 0 or len(tokens) != len(texts):
        raise RuntimeError(
            f"the Penn Treebank tokenizer returned {len(tokens)} lines for {len(texts)} captions "
            f"(exit code {done.returncode}): {done.stderr.decode(errors='replace')[-500:]}"
        )
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    # Split at blanks alone, as the package does: "3 1/2" has a no-break space and is one token.
    return [
        " ".join(word for word in line.rstrip().split(" ") if word not in dropped)
        for line in tokens
    ]
