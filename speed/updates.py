"""What an update is worth: a frozen model, one updated daily and one trained anew, on the days after a split in time.

A model is trained on all interactions before a moment. On the days after it, each interaction is predicted from the
user's history up to it (an empty one, too), among all items that had been taken before that day:

    frozen     the model as it was; histories grow, counts do not, items it does not know it cannot rank
    updated    `with_items` and `with_interactions` at the start of each day, networks as they were
    retrained  trained on everything before the day, at the start of every `--every` days

`ndcg@10` is the mean over interactions, with the standard error over them; a target that the model does not know, or
does not rank among the first ten, counts 0.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import data, machine, parser, report, workplace

import recbole_cafe
from recbole_cafe.export import export
from recbole_cafe.recommend.recommender import Recommender

DAY = 86_400.0
K = 10


def main() -> None:
    """Train, walk through the days, report."""
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--models", default="IntentBackoff,CaFePlus", help="of: %(default)s")
    arguments.add_argument("--epochs", type=int, default=12, help="of a training (default: %(default)s)")
    arguments.add_argument("--before", type=float, default=0.9, help="share of interactions before the split")
    arguments.add_argument("--every", type=int, default=3, help="days between two trainings (default: %(default)s)")
    options = arguments.parse_args()
    with workplace(options) as folder:
        source = data(options, folder)
        clicks, items = read(source.folder / source.name)
        start = np.quantile(clicks.time, options.before)
        models = {name: measure(name, clicks, items, start, folder, options) for name in options.models.split(",")}
        best = list(models)[-1]
        report(
            options, "updates", ours=models[best]["updated"]["ndcg@10"], theirs=models[best]["frozen"]["ndcg@10"],
            unit=f"ndcg@{K} of the interactions after the split", models=models,
            data=source.facts, epochs=options.epochs, before=options.before, every=options.every,
            machine=machine(options),
        )  # fmt: skip


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Interactions in the order of time, and items with their intents."""
    clicks = pd.read_csv(folder / f"{folder.name}.inter", sep="\t", dtype=str)
    clicks.columns = ["user", "item", "time"]
    clicks["time"] = clicks.time.astype(float)
    items = pd.read_csv(folder / f"{folder.name}.item", sep="\t", dtype=str)
    items.columns = ["item", "intent"]
    return clicks.sort_values("time", kind="stable").reset_index(drop=True), items.set_index("item")


def trained(name: str, clicks: pd.DataFrame, items: pd.DataFrame, folder: Path, options: Any) -> Recommender:
    """A model of all these interactions."""
    place = folder / "part" / "part"
    place.mkdir(parents=True, exist_ok=True)
    clicks.to_csv(place / "part.inter", sep="\t", index=False,
                  header=["user_id:token", "item_id:token", "timestamp:float"])  # fmt: skip
    known = items.loc[items.index.isin(clicks.item)]
    known.reset_index().to_csv(place / "part.item", sep="\t", index=False, header=["item_id:token", "intent:token"])
    result = recbole_cafe.run(
        name, "part",
        config_dict={"data_path": str(folder / "part"), "final": True, "epochs": 2 if options.quick else options.epochs,
                     "state": "WARNING", "show_progress": False, "checkpoint_dir": str(folder / "saved")},
    )  # fmt: skip
    bundle = folder / "bundle"
    export(result.checkpoint, bundle, replace=True)
    return Recommender.load(bundle)


def measure(name: str, clicks: pd.DataFrame, items: pd.DataFrame, start: float, folder: Path,
            options: Any) -> dict[str, Any]:  # fmt: skip
    """All three ways of one model."""
    day = np.floor((clicks.time - start) / DAY).astype(int).clip(lower=-1)
    before = clicks[day < 0]
    frozen = trained(name, before, items, folder, options)
    systems = {"frozen": frozen, "updated": frozen, "retrained": frozen}
    gains: dict[str, list[np.ndarray]] = defaultdict(list)
    days = sorted(set(day[day >= 0]))[: 3 if options.quick else None]
    for number, today in enumerate(days):
        past, now = clicks[day < today], clicks[day == today]
        if number:
            yesterday = clicks[(day >= days[number - 1]) & (day < today)]
            new = sorted(set(yesterday.item) - set(systems["updated"].items.token.to_pylist()))
            if new:
                table = {"item": new, "intent": items.intent.reindex(new).where(lambda x: x.notna(), None).tolist()}
                systems["updated"] = systems["updated"].with_items(table)
            systems["updated"] = systems["updated"].with_interactions(yesterday)
            if number % options.every == 0:
                systems["retrained"] = trained(name, past, items, folder, options)
        histories, targets = questions(past, now)
        for system, asked in systems.items():
            gains[system].append(ndcg(asked, histories, targets))
    every = {system: np.concatenate(of) for system, of in gains.items()}
    found = {
        system: {"ndcg@10": float(of.mean()), "standard_error": float(of.std() / np.sqrt(len(of)))}
        for system, of in every.items()
    }
    for system in ("updated", "retrained"):
        difference = every[system] - every["frozen"]
        found[system]["gain_over_frozen"] = float(difference.mean())
        found[system]["gain_standard_error"] = float(difference.std() / np.sqrt(len(difference)))
    return {**found, "interactions": len(every["frozen"]), "days": len(days)}


def questions(past: pd.DataFrame, now: pd.DataFrame) -> tuple[list[list[str]], list[str]]:
    """The history before each of today's interactions, and the item taken."""
    of = {user: list(group) for user, group in past.groupby("user", sort=False)["item"]}
    histories, targets = [], []
    for user, item in zip(now.user, now.item, strict=True):
        history = of.setdefault(user, [])
        histories.append(list(history))
        targets.append(item)
        history.append(item)
    return histories, targets


def ndcg(asked: Recommender, histories: list[list[str]], targets: list[str]) -> np.ndarray:
    """1 / log2(1 + rank) of each target, 0 beyond K."""
    table = asked.recommend(histories, K)
    value = np.zeros(len(targets))
    for row, rank, item in zip(*(table[name].to_pylist() for name in ("user", "rank", "item")), strict=True):
        if item == targets[row]:
            value[row] = 1 / np.log2(1 + rank)
    return value


if __name__ == "__main__":
    logging.getLogger("recbole_cafe.recommend").setLevel(logging.ERROR)  # unknown items are what is measured
    main()
