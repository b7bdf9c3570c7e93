"""The Penn Treebank tokenizer that every official caption score reads through (Java)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from vlds.metrics import coco_package

SECONDS = 1800
"""After which the tokenizer is given up; a million captions take a minute or two."""


def penn_treebank_tokens(texts: Sequence[str]) -> list[str]:
    """Tokenize as pycocoevalcap does, one text in, one line of tokens out.

    Its own wrapper writes a temporary file into site-packages, and a text with a line break that
    only Java knows (U+2028, a carriage return) shifts all later ones by a line: here texts go
    through a pipe, white space is collapsed first, and the lines are counted.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = coco_package.folder("tokenizer") / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar),
               "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase",
               "-encoding", "UTF-8"]  # fmt: skip
    lines = "".join(" ".join(text.split()) + "\n" for text in texts).encode(errors="replace")
    done = subprocess.run(command, input=lines, capture_output=True, timeout=SECONDS)
    tokens = done.stdout.decode().split("\n")[:-1]
    if done.returncode != 0 or len(tokens) != len(texts):
        raise RuntimeError(
            f"the Penn Treebank tokenizer returned {len(tokens)} lines for {len(texts)} captions "
            f"(exit code {done.returncode}): {done.stderr.decode(errors='replace')[-500:]}"
        )
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    # Split at blanks alone, as the package does: "3 1/2" is one token, with another kind of space.
    return [
        " ".join(word for word in line.rstrip().split(" ") if word not in dropped)
        for line in tokens
    ]
