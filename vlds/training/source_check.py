"""What a recipe names as frozen weights is what was written there: checked before anything is
built."""

from __future__ import annotations

from vlds.config import Recipe
from vlds.pretrained.files import damaged_source
from vlds.runtime.ranks import Ranks


def check_sources(recipe: Recipe, ranks: Ranks) -> None:
    """Compare weights and tokenizer in folders that vlds wrote with their hashes, on one rank of
    each machine. Collective.

    Errors: ValueError on all ranks that names the folder and the file.
    """
    sources = dict.fromkeys([*recipe.model.sources.values(), recipe.backbone.tokenizer or ""])
    wrong = None
    if ranks.local_rank == 0:
        wrong = next(filter(None, map(damaged_source, filter(None, sources))), None)
    gathered = ranks.gather(wrong)
    if (first := ranks.broadcast(gathered and next(filter(None, gathered), None))) is not None:
        raise ValueError(first)
