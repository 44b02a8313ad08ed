"""recbole_cafe.recommend.bundle and export: a bundle says what the trained model says, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import toy
from made import bundle_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_cafe.config.signature import signature_of
from recbole_cafe.errors import ConfigError, OutputError
from recbole_cafe.experiment import run
from recbole_cafe.export import bundle_of as exported
from recbole_cafe.export import check_export, export
from recbole_cafe.files.ranks import load_ranks
from recbole_cafe.host.reload import load_data_and_model
from recbole_cafe.model import MODELS, cafe_plus, net_class
from recbole_cafe.recommend import bundle as bundles
from recbole_cafe.recommend.bundle import Bundle, BundleError, check_place, read, version_of, write
from recbole_cafe.recommend.recommender import Recommender

REFUSED = {"AttRec", "RKSA", "SSEPT", "RecToolsSASRec"}
SERVED = sorted(set(MODELS) - REFUSED)
SMALL = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "train_batch_size": 64, "epochs": 1}
INTENT = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "", "f": "z"}
WALKS = {"u1": "abcab", "u2": "bcd", "u3": "acdf", "u4": "fbe"}
HISTORIES = [["a", "b"], ["c"], [], ["f", "e", "a"]]


def trained(model: str, toy_path: Path, **keys: Any) -> Any:
    quiet = {"data_path": str(toy_path), "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH, "gpu_id": "", "show_progress": False,
             "worker": 0, "state": "ERROR", "eval_mode": ["full"]}  # fmt: skip
    kind = net_class(model)
    keys = {
        key: value
        for key, value in SMALL.items()
        if key in set(signature_of(kind).keys) | {"train_batch_size", "epochs"}
    } | keys
    layout = {} if "all" in kind.layouts else {"train_layout": kind.layouts[0]}
    return run(model, toy.NAME, config_dict={**quiet, **layout, **keys}, ranks_file="ranks.npz")


def same_weights(one: Bundle, other: Bundle) -> None:
    found, expected = one.net.state_dict(), other.net.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


# A trained model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("model", SERVED)
def test_a_bundle_recommends_as_evaluation_ranks(model: str, masked: bool, toy_path: Path) -> None:
    """The place of each test target in its list is its rank in ranks.npz, equal scores aside."""
    result = trained(model, toy_path, mask_history=masked)
    export(result.checkpoint, "bundle")
    recommender = Recommender.load("bundle")
    users, ranks = load_ranks("ranks.npz")
    full, walks = ranks["full"], toy.walks()
    histories = [walks[user][:-1] for user in users.tolist()]
    lists = recommender.recommend(histories, k=len(recommender.items.token), exclude_seen=masked).to_pydict()
    places = {}
    for user, item, rank in zip(lists["user"], lists["item"], lists["rank"], strict=True):
        places[user, item] = rank
    n_compared = 0
    for row, user in enumerate(users.tolist()):
        target = walks[user][-1]
        if masked and target in histories[row]:  # evaluation keeps it, a list does not hold it
            assert (row, target) not in places
            continue
        assert full.above[row] < places[row, target] <= full.above[row] + full.tied[row] + 1
        n_compared += full.tied[row] == 0
    assert full.limit is None
    assert n_compared > 0.9 * len(users) or model == "IntentBackoff"  # counts tie


@pytest.mark.parametrize("model", SERVED)
def test_a_bundle_says_what_the_model_in_memory_says(model: str, toy_path: Path) -> None:
    result = trained(model, toy_path)
    export(result.checkpoint, "bundle")
    config, loaded, _, train, valid, _ = load_data_and_model(result.checkpoint)
    memory = exported(config, loaded, train._dataset, valid._dataset)
    opened = read("bundle")
    same_weights(opened, memory)
    assert opened.settings == memory.settings
    histories = [walk[:-1] for walk in toy.walks().values()]
    one, other = (Recommender(bundle).recommend(histories, k=7, reasons=True) for bundle in (opened, memory))
    assert one.equals(other)
    assert one.num_rows == 7 * (len(histories) - 1) + len(toy.NEVER)  # the long user has taken the others
    # and what RecBole's interface to the model says, of all items
    row = train._dataset[torch.arange(1)]
    history = row[loaded.ITEM_SEQ]
    tokens = [train._dataset.field2id_token["item_id"][i] for i in history[0].tolist() if i]
    scores = loaded.full_sort_predict(row)[0, 1:].double()
    asked = Recommender(opened)
    said = asked.score(tokens, opened.items.token.to_pylist())
    torch.testing.assert_close(as_tensor(said[asked.score_name]), scores, rtol=1e-4, atol=1e-5)


def test_a_bundle_keeps_what_its_data_have_decided(toy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which softmax `auto` means is known when there are train data; a bundle brings none."""
    with monkeypatch.context() as patched:
        patched.setattr(cafe_plus, "OFTEN", 0.1)
        export(trained("CaFePlus", toy_path).checkpoint, "bundle")
    opened = read("bundle")
    assert opened.settings["softmax"] == opened.net.softmax == "items"


