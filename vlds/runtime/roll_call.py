"""The hosts of a run by name: which has not come, which has other software, which is silent.

torch's process group says that somebody is missing after the whole timeout, and not who; then the
log of a thousand ranks has a thousand lines. So before ranks of several machines join a group, each
reports to the store that the first rank keeps for all of them anyway, and the first rank says in
one line what is odd. Afterwards each machine gives a sign of life every few seconds. The steps of
this do not grow with the number of ranks; the store's work does, by a few messages a rank.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import accumulate, chain, groupby

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from vlds.runtime.cluster import software
from vlds.runtime.rank_environment import RankPlace, expand_nodes
from vlds.runtime.terminal import tell

MISSED_S = 30.0
"""Seconds until a host that has not come, or is silent, is named."""
LOOK_S = 0.2
BEAT_S = 5.0
MOST_NAMED = 5
PACE_S = 10.0
"""Seconds of training after which ranks are compared."""
SLOW, SLOW_SHARE = 2.0, 0.1
"""A rank is slow that needs so many times the seconds of most ranks for what it does alone, if that
is so much of the time of all: batches differ too."""
HEAR_S = 5.0
"""Seconds in which ranks hear that the run does not start, once all should be here."""
MISTAKE, MISSING = 2, 1
"""Exit codes of a run that does not start."""


@dataclass(frozen=True)
class Hosts:
    """Names of the machines on which ranks run."""

    of_ranks: Sequence[str]
    """The machine of each rank."""

    @classmethod
    def planned(cls, place: RankPlace) -> Hosts:
        """As the ranks have told, or else as the launcher has planned; numbers without names."""
        plan = _of_deepspeed() or {}
        names = list(plan) or expand_nodes(os.environ.get("SLURM_JOB_NODELIST", ""))
        sizes = place.machine_sizes or tuple(plan.values())
        if sum(sizes) != place.world_size:
            # Machines may have different numbers of ranks; only this one's is known.
            size = place.local_world_size
            sizes = (size,) * -(-place.world_size // size)
        if len(names) != len(sizes):
            names = [f"machine {n + 1} of {len(sizes)}" for n in range(len(sizes))]
        ranks = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
        return cls(ranks[: place.world_size])

    def named(self, ranks: Iterable[int]) -> str:
        """The machines of some ranks: "node17 (ranks 136 to 143)"."""
        parts = []
        for name, group in groupby(sorted(ranks), key=lambda rank: self.of_ranks[rank]):
            numbers = list(group)
            first, last = numbers[0], numbers[-1]
            which = f"rank {first}" if first == last else f"ranks {first} to {last}"
            some = "" if last - first == len(numbers) - 1 else f"{len(numbers)} of "
            parts.append(f"{name} ({some}{which})")
        more = len(parts) - MOST_NAMED
        return ", ".join(parts[:MOST_NAMED]) + (f" and {more} more hosts" if more > 0 else "")


def _of_deepspeed() -> dict[str, int] | None:
    """Host -> ranks, from the words of DeepSpeed's launcher, which has started this rank."""
    with suppress(psutil.Error, ValueError, AttributeError):
        for word in psutil.Process(os.getppid()).cmdline():
            option, _, value = word.partition("=")
            if option == "--world_info":
                slots = json.loads(base64.urlsafe_b64decode(value))
                return {name: len(numbers) for name, numbers in slots.items()}
    return None


