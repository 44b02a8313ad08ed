"""Mutated data sets, read by the package and by the oracle."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.children import run_once
from fuzzing.data_mutations import BYTE_MUTATIONS, CELL_MUTATIONS, Tables, data_set, some_file
from fuzzing.data_oracle import NAME, Oracle
from fuzzing.outcomes import Log, check, clear_text, first_difference, short
from recbole_cafe import experiment
from recbole_cafe.config.config import CHOICES, Config
from recbole_cafe.data.intents import item_intents

FIELDS = ("USER_ID", "ITEM_ID", "TIME", "INTENT")  # keys that name a column
SETTINGS: dict[str, Any] = {
    "gpu_id": "", "epochs": 1, "show_progress": False, "hidden_size": 8, "inner_size": 8, "MAX_ITEM_LIST_LENGTH": 5,
    "topk": [3], "metrics": ["MRR", "Hit"], "valid_metric": "MRR@3", "eval_mode": ["full"],
}  # fmt: skip


def before() -> None:
    run_once(lambda: case(NoMutation(), Path.cwd(), {}))


class NoMutation(random.Random):
    """Draws the first of everything, which is no mutation."""

    def choice(self, seq: Any) -> Any:
        return seq[0]


def mutated_data(rng: random.Random) -> tuple[Tables, list[str]]:
    tables, names = data_set(rng), []
    kinds = [
        rng.choice([CELL_MUTATIONS, CELL_MUTATIONS, BYTE_MUTATIONS])
        for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 3]))
    ]
    for of_cells in (True, False):
        for kind in kinds:
            if (kind is CELL_MUTATIONS) != of_cells:
                continue
            mutation = rng.choice(kind)
            if of_cells:
                mutation(rng, tables)
            else:
                ending = some_file(rng, tables.blobs)
                tables.blobs[ending] = mutation(rng, tables.blobs[ending])
            names.append(mutation.__name__)
        if of_cells:
            tables.render()
    return tables, names


def case(rng: random.Random, folder: Path, note: dict[str, Any]) -> str:
    tables, note["mutations"] = mutated_data(rng)
    model, reader = rng.choice(["CaFe", "CaFePlus", "SASRec"]), rng.choice(CHOICES.get("reader", [None]))
    keys = dict(tables.keys, **({"reader": reader} if reader else {}))
    (folder / NAME).mkdir()
    for ending, blob in tables.blobs.items():
        (folder / NAME / f"{NAME}.{ending}").write_bytes(blob)
    note["input"] = {"model": model, "keys": keys}
    oracle, log = Oracle(), Log()
    oracle.read(folder / NAME, keys, model)
    note["oracle"] = short(oracle.faults[:3] or f"{oracle.doubts[:3]} {dict(oracle.counts)}")
    places: dict[str, set[int | None]] = {}
    for name, line, _ in oracle.faults:
        places.setdefault(name, set()).add(line)
    names = [f"{NAME}.{ending}" for ending in tables.blobs] + list(tables.keys) + [f"{kind}_FIELD" for kind in FIELDS]
    if NAME in places or "no user has three interactions" in oracle.doubts:
        names.append(NAME)
    try:
        config = Config(model, NAME, config_dict=SETTINGS | keys | {"data_path": str(folder)})
        data = experiment.create_dataset(config)
        of_item = item_intents(config, data).item2intent if model != "SASRec" else None
        experiment.data_preparation(config, data)
    except Exception as error:
        text = clear_text(error, names)
        check(oracle.faults or oracle.doubts, f"nothing is wrong, but {text}", "refused")
        found = re.search(rf"({NAME}\.\w+)\D{{1,9}}line (\d+)", text)
        if found and oracle.faults and not oracle.doubts and None not in places.get(found[1], {None}):
            check(
                int(found[2]) in places[found[1]],
                f"another line than {sorted(places[found[1]])}: {text}",
                "unclear error",
            )
        return "clear error"
    check(not oracle.faults, f"read in spite of {oracle.faults[:2]}")
    compare(data, of_item, oracle)
    for (name, what), number in oracle.counts.items():
        check(log.has(name, number), f"{number} {what} of {name} dropped, which no log says")
    return "dropped and counted" if oracle.counts else "equal"


def compare(data: Any, of_item: Any, oracle: Oracle) -> None:
    clicks, items = oracle.rows["inter"], oracle.rows.get("item", [])
    wanted_users = list(dict.fromkeys(row["user_id"] for row in clicks + oracle.rows.get("user", [])))
    wanted_items = list(dict.fromkeys(row["item_id"] for row in clicks + items))
    for wanted, name in ((wanted_users, data.uid_field), (wanted_items, data.iid_field)):
        read = [str(token) for token in data.field2id_token[name]]
        check(read == ["[PAD]", *wanted], f"{name}: {first_difference(read, ['[PAD]', *wanted])}")
    by_user: dict[str, list[tuple[float, str]]] = {}
    for row in clicks:
        by_user.setdefault(row["user_id"], []).append((float(row["timestamp"]), row["item_id"]))
    wanted = [
        (user, item, time)
        for user in wanted_users
        for time, item in sorted(by_user.get(user, []), key=lambda pair: pair[0])
    ]
    flat = data.flat
    users, items_read = (data.field2id_token[name][flat[name].numpy()] for name in (data.uid_field, data.iid_field))
    times = flat["timestamp"].numpy() if "timestamp" in flat else [None] * len(users)
    read = list(zip(map(str, users), map(str, items_read), times, strict=True))
    check(len(read) == len(wanted), f"{len(read)} interactions, not {len(wanted)}")
    for one, other in zip(read, wanted, strict=True):
        same_time = one[2] is None or one[2] == np.asarray(other[2]).astype(one[2].dtype)
        check(one[:2] == other[:2] and same_time, f"interaction {short(one)}, not {short(other)}")
    intent_of = {row["item_id"]: row.get("intent", "") for row in items}
    if of_item is not None:
        names = [*data.field2id_token["intent"], ""]  # the last id means none
        read = [str(names[number]) for number in of_item[1:].tolist()]
        check(
            read == [intent_of[item] for item in wanted_items],
            f"intents {first_difference(read, [intent_of[item] for item in wanted_items])}",
        )
    if oracle.columns.get("item", {}).get("price") == "float":
        price_of = {row["item_id"]: row["price"] for row in items}
        known = [float(price) for price in price_of.values() if price]
        mean = np.mean(known) if known else None
        for item, value in zip(wanted_items, data.item_feat["price"].numpy()[1:], strict=True):
            if price_of[item]:
                check(value == np.float32(price_of[item]), f"price {value} of {item}, not {price_of[item]}")
            elif mean is not None and abs(mean) < 1e30:
                check(np.isclose(value, mean, rtol=1e-5), f"price {value} of {item}, not the mean {mean}")