def as_tensor(column: pa.ChunkedArray) -> Tensor:
    return torch.tensor(column.to_pylist(), dtype=torch.float64)


@pytest.mark.parametrize("model", sorted(REFUSED - {"RecToolsSASRec"}))
def test_a_model_that_knows_its_users_alone_is_refused_before_and_after_training(model: str, toy_path: Path) -> None:
    if model != "SSEPT":  # whose settings decide
        with pytest.raises(ConfigError, match=f"^{model} cannot be exported: its query reads the user"):
            check_export(model, "bundle")
    result = trained(model, toy_path)
    with pytest.raises(ConfigError, match=f"^{model} cannot be exported: its query reads the user"):
        export(result.checkpoint, "bundle")
    assert not Path("bundle").exists()


def test_models_that_are_not_ours_are_refused(toy_path: Path) -> None:
    for model in ("BPR", "SASRec", "Mine"):
        with pytest.raises(ConfigError, match=f"^{model} cannot be exported: it is RecBole's or a model of your own"):
            check_export(model, "bundle")
    with pytest.raises(ConfigError, match="RecToolsSASRec cannot be exported: its weights are those of a RecTools"):
        check_export("RecToolsSASRec", "bundle")
    check_export("CaFe", "bundle")
    assert not Path("bundle").exists()


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written() -> Path:
    write(bundle_of("CaFePlus", WALKS, INTENT), "bundle")
    return Path("bundle")


@pytest.mark.parametrize("model", SERVED)
def test_what_is_written_is_read_and_written_again_as_it_was(model: str) -> None:
    bundle = bundle_of(model, WALKS, INTENT)
    write(bundle, "one")
    opened = read("one")
    same_weights(opened, bundle)
    found, expected = (Recommender(one).recommend(HISTORIES, k=3) for one in (opened, bundle))
    assert found["item"].equals(expected["item"])
    place = found.column_names.index(Recommender(opened).score_name)
    torch.testing.assert_close(as_tensor(found[place]), as_tensor(expected[place]), rtol=1e-6, atol=1e-7)
    write(opened, "two")
    assert version_of("one") == version_of("two")
    for path in Path("one").iterdir():
        assert path.read_bytes() == (Path("two") / path.name).read_bytes(), path.name