def call_roll(place: RankPlace, timeout_s: float) -> tuple[int, ...]:
    """Wait until all ranks of a run on several machines are here, and say who is not. Collective.
    Returns the number of ranks of each machine.

    Errors: SystemExit, after a line of the first rank, if a host has other software or ranks in
    another order (`MISTAKE`), or does not come (`MISSING`).
    """
    if place.world_size == place.local_world_size:
        return (place.world_size,)
    hosts, begin = Hosts.planned(place), time.monotonic()
    end = begin + timeout_s
    store = _store(place, hosts, end)
    rank, mine = place.global_rank, software()
    if rank == 0:
        store.set("software", json.dumps(mine))
    first: dict[str, str] = json.loads(store.get("software"))
    odd = _difference(first, mine)
    store.set(f"rank/{rank}", odd)
    if odd:
        store.add("odd", 1)
    if place.local_rank == 0:
        store.set(f"size/{rank}", str(place.local_world_size))
    store.add("come", 1)
    sizes: list[int] = []
    if rank == 0:
        code = _look(store, place, hosts, end)
        # Machine by machine: the next one begins where the ranks of the last one end.
        while not code and (next_rank := sum(sizes)) < place.world_size:
            if store.check([key := f"size/{next_rank}"]):
                sizes.append(int(store.get(key)))
            else:
                _say(
                    f"rank {next_rank} is not the first of its machine: number ranks machine by "
                    "machine (srun --distribution=block, mpirun --map-by slot)"
                )
                code = MISTAKE
        store.set("verdict", json.dumps([code, sizes]))
        if code:
            # Those that have come would else lose the store before they have read it, and say so;
            # those whose hosts are slower would look for it for a long time.
            deadline, expected = time.monotonic() + HEAR_S, store.add("come", 0)
            if code == MISTAKE:
                deadline, expected = max(deadline, begin + MISSED_S), place.world_size
            while store.add("heard", 0) < expected - 1 and time.monotonic() < deadline:
                time.sleep(LOOK_S)
            store.set("end", "")
    else:
        # Until the first rank gives up, and a little longer.
        store.set_timeout(timedelta(seconds=max(1.0, end - time.monotonic()) + HEAR_S))
        code, sizes = json.loads(store.get("verdict"))
        store.add("heard", 1)
        if code and rank == place.local_rank:
            # Until the first rank ends: launchers end a machine's ranks with the first that fails.
            with suppress(dist.DistError):
                store.get("end")
    if code:
        sys.exit(code)
    if place.local_rank == 0:
        watch = _watch if rank == 0 else _beat
        place = replace(place, machine_sizes=tuple(sizes))
        hosts = Hosts.planned(place)
        threading.Thread(target=watch, args=(store, place, hosts), daemon=True).start()
    return tuple(sizes)


