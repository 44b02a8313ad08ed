"""Whether a data set suits CaFe: what can be counted in its atomic files, and what is known to follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.files.atomic import ID_ROLE, PLAIN, TIME_ROLE, AtomicFileError, Role, TextFormat, read_header
from recbole_cafe.files.columns import Columns, read_columns
from recbole_cafe.files.whole import restore
from recbole_cafe.prepare.simulate import is_simulated
from recbole_cafe.prepare.ties import count_ties, sentence

RARE = 5  # interactions; an item with fewer belongs to the long tail
SHORT = 3  # interactions a user needs: one to learn from, one for validation, one for test
# Interactions per item of the two data sets of arXiv:2204.01839 (Table 1)
PAPER = {"Amazon": 5_370_171 / 1_910_226, "Tmall": 14_460_516 / 1_788_758}
DENSE = 20.0  # interactions per item beyond which the paper has no data


# Intent of each item by its token (NaN: none), and a sentence on how it was made
MakeIntents = Callable[[], tuple[pd.Series, str]]


@dataclass
class Findings:
    """What was counted, and what follows from it, in sentences.

    Attributes:
        name: of the data set.
        folder: its own.
        numbers: what was counted.
        faults: what keeps the data set from being used.
        warnings: what keeps it from being used well.
        expectation: what CaFe can be expected to gain.
    """

    name: str
    folder: Path
    numbers: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    expectation: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Format for people."""
        lines = [f"data set {self.name} in {self.folder}"]
        lines += [f"  {_WORDS[key]:<58} {_shown(key, value)}" for key, value in self.numbers.items()]
        for title, texts in (("FAULT", self.faults), ("warning", self.warnings), ("expect", self.expectation)):
            lines += [f"  {title}: {text}" for text in texts]
        return lines


_WORDS = {
    "users": "users",
    "items": "items that occur",
    "interactions": "interactions",
    "per_item": "interactions per item, mean",
    "per_item_median": "interactions per item, median",
    "per_user": "interactions per user, mean",
    "long_tail_items": f"items with fewer than {RARE} interactions",
    "long_tail_interactions": "interactions with such items",
    "repeats": "interactions with an item that the user already had",
    "ties": "interactions that share user and time with another",
    "tied_test": "test targets at the time of the item before",
    "tied_valid": "validation targets at the time of the item before",
    "tied_pairs": "steps between items at one time",
    "tied_repeated": "pairs of items with two such steps or more",
    "tied_reversed": "of them in both orders",
    "tied_reversed_shuffled": "the same with ties shuffled",
    "tied_cyclic": "steps that contradict one order of all items",
    "tied_cyclic_shuffled": "the same with ties shuffled",
    "short_users": f"users with fewer than {SHORT} interactions",
    "intents": "intents that occur",
    "items_without_row": "items without a row in the .item file",
    "items_without_intent": "items without an intent",
    "unseen_items": "items of the .item file that never occur",
    "intents_per_user": "different intents per user, mean",
    "one_intent_users": "users (of two or more interactions) with one intent only",
    "intent_items_median": "items per intent, median",
    "same_intent": "steps after which the intent stays the same",
    "same_intent_chance": "the same if a user's interactions came in random order",
}
_SHARES = {"long_tail_items", "long_tail_interactions", "repeats", "ties", "tied_test", "tied_valid", "short_users",
           "one_intent_users", "same_intent", "same_intent_chance"}  # fmt: skip


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "not known"
    if key in _SHARES:
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def locate(data: str, folders: list[Path]) -> tuple[Path, str]:
    """Find a data set.

    Args:
        data: a name, which is looked for in `folders`, a folder, or a file.
        folders: folders of data sets.

    Returns:
        The data set's own folder and its name.

    Raises:
        AtomicFileError: no such data set, or several.
    """
    path = Path(data)
    if path.suffix in (".inter", ".item") and path.is_file():
        return path.parent.resolve(), path.stem
    for place in (path, *(folder / data for folder in folders)):
        restore(place)
        files = sorted(place.glob("*.inter")) if place.is_dir() else []
        if (named := place / f"{place.resolve().name}.inter") in files:
            files = [named]
        if len(files) == 1:
            return place.resolve(), files[0].stem
        if files:
            raise AtomicFileError(f"{place}: holds {', '.join(file.name for file in files)}; name one of the files")
    looked = ", ".join(map(str, (path, *(folder / data for folder in folders))))
    raise AtomicFileError(f"no data set {data!r}: looked for a .inter file in {looked}")


