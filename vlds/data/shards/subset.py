"""Some samples of a data set: a few of each class, or some classes."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from vlds.data.shards.class_numbers import NO_CLASS
from vlds.data.shards.store import Dataset
from vlds.schema import Sample


class Subset(Dataset):
    """Some samples of a data set, numbered from 0 in its order."""

    def __init__(self, whole: Dataset, chosen: NDArray[np.int64]) -> None:
        """`chosen`: numbers of samples, rising."""
        # Not by Dataset's __init__, which reads the index: both use one index and the same files.
        vars(self).update(vars(whole))
        self._whole, self.chosen = whole, chosen
        self._print = sha256(chosen.tobytes()).hexdigest()[:16]
        self.key = f"{whole.key}#{self._print}"
        ends = np.cumsum([len(counts) for counts in whole.counts])
        cuts = np.searchsorted(chosen, ends[:-1])
        self.counts = np.split(np.concatenate(whole.counts)[chosen], cuts)
        self.pictures = np.split(np.concatenate(whole.pictures)[chosen], cuts)
        self.num_samples = len(chosen)
        self.num_annotations = int(np.concatenate(self.counts).sum())
        places = {int(number): place for place, number in enumerate(chosen)}
        self.quarantine = {places[n]: f for n, f in whole.quarantine.items() if n in places}

    def fingerprint(self) -> str:
        """Changes with the bytes of any shard, and with the choice."""
        return sha256(f"{self._whole.fingerprint()} {self._print}".encode()).hexdigest()[:16]

    def class_numbers(self) -> NDArray[np.int64]:
        return self._whole.class_numbers()[self.chosen]

    def shard_of(self, sample: int) -> str:
        return self._whole.shard_of(int(self.chosen[sample]))

    def read(self, sample: int) -> Sample:
        return self._whole.read(int(self.chosen[sample]))


def of_classes(dataset: Dataset, names: tuple[str, ...]) -> Subset:
    """The samples of some classes."""
    classes = dataset.info.classes or ()
    wanted = [number for number, name in enumerate(classes) if name in set(names)]
    return Subset(dataset, np.flatnonzero(np.isin(dataset.class_numbers(), wanted)))


def few_shots(dataset: Dataset, shots: int, seed: int) -> Subset:
    """Samples drawn for each class, `shots` of each that has any.

    A class's draw depends on the seed and its name, and more shots contain the fewer. Errors:
    ValueError for a class with too few samples, or none with a label.
    """
    numbers, chosen = dataset.class_numbers(), []
    classes = dataset.info.classes or ()
    for number in np.unique(numbers[numbers != NO_CLASS]):
        samples = np.flatnonzero(numbers == number)
        name = classes[number]
        if len(samples) < shots:
            raise ValueError(
                f"shots: {shots}, but data set {dataset.folder} has {len(samples)} of class "
                f"{name!r}; give at most {len(samples)}"
            )
        words = sha256(f"{seed}/{name}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(words, np.uint32))
        chosen.append(rng.permutation(samples)[:shots])
    if not chosen:
        raise ValueError(
            f"shots: {shots}, but no sample of data set {dataset.folder} has a label; name a split "
            "for training"
        )
    return Subset(dataset, np.sort(np.concatenate(chosen)))