def test_a_bundle_is_not_written_over_something_else(written: Path) -> None:
    bundle = bundle_of("IntentBackoff", WALKS, INTENT)
    with pytest.raises(OutputError, match="holds a bundle already"):
        write(bundle, written)
    write(bundle, written, replace=True)
    assert read(written).model == "IntentBackoff"
    Path("file").write_text("x")
    Path("other").mkdir()
    Path("other/photo.jpg").write_text("x")
    for place, said in (("file", "is a file"), ("other", "holds files and no bundle.json")):
        for replace in (False, True):
            with pytest.raises(OutputError, match=said):
                write(bundle, place, replace=replace)
            with pytest.raises(OutputError, match=said):
                check_place(place, replace=replace)
    assert sorted(p.name for p in Path().iterdir()) == ["bundle", "file", "other"]
    Path("empty").mkdir()
    write(bundle, "empty")


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A manifest changed by somebody who knows how it is sealed."""

    def edit(folder: Path) -> None:
        file = folder / bundles.MANIFEST
        content = json.loads(file.read_text(encoding="utf-8"))
        change(content)
        content["seal"] = bundles._seal(content)
        file.write_text(json.dumps(content), encoding="utf-8")

    return edit


def sealed(folder: Path) -> None:
    """Digests and seal of the files as they are now."""

    def digests(content: dict[str, Any]) -> None:
        content["sha256"] = {name: bundles._digest(folder / name) for name in content["sha256"]}

    edited(digests)(folder)


def retabled(name: str, **columns: pa.Array) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with pa.OSFile(str(folder / name)) as file:
            table = pa.ipc.open_file(file).read_all()
        bundles._write_arrow(folder / name, {**dict(zip(table.column_names, table.columns, strict=True)), **columns})
        sealed(folder)

    return change


def reweighted(number: float | torch.dtype) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = {key: value.clone() for key, value in load_file(folder / bundles.WEIGHTS).items()}
        name, value = next((name, value) for name, value in tensors.items() if value.dim() == 2)
        if isinstance(number, torch.dtype):
            tensors[name] = value.to(number)
        else:
            value[1, 1] = number
        save_file(tensors, folder / bundles.WEIGHTS)
        sealed(folder)

    return change


def piped(folder: Path) -> None:
    (folder / bundles.ITEMS).unlink()
    os.mkfifo(folder / bundles.ITEMS)


def flipped(folder: Path) -> None:
    blob = bytearray((folder / bundles.WEIGHTS).read_bytes())
    blob[-1] ^= 1
    (folder / bundles.WEIGHTS).write_bytes(blob)


def linked(folder: Path) -> None:
    """The same bytes, but outside."""
    (folder / bundles.ITEMS).rename("elsewhere.arrow")
    (folder / bundles.ITEMS).symlink_to(Path("elsewhere.arrow").resolve())


def linked_manifest(folder: Path) -> None:
    (folder / bundles.MANIFEST).rename("elsewhere.json")
    (folder / bundles.MANIFEST).symlink_to(Path("elsewhere.json").resolve())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped, r"weights.safetensors is damaged, or not the file the bundle was written with"),
        (linked, r"items.arrow is a link, expected a file of the bundle's own"),
        (linked_manifest, r"bundle.json is a link, expected a file of the bundle's own"),
        (lambda folder: (folder / bundles.ITEMS).unlink(), "items.arrow is missing or cannot be read"),
        (lambda folder: (folder / bundles.MANIFEST).unlink(), "is no bundle: bundle.json cannot be read"),
        (lambda folder: (folder / bundles.MANIFEST).write_text("[" * 100_000), "is damaged: it is not JSON"),
        (lambda folder: (folder / bundles.MANIFEST).write_text("{}"), "format should be a int, found None"),
        (edited(lambda content: content.update(format=99)), "has format 99, this version of recbole-cafe reads 1"),
        (edited(lambda content: content.update(model="CafePlus")), "none of ours; did you mean CaFePlus"),
        (edited(lambda content: content.update(n_items=10**9)), "the tables have 6 and 4 rows"),
        (edited(lambda content: content.update(max_seq_length=2**40)), "max_seq_length=1099511627776"),
        (edited(lambda content: content["settings"].update(hidden_size=1 << 20)), "larger net than its weights"),
        (edited(lambda content: content["settings"].update(hidden=1)), "has no setting hidden"),
        (edited(lambda content: content["settings"].pop("hidden_size")), "hidden_size"),
        (edited(lambda content: content["settings"].update(layer_norm_eps="x")), "layer_norm_eps|parts do not fit"),
        (edited(lambda content: content["sha256"].update({"../../etc/passwd": "0"})), "sha256 names"),
        (edited(lambda content: content["sha256"].update({bundles.ITEMS: 7})), "of .items.arrow. should be text"),
        (retabled(bundles.ITEMS, item=pa.array(["a", "b", "c", "d", "e", "e"])), "in order, each of them once"),
        (retabled(bundles.ITEMS, order=pa.array([0, 1, 2, 3, 4, 4], pa.int32())), "in order, each of them once"),
        (retabled(bundles.ITEMS, order=pa.array([0, 1, 2, 3, 4, 6], pa.int32())), "order should hold numbers"),
        (retabled(bundles.ITEMS, intent=pa.array([1, 1, 2, 2, 4, 99], pa.int32())), "intent should hold numbers"),
        (reweighted(float("nan")), "holds numbers that are not finite"),
        (reweighted(float("inf")), "holds numbers that are not finite"),
        (reweighted(torch.float64), "is of type torch.float64, expected torch.float32"),
        (piped, "items.arrow is not a plain file"),
        (edited(lambda content: content.update(intent_temperature=0.0)), "should be a number above 0"),
    ],
)  # fmt: skip
def test_a_bundle_that_was_tampered_with_is_refused(
    written: Path, change: Callable[[Path], None], message: str
) -> None:
    change(written)
    with pytest.raises(BundleError, match=message):
        read(written)


def test_a_changed_manifest_is_noticed_by_its_seal(written: Path) -> None:
    file = written / bundles.MANIFEST
    file.write_text(file.read_text().replace('"max_seq_length": 6', '"max_seq_length": 5'))
    with pytest.raises(BundleError, match="was changed after it was written: its seal does not fit"):
        version_of(written)
    with pytest.raises(BundleError, match="no bundle"):
        read("nowhere")