def examine(folder: Path, name: str, *, intent: str = "intent", user: str = "user_id", item: str = "item_id",
            time: str = "timestamp", text: TextFormat = PLAIN,
            make: MakeIntents | None = None) -> Findings:  # fmt: skip
    """Count what matters. Faults of the files are findings with file and line, not errors.

    Args:
        folder: the data set's own.
        name: of the data set.
        intent: name of the column of the intent.
        user: name of the column of the user.
        item: name of the column of the item.
        time: name of the column of the time.
        text: how the files are written.
        make: gives the intents of the items in place of the column; DataError where it cannot.
    """
    findings = Findings(name, folder)
    if is_simulated(folder) is not None:
        findings.warnings.append("simulated: numbers measured on it say that the code works, not how good a model is")
    inter = folder / f"{name}.inter"
    table, header = None, {}
    try:
        header = read_header(inter, text)
        roles = {user: ID_ROLE, item: ID_ROLE} | ({time: TIME_ROLE} if time in header else {})
        table = _read(findings, inter, roles, text).table().to_pandas()
    except AtomicFileError as error:
        findings.faults.append(str(error))
    features = _features(findings, folder / f"{name}.item", item, intent, text) if make is None else None
    if table is None:
        return findings
    if time not in header:
        findings.warnings.append(
            f"{inter.name} has no column {time}: the order of the file counts as the order in time"
        )
        table[time] = np.arange(len(table), dtype=np.float64)
    if make is not None:
        try:
            features, told = make()
            findings.expectation.append(told)
        except (ConfigError, DataError) as error:
            findings.faults.append(str(error))
    _count(findings, table.rename(columns={user: "user", item: "item", time: "time"}))
    if features is not None:
        _count_intents(findings, table[user], table[item], table[time], features)
    findings.numbers |= count_ties(
        table[user].cat.codes.to_numpy(), table[item].cat.codes.to_numpy(), table[time].to_numpy(dtype=np.float64)
    )
    _judge(findings)
    return findings


def _read(findings: Findings, path: Path, roles: dict[str, Role], text: TextFormat) -> Columns:
    """The columns that have a role, as a run reads them; what it would log is a warning."""
    read = read_columns(path, list(roles), text=text, roles=roles)
    findings.warnings += read.notes()
    return read


def _features(findings: Findings, path: Path, item: str, intent: str, text: TextFormat) -> pd.Series | None:
    """Intent of each item (NaN: none), None where there is no usable file."""
    if not path.is_file():
        findings.faults.append(
            f"{path}: no such file; CaFe needs the intent of each item ({item}:token, {intent}:token)"
        )
        return None
    try:
        header = read_header(path, text)
        if intent not in header:
            names = ", ".join(header)
            findings.faults.append(f"{path}: no column {intent!r} for the intent, found {names}; name it with --intent")
            return None
        read = _read(findings, path, {item: ID_ROLE, intent: Role(("token", "token_seq"))}, text)
        if dropped := read.drop_repeats(item):
            findings.warnings.append(f"{path.name}: {dropped:,} rows repeat the row of their {item}")
    except AtomicFileError as error:
        findings.faults.append(str(error))
        return None
    table = read.table().to_pandas()
    texts = table[intent].astype(object)
    if header[intent] == "token_seq":
        findings.warnings.append(f"{intent} holds several tokens an item; counted here is the first (key intent_from)")
        texts = texts.map(lambda tokens: tokens[0] if len(tokens) else None)
    return pd.Series(texts.to_numpy(), index=table[item].astype(str).to_numpy())


def _count(findings: Findings, table: pd.DataFrame) -> None:
    users, items = table["user"].cat, table["item"].cat
    per_user, per_item = np.bincount(users.codes), np.bincount(items.codes)
    rare = per_item < RARE
    findings.numbers |= {
        "users": len(per_user),
        "items": len(per_item),
        "interactions": len(table),
        "per_item": float(per_item.mean()),
        "per_item_median": float(np.median(per_item)),
        "per_user": float(per_user.mean()),
        "long_tail_items": float(rare.mean()),
        "long_tail_interactions": float(per_item[rare].sum() / len(table)),
        "repeats": float(table.duplicated(["user", "item"]).mean()),
        "ties": float(table.duplicated(["user", "time"], keep=False).mean()),
        "short_users": float((per_user < SHORT).mean()),
    }