def _store(place: RankPlace, hosts: Hosts, end: float) -> Store:
    """The store on the first rank, which torch's process group uses too."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun keeps the store itself, also through its restarts.
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = place.global_rank == 0 and not is_agents
    # The last rank, on another machine, speaks for all, if the first one does not answer.
    speaks = place.global_rank == place.world_size - 1
    while True:
        left = end - time.monotonic()
        seconds = min(left, MISSED_S) if speaks else left
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]  # torch's types forget it
                host, port, place.world_size, serves, timedelta(seconds=max(1.0, seconds)),
                wait_for_workers=False, multi_tenant=True,
            )  # fmt: skip
            break
        except dist.DistError:
            if serves:
                raise
            is_last = left <= seconds
            if speaks:
                waits = "" if is_last else f"; the others wait for it {left - seconds:.0f} s more"
                _say(
                    f"the first host, {hosts.of_ranks[0]}, does not answer for {seconds:.0f} s at "
                    f"{host}:{port}{waits}"
                )
            if is_last:
                sys.exit(1)
    store.set_timeout(timedelta(seconds=max(1.0, end - time.monotonic())))
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"vlds/{again}", store)


def _look(store: Store, place: RankPlace, hosts: Hosts, end: float) -> int:
    """On the first rank: wait for the others, and say who is odd; the exit code, 0 if all have come
    with the same software."""
    begin = time.monotonic()
    say_at, late = begin + MISSED_S, ""
    while (here := store.add("come", 0)) < place.world_size or store.add("odd", 0):
        now = time.monotonic()
        missing = []
        if store.add("odd", 0) or now > min(say_at, end):
            missing = [n for n in range(place.world_size) if not store.check([f"rank/{n}"])]
        if store.add("odd", 0):
            come = sorted(set(range(place.world_size)) - set(missing))
            faults = {n: fault for n in come if (fault := store.get(f"rank/{n}").decode())}
            _say(
                f"{hosts.named(faults)} has other software than the first host "
                f"({next(iter(faults.values()))}); install the same on all machines"
            )
            return MISTAKE
        if now > end:
            _say(f"{hosts.named(missing)} did not come in {now - begin:.0f} s; start again")
            return MISSING
        if now > say_at and here < place.world_size:
            late = hosts.named(missing)
            _say(
                f"{late} has not come {now - begin:.0f} s after the first rank; the others wait "
                f"{end - now:.0f} s more (training.collective_timeout)"
            )
            say_at = begin + 2 * (now - begin)
        time.sleep(LOOK_S)
    if late:
        _say(f"all {place.world_size:,} ranks are here after {time.monotonic() - begin:.0f} s")
    return 0


def _difference(first: Mapping[str, str], mine: Mapping[str, str]) -> str:
    """What this host has in another version than the first; "" for nothing."""
    return ", ".join(
        f"{name}: {mine.get(name, 'missing')} there, {first.get(name, 'missing')} here"
        for name in dict.fromkeys((*first, *mine))
        if first.get(name) != mine.get(name)
    )


def _beat(store: Store, place: RankPlace, hosts: Hosts) -> None:
    """On the first rank of a machine: give signs of life, as long as the process works."""
    own = store.clone()  # type: ignore[attr-defined]  # torch's types forget it
    with suppress(dist.DistError, RuntimeError):
        while True:
            own.set(f"beat/{place.global_rank}", str(time.monotonic()))
            time.sleep(BEAT_S)
    if place.global_rank == place.machine_sizes[0]:  # the second machine speaks for all
        _say(f"the first host, {hosts.of_ranks[0]}, does not answer any more")


def _watch(store: Store, place: RankPlace, hosts: Hosts) -> None:
    """On the first rank: say which machine is silent, and when it is back."""
    own = store.clone()  # type: ignore[attr-defined]
    # A machine goes by its first rank.
    sizes = place.machine_sizes
    firsts = accumulate(sizes, initial=0)
    ranks = {first: range(first, first + size) for first, size in zip(firsts, sizes, strict=False)}
    last: dict[int, tuple[bytes, float]] = {}
    silent: set[int] = set()
    begin = time.monotonic()
    with suppress(dist.DistError, RuntimeError):
        while True:
            now = time.monotonic()
            for first in ranks.keys() - {0}:
                beat = own.get(key) if own.check([key := f"beat/{first}"]) else b""
                if last.setdefault(first, (b"", begin))[0] != beat:
                    last[first] = beat, now
            lost = {first for first, (_, since) in last.items() if now - since > MISSED_S}
            for first in sorted(silent - lost):
                _say(f"{hosts.named(ranks[first])} is back")
            if new := lost - silent:
                names = hosts.named(chain(*(ranks[first] for first in new)))
                _say(
                    f"nothing was heard of {names} for {MISSED_S:.0f} s: the host or its network "
                    "is down, or it hangs; the others end training.collective_timeout seconds "
                    "after they began to wait for it"
                )
            silent = lost
            time.sleep(BEAT_S)


class Pace:
    """Names ranks for which all others wait."""

    def __init__(self, place: RankPlace) -> None:
        self._place = place
        self._hosts = Hosts.planned(place)
        self._slow: set[int] = set()
        self._own, self._elapsed = torch.zeros(2, place.world_size), 0.0

    def line(self, own: Tensor, elapsed: float) -> str:
        """What is new about slow ranks; "" for nothing. `own`: (2, ranks), the seconds of the last
        `elapsed` ones in which each waited for data, and in which it computed forward passes: what
        a rank does alone, before the others wait for its gradients."""
        own, elapsed = self._own + own, self._elapsed + elapsed
        if elapsed < PACE_S:
            self._own, self._elapsed = own, elapsed
            return ""
        self._own, self._elapsed = torch.zeros_like(own), 0.0
        alone = own.sum(0)
        middle = float(alone.median())  # the lower one of two
        late = (alone > SLOW * middle) & (alone - middle > SLOW_SHARE * elapsed)
        slow = set(late.nonzero().flatten().tolist())
        if slow == self._slow:
            return ""
        back, self._slow = self._slow - slow, slow
        if not slow:
            return f"{self._named(back)}: as fast as the others again"
        (data, forward), (data_of_most, forward_of_most) = (
            own[:, sorted(slow)].mean(1).tolist(), own.median(1).values.tolist()
        )  # fmt: skip
        return (
            f"{self._named(slow)}: slow, and all others wait; of {elapsed:.3g} s, {data:.3g} s "
            f"went into waiting for data and {forward:.3g} s into forward passes, for most ranks "
            f"{data_of_most:.3g} and {forward_of_most:.3g} s"
        )

    def _named(self, ranks: Iterable[int]) -> str:
        if self._place.world_size > self._place.local_world_size:
            return self._hosts.named(ranks)
        return ", ".join(f"rank {rank}" for rank in sorted(ranks))


def _say(message: str) -> None:
    tell(f"vlds: {message}", error=True, flush=True)
