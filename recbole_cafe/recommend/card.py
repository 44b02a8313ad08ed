"""The card of a bundle, README.md: what the model is, what it was measured at, where it stops, how it is asked.

It is made of what the bundle knows, and what is not known is not said. People may edit it: the digests of bundle.json
leave it out, and `update` keeps their words, all but a block of its own between two comments.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from recbole_cafe.errors import OutputError

if TYPE_CHECKING:
    from recbole_cafe.recommend.bundle import Bundle

CARD = "README.md"
LONGEST = 1 << 20  # bytes of a card that is kept
LONGEST_NAME = 100  # signs of a name that are shown
OPENING, CLOSING = "<!-- updates: written anew by `recbole-cafe update` -->", "<!-- /updates -->"
BLOCK = re.compile(rf"{re.escape(OPENING)}.*?{re.escape(CLOSING)}\n?", re.DOTALL)
SAMPLED = ("pop100", "uni100", "authors100")
VIEWS = {
    "full": "`full`: among all items",
    "full_later": "`full`, targets that come at a later time",
    "pop100": "`pop100`: among 100 popular others",
    "uni100": "`uni100`: among 100 others",
    "authors100": "`authors100`: among 100 others of intents that are not theirs",
}

TEMPLATE = Template("""\
# $title

$lead

$simulated## What it is for

It ranks the items of this catalogue for anybody whose last items are known, users it was not trained on included. The
last $length items of a history are read. It knows nothing else of a person, and is not made for decisions about people.

## How to ask it

In Python, with recbole-cafe installed and this folder as `bundle`:

```python
from recbole_cafe.recommend import Recommender

print(Recommender.load("bundle").recommend([$history], k=10).to_pylist())
```

For a file of histories, or over HTTP:

```bash
recbole-cafe recommend bundle --histories=histories.csv --out=lists.csv --k=10
recbole-cafe serve bundle &
curl --retry 9 --retry-connrefused http://localhost:8000/recommend -H 'Content-Type: application/json' -d $request
```

## What was measured

$measured

## What it was trained on

$data

## How it was trained

$training

## Limits

$limits

## Details

$details

## Licence

The licences of the data and of the model are not known to the program that wrote this card. Whoever passes the model on
states both here.

This card may be edited. The digests of `bundle.json` leave it out.
""")


def card(bundle: Bundle) -> str:
    """The card of a bundle, as Markdown.

    Args:
        bundle: the model. Of what another version wrote about it, parts of a kind that is not known are passed over.
    """
    dataset = bundle.about.get("dataset")
    taken = bundle.items.seen[1:].topk(min(2, bundle.items.n - 1)).indices.tolist()  # the most often
    tokens = [bundle.items.token[i].as_py() for i in taken]
    history = json.dumps(tokens)  # names of any signs, on one line
    text = TEMPLATE.substitute(
        title=f"{bundle.model} on {code(dataset)}" if isinstance(dataset, str) else bundle.model,
        lead=f"A sequential recommender of {_number(bundle.items.n - 1)} items, a bundle of recbole-cafe.",
        simulated=_simulated(bundle.about), length=bundle.max_seq_length, history=history,
        request=shlex.quote(json.dumps({"history": tokens, "k": 10})), measured=_measured(bundle.about),
        data=_data(bundle), training=_training(bundle), limits=_limits(bundle), details=_details(bundle),
    )  # fmt: skip
    return with_updates(text, bundle) if _updates(bundle) else text


def with_updates(text: str, bundle: Bundle) -> str:
    """A card with what the bundle's updates changed; all else stays as it is.

    Args:
        text: of the card, edited or not.
        bundle: after the updates.
    """
    updates = _updates(bundle)
    times = "once" if updates == 1 else f"{updates} times"
    counts = [f"{_number(bundle.items.n - 1)} items", f"{_number(int(bundle.items.seen.sum()))} interactions"]
    before = [bundle.about.get("trained_items"), bundle.about.get("trained_interactions")]
    was = [f" (trained with {_number(n)})" if isinstance(n, int) else "" for n in before]
    said = (
        f"It took in new items and interactions {times} since it was trained, without training. It now has "
        f"{' and '.join(map(''.join, zip(counts, was, strict=True)))}. What was measured is of the time before."
    )
    block = f"{OPENING}\n## Updates\n\n{said}\n{CLOSING}\n"
    if BLOCK.search(text):
        return BLOCK.sub(lambda _: block, text, count=1)
    return f"{text.rstrip()}\n\n{block}"


def read_card(folder: Path) -> str | None:
    """The card of a bundle's folder; None if there is none.

    Args:
        folder: of the bundle.

    Raises:
        OutputError: what lies there is no text that can be kept.
    """
    path = folder / CARD
    if not path.exists() and not path.is_symlink():
        return None
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LONGEST:
        raise OutputError(f"{path} is no plain file of at most {LONGEST} bytes, so it cannot be kept; move it away")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be kept, it is no text in UTF-8 ({error}); move it away") from error


def code(text: str) -> str:
    """A name as Markdown's code, in which no sign has a meaning, for a line or a cell of a table.

    Args:
        text: of any signs. What is not printable is left out, and what is too long is cut.
    """
    shown = "".join(sign for sign in " ".join(text.split()) if sign.isprintable())
    shown = f"{shown[:LONGEST_NAME]}..." if len(shown) > LONGEST_NAME else shown or " "
    shown = shown.replace("|", "\N{BROKEN BAR}")  # a table's own sign, which no code keeps from being read
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{shown}{space}{fence}"


# Parts ----------------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _updates(bundle: Bundle) -> int:
    updates = bundle.about.get("updates", 0)
    return updates if isinstance(updates, int) else 0


def _part(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of what is known, empty if it is not."""
    part = about.get(key)
    return part if isinstance(part, Mapping) else {}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _simulated(about: Mapping[str, Any]) -> str:
    if about.get("simulated") is not True:
        return ""
    return ("**The data are simulated.** A program drew them, so no number here says anything about real people or "
            "shops. The model is good for trying things out.\n\n")  # fmt: skip


