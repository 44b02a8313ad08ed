"""From a checkpoint to a bundle (recbole_cafe.recommend.bundle): the last step that needs RecBole and the data."""

from __future__ import annotations

import math
import os
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from recbole_cafe.config.signature import net_settings
from recbole_cafe.data.intents import item_intents
from recbole_cafe.data.reader import text_format
from recbole_cafe.data.time_order import statistics
from recbole_cafe.environment import versions
from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.files.columns import read_columns
from recbole_cafe.files.places import check_folder
from recbole_cafe.files.result import Result
from recbole_cafe.host.reload import load_data_and_model
from recbole_cafe.model import MODELS, net_class
from recbole_cafe.model.net import Net
from recbole_cafe.recommend.bundle import Bundle, Interactions, Items, check_place, sorted_order, write
from recbole_cafe.recommend.calibration import temperature_of
from recbole_cafe.train.checkpoint import decode, load

TRAINING = ("learning_rate", "train_batch_size", "epochs", "stopping_step", "valid_metric", "train_layout", "tie_order",
            "mask_history")  # keys beside the net's own that the card tells  # fmt: skip
CALIBRATED = 20_000  # rows of the validation that a temperature is learned from


def export(
    checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str], *, title: str | None = None,
    interactions: bool = True, replace: bool = False, result: Result | None = None,
) -> Bundle:  # fmt: skip
    """Write the model of a checkpoint as a bundle.

    Args:
        checkpoint: of a model of ours. Its data set has to be where it was.
        folder: of the bundle.
        title: column of the .item file to show of an item.
        interactions: keep what was trained on, with the users' tokens, so that the counts of a model that has some can
            be continued.
        replace: whether a bundle that is there may be replaced.
        result: of the run that wrote the checkpoint, for the bundle's card.

    Returns:
        the bundle.

    Raises:
        CheckpointError: see :func:`load_data_and_model`.
        ConfigError: a model of RecBole's, or one that cannot be asked outside of training.
        DataError: no such column, or the result of another run.
        OutputError: the folder cannot be written.
    """
    config, model, dataset, train, valid, _ = load_data_and_model(checkpoint)
    bundle = bundle_of(config, model, train._dataset, valid and valid._dataset, title=title, interactions=interactions)
    bundle = replaced(bundle, about={**bundle.about, **_about(config, dataset, bundle, checkpoint, result)})
    write(bundle, folder, replace=replace)
    return bundle


def _about(config: Any, dataset: Any, bundle: Bundle, checkpoint: str | os.PathLike[str],
           result: Result | None) -> dict[str, Any]:  # fmt: skip
    """What the card of a bundle tells of the data, the training and the tests.

    Raises:
        DataError: the result is not of the run that wrote the checkpoint.
    """
    state = load(checkpoint, mmap=True)
    run: dict[str, Any] = {"final": bool(config["final"]), "epochs": int(state["epoch"]) + 1}
    best = state["best_valid_score"]
    if not config["final"] and isinstance(best, float) and math.isfinite(best):
        run["best_valid_score"] = best
    if result is not None:
        own = (bundle.model, bundle.about["dataset"], bundle.about["seed"], bundle.about["digests"], run["final"])
        theirs = (result.model, result.dataset, result.seed, result.digests, result.final)
        for what, ours, other in zip(("model", "dataset", "seed", "digests", "final"), own, theirs, strict=True):
            if ours != other:
                raise DataError(f"the result is of another run than {checkpoint}: {what} {other!r:.80}, expected "
                                f"{ours!r:.80}")  # fmt: skip
        run |= {"test": result.test_result, "n_targets": result.n_targets, "later_unknown": result.later_unknown}
    return {
        "simulated": state.get("simulated") is True, "data": statistics(dataset, config), "run": run,
        "training": {key: config[key] for key in TRAINING}, "versions": versions(),
        "trained_items": bundle.items.n - 1, "trained_interactions": int(bundle.items.seen.sum()),
    }  # fmt: skip


def check_export(model: str, folder: str | os.PathLike[str]) -> None:
    """Raise what :func:`export` would raise after the training, where it is known before it.

    Args:
        model: name of the model.
        folder: of the bundle.

    Raises:
        ConfigError: see :func:`export`.
        OutputError: there is something in its place already.
    """
    _check_model(model)
    check_place(folder, replace=False)
    check_folder("export", Path(folder).resolve().parent)