def _count_intents(findings: Findings, user: pd.Series, item: pd.Series, time: pd.Series, features: pd.Series) -> None:
    occurring = pd.Index(item.cat.categories.astype(str))
    of_item = features.reindex(occurring)
    codes, names = pd.factorize(of_item)  # -1: none
    click = codes[item.cat.codes.to_numpy()]
    users = user.cat.codes.to_numpy()
    known = click >= 0
    pairs = np.unique(users[known].astype(np.int64) * max(1, len(names)) + click[known]) // max(1, len(names))
    different = np.bincount(pairs, minlength=len(user.cat.categories))
    often = np.bincount(users[known], minlength=len(different))
    order = np.lexsort((time.to_numpy(), users))  # stable: ties stay in file order
    step = (users[order][1:] == users[order][:-1]) & known[order][1:] & known[order][:-1]
    same = click[order][1:] == click[order][:-1]
    per_pair = np.unique(users[known].astype(np.int64) * max(1, len(names)) + click[known], return_counts=True)[1]
    longer = often[often > 1].astype(np.float64)
    # Of two interactions of a user drawn at random, how often both have one intent, weighted by the user's steps
    agree = np.bincount(pairs, weights=per_pair * (per_pair - 1.0), minlength=len(different))[often > 1]
    steps = (longer - 1).sum()
    findings.numbers |= {
        "intents": len(names),
        "items_without_row": int((~occurring.isin(features.index)).sum()),
        "items_without_intent": int((codes < 0).sum()),
        "unseen_items": int((~features.index.isin(occurring)).sum()),
        "intents_per_user": float(different[often > 0].mean()) if known.any() else 0.0,
        "one_intent_users": float((different[often > 1] == 1).mean()) if (often > 1).any() else None,
        "intent_items_median": float(np.median(np.bincount(codes[codes >= 0]))) if len(names) else 0.0,
        "same_intent": float(same[step].mean()) if step.any() else None,
        "same_intent_chance": float((agree / longer).sum() / steps) if steps else None,
    }


def _judge(findings: Findings) -> None:
    """Sentences from the numbers."""
    numbers = findings.numbers
    _judge_intents(findings)
    findings.expectation.append(f"In this data set {sentence(numbers)}.")


def _judge_intents(findings: Findings) -> None:
    numbers = findings.numbers
    without = numbers.get("items_without_intent", 0)
    if without:
        share = without / numbers["items"]
        findings.warnings.append(f"{share:.1%} of the items have no intent; CaFe gives them all the same, an empty one")
    if numbers.get("items_without_row"):
        findings.warnings.append(
            f"RecBole leaves out interactions with the {numbers['items_without_row']:,} items that the .item file does "
            "not list (filter_inter_by_user_or_item)"
        )
    if numbers["short_users"] > 0:
        findings.warnings.append(
            f"{numbers['short_users']:.1%} of the users have fewer than {SHORT} interactions and cannot be split "
            "into training, validation and test"
        )
    if numbers["ties"] > 0.1:
        findings.warnings.append(
            f"{numbers['ties']:.1%} of the interactions have no order in time among themselves; the file's order "
            "decides, which a model may read. Compare with tie_order: random"
        )
    if numbers["repeats"] > 0.1:
        findings.warnings.append(f"{numbers['repeats']:.1%} are repeats; state whether results use mask_history")
    intents = numbers.get("intents")
    if intents is None:
        return
    if intents < 2:
        findings.faults.append(f"{intents} intent(s): there is nothing for the intent to tell")
        return
    if numbers["intent_items_median"] < 2:
        findings.warnings.append(
            "half of the intents have one item only: as sparse as the items; merge them (prepare --min-intent)"
        )
    if numbers["intents_per_user"] < 1.5:
        findings.warnings.append("users hardly change their intent: its sequence has little to learn")
    findings.expectation += _expectation(numbers)


def _expectation(numbers: dict[str, Any]) -> list[str]:
    per_item = numbers["per_item"]
    paper = ", ".join(f"{name} {value:.2f}" for name, value in PAPER.items())
    if per_item <= max(PAPER.values()):
        where = "items are as sparse as in the paper's data, for which the dual-tower model was made"
    elif per_item <= DENSE:
        where = "items are denser than in the paper's data; the case for learning intents first is weaker"
    else:
        where = "items are dense; the paper has no data like that, and a model of items alone has enough to learn from"
    lines = [
        f"{per_item:.2f} interactions per item (the paper: {paper}): {where}.",
        "Known: the paper (arXiv:2204.01839, Figure 4) finds gains over models of items alone the larger the rarer "
        "items are. Its level of results comes back here only when each negative gets a random other intent, so that "
        "the intent points at the target (protocol authors100).",
        "Measured with each candidate's own intent (pop100, one data set of 2.72 per item): the same CaFe ranked with "
        "NDCG@5 .124 by its item score alone and .138 with the intent's. A gain of that order can be hoped for, none "
        "is promised.",
    ]
    if numbers.get("same_intent") is not None and numbers.get("same_intent_chance") is not None:
        lines.append(
            f"The intent stays the same after {numbers['same_intent']:.1%} of the steps, "
            f"{numbers['same_intent_chance']:.1%} "
            "if order meant nothing; a difference shows that the sequence of intents tells something."
        )
    return lines