def _measured(about: Mapping[str, Any]) -> str:
    run = _part(about, "run")
    parts = []
    if run.get("final") is True:
        parts.append("Nothing: it was trained on all interactions, and none was held out. An ordinary run with the "
                     "same settings says how good they are.")  # fmt: skip
    given = _part(run, "test")
    tests = {name: given[name] for name in [*VIEWS, *(given.keys() - VIEWS.keys())]
             if isinstance(given.get(name), Mapping) and given[name]}  # fmt: skip
    metrics = list(dict.fromkeys(str(metric) for values in tests.values() for metric in values))
    if tests:
        targets = _part(run, "n_targets")
        rows = []
        for name, values in tests.items():
            n = targets.get(name)
            numbers = [values.get(metric) for metric in metrics]
            rows.append([VIEWS.get(name, code(name)), _number(n) if isinstance(n, int) else "",
                         *(f"{x:.4f}" if isinstance(x, float) else "" for x in numbers)])  # fmt: skip
        parts.append("On the last interaction of each user, which it was not trained on:")
        parts.append(_table(["test", "targets", *(code(metric) for metric in metrics)], rows))
    if tests and isinstance(why := run.get("later_unknown"), str) and why:
        parts.append(f"How it does on targets that come at a later time is not known: {code(why)}")
    valid = run.get("best_valid_score")
    if isinstance(valid, float) and isinstance(metric := _part(about, "training").get("valid_metric"), str):
        parts.append(f"Best validation: {code(metric)} {valid:.4f}.")
    if any(name in SAMPLED for name in tests):
        parts.append("A rank among 100 others is easier than one among all items, and flatters every model. "
                     "Compare such numbers with others of the same candidates alone.")  # fmt: skip
    if "authors100" in tests:
        parts.append("Under `authors100` the intent alone points at the target: such numbers repeat a published table, "
                     "and say little of the model.")  # fmt: skip
    return "\n\n".join(parts) or "No test of this model is known to the program that wrote this card."


def _data(bundle: Bundle) -> str:
    about, facts = bundle.about, _part(bundle.about, "data")
    names = {"users": "users", "items": "items", "interactions": "interactions", "intents": "intents",
             "interactions_per_user": "interactions of a user, mean",
             "interactions_per_item": "interactions of an item, mean"}  # fmt: skip
    rows = [[said, _number(facts[key])] for key, said in names.items() if isinstance(facts.get(key), (int, float))]
    trained = about.get("trained_interactions")
    if isinstance(trained, int):
        rows.append(["interactions that it was trained on", _number(trained)])
    if not facts:
        rows.append(["items", _number(bundle.items.n - 1)])
    parts = [_table(["the data", ""], rows)]
    if isinstance(dataset := about.get("dataset"), str):
        parts.insert(0, f"The data set {code(dataset)}.")
    return "\n\n".join(parts)


def _training(bundle: Bundle) -> str:
    about, run = bundle.about, _part(bundle.about, "run")
    seed, epochs = about.get("seed"), run.get("epochs")
    with_seed = f" with the seed {seed}" if isinstance(seed, int) else ""
    after = f", and these are the weights after epoch {epochs}" if isinstance(epochs, int) and bundle.net.learns else ""
    if run.get("final") is True:
        how = "All interactions were trained on, none was held out for a test"
    else:
        how = "The last two interactions of each user are held out, for validation and test, unless the settings differ"
    return f"{how}. It was {'trained' if bundle.net.learns else 'counted'}{with_seed}{after}."


def _details(bundle: Bundle) -> str:
    """Tables of what is looked up rarely. No HTML folds them, since not all readers of Markdown read any inside it."""
    about = bundle.about
    parts = {
        "Settings": ("key", {**_part(about, "training"), **bundle.settings}),
        "Versions that it was exported with": ("package", _part(about, "versions")),
        "Digests of the data, the same on every machine": ("part", _part(about, "digests")),
    }
    return "\n\n".join(
        f"{title}:\n\n" + _table([head, ""], [[code(str(key)), code(str(value))] for key, value in content.items()])
        for title, (head, content) in parts.items() if content
    )  # fmt: skip


def _limits(bundle: Bundle) -> str:
    lines = ["Items that it does not know are left out of a history. A history without any known item gets what is "
             "popular."]  # fmt: skip
    if bundle.net.counts_transitions and bundle.interactions is not None:
        lines.append("`interactions.arrow` holds **the names of the users** it was trained on, and what they took. "
                     "`recbole-cafe export --no_interactions` leaves them out.")  # fmt: skip
        lines.append("New items and interactions can be taken in with `recbole-cafe update`; what was learned stays.")
    else:
        lines.append("It learns of new items and of new interactions by training alone.")
    rare = int((bundle.items.seen[1:] < 5).sum())
    lines.append(f"{_number(rare)} of its {_number(bundle.items.n - 1)} items were seen fewer than 5 times. What it "
                 f"says of those rests on little.")  # fmt: skip
    if bundle.intent_temperature is None:
        lines.append("Its probabilities of intents are not calibrated.")
    lines.append("What was measured is how well past interactions were told. That is not how people take to its lists.")
    return "\n".join(f"* {line}" for line in lines)