def _check_model(name: str) -> None:
    if name not in MODELS:
        raise ConfigError(f"{name} cannot be exported: it is RecBole's or a model of your own; only "
                          f"{', '.join(MODELS)} can")  # fmt: skip
    _check_net(name, net_class(name))


def _check_net(name: str, net: Net | type[Net]) -> None:
    if net.not_served:
        raise ConfigError(f"{name} cannot be exported: {net.not_served}")


def bundle_of(
    config: Any, model: Any, dataset: Any, valid: Any | None, *, title: str | None = None, interactions: bool = True
) -> Bundle:
    """A bundle of a trained model in memory.

    Args:
        config: of the run.
        model: of a class of ours.
        dataset: the train split.
        valid: the validation split, to calibrate the probabilities of intents with; None if there is none.
        title: see :func:`export`.
        interactions: see :func:`export`.

    Raises:
        ConfigError: see :func:`export`.
        DataError: see :func:`export`.
    """
    name = config["model"]
    _check_model(name)
    net = model.network.cpu().eval()
    _check_net(name, net)
    settings = decode(net_settings(type(net), config)) | dict(net.resolved)
    users, item = (ids.numpy() for ids in dataset.user_items())
    seen = torch.bincount(torch.from_numpy(item), minlength=dataset.item_num)
    token = pa.array(_tokens(dataset, dataset.iid_field), pa.string())
    has_intents = bool(config["INTENT_FIELD"]) and (net.needs_intents or config["INTENT_FIELD"] in dataset.field2type)
    names, intent = [""], (torch.arange(dataset.item_num) > 0).long()  # without intents: all in the group of those
    if has_intents:
        names = ["", *_tokens(dataset, config["INTENT_FIELD"])]
        intent = item_intents(config, dataset).item2intent.cpu()
    items = Items(
        token, intent, seen, pa.array(names, pa.string()), _titles(config, dataset, title), sorted_order(token)
    )
    known = None
    if interactions and net.counts_transitions:
        tokens = pa.array(["", *_tokens(dataset, dataset.uid_field)], pa.string())
        known = partial(Interactions, tokens.take(pa.array(users)), item)
    about = {"dataset": config["dataset"], "seed": config["seed"], "digests": dict(dataset.digests or {})}
    temperature = None if valid is None or not net.needs_intents else _temperature(model, net, valid)
    return Bundle(name, settings, config["MAX_ITEM_LIST_LENGTH"], net, items, known, about, temperature)


@torch.inference_mode()
def _temperature(model: Any, net: Net, valid: Any) -> float | None:
    """What calibrates the intents of a net; None if it does not predict them."""
    said, came = [], []
    for at in torch.randperm(len(valid), generator=torch.Generator().manual_seed(0))[:CALIBRATED].split(512):
        rows = valid[at]
        try:
            said.append(net.intent_probabilities(rows[model.ITEM_SEQ].cpu()).double())
        except ConfigError:  # it does not tell
            return None
        came.append(model.intents.item2intent.cpu()[rows[model.ITEM_ID].cpu()])
    return temperature_of(torch.cat(said), torch.cat(came)) if said else None


def _tokens(dataset: Any, column: str) -> list[str]:
    """The tokens of ids 1, 2, ..."""
    return [str(token) for token in dataset.field2id_token[column][1:]]


def _titles(config: Any, dataset: Any, title: str | None) -> pa.Array | None:
    """What a column of the .item file says of each item, null where nothing."""
    if title is None:
        return None
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    if not path.is_file():
        raise DataError(f"{path} does not exist; titles are read from its column {title!r}")
    columns = read_columns(path, [dataset.iid_field, title], text=text_format(config))
    if columns.kinds[title] == "float":
        raise DataError(f"{path}: column {title!r} is of type float, a title is text (token or token_seq)")
    table = columns.table()
    said = table[title].combine_chunks()
    if columns.kinds[title] == "token_seq":
        said = pc.binary_join(said.cast(pa.list_(pa.string())), " ")
    listed = table[dataset.iid_field].cast(pa.string()).combine_chunks()
    place = pc.index_in(pa.array(_tokens(dataset, dataset.iid_field)), value_set=listed)
    return said.cast(pa.string()).take(place)
