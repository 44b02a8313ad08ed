"""Whether P(c | h) is what it says: the intents that a model calls 30 % likely should come next three times in ten.

Each system is trained from its preset and asked, for every test user, for the probabilities of the next intent. Users
are put into bins of equal size by the probability of their most likely intent; `bins` holds, for each bin, the mean of
that probability and the share of users for whom that intent came next. `ece` is the mean distance of the two, weighted
by the bins' sizes (Naeini, Cooper, Hauskrecht, AAAI 2015, with bins of equal mass). `nll` is the mean negative
logarithm of the probability of what came next. `ours` is the ece of CaFePlus, `theirs` that of CaFe with a softmax.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import QUICK_SETTINGS, Data, data, machine, parser, report, workplace

import recbole_cafe
from recbole_cafe.config.props import preset, preset_model, props_dir, read_yaml
from recbole_cafe.host.reload import load_data_and_model

SYSTEMS = {  # label -> preset
    "CaFePlus": "cafe-plus/CaFePlus",
    "CaFe (softmax)": "table2-small/CaFe-CE",
    "CaFe (one negative)": "table2-small/CaFe",
    "IntentBackoff": "table2-small/IntentBackoff",
}
BINS = 10


def main() -> None:
    """Train, measure, draw."""
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--systems", default=",".join(SYSTEMS), help="of: %(default)s")
    arguments.add_argument("--figure", type=Path, help="draw the bins there (.png or .svg)")
    options = arguments.parse_args()
    figure = options.figure.resolve() if options.figure else None
    with workplace(options) as folder:
        source = data(options, folder)
        systems = {label: measure(options, source, SYSTEMS[label]) for label in options.systems.split(",")}
        if figure:
            draw(systems, figure)
        report(
            options, "calibration", ours=systems["CaFePlus"]["ece"], theirs=systems["CaFe (softmax)"]["ece"],
            unit="expected calibration error of the most likely intent", systems=systems, data=source.facts,
            machine=machine(options),
        )  # fmt: skip


def measure(options: Any, source: Data, name: str) -> dict[str, Any]:
    """Train a preset and compare its probabilities with what came."""
    file, _, _ = name.partition("/")
    shared = read_yaml(props_dir() / "benchmark" / f"{file}.yaml")["settings"]
    given = {**shared, **preset(name), "data_path": str(source.folder), "eval_mode": ["pop100"], "show_progress": False}
    given.pop("search", None)
    if options.quick:
        given |= QUICK_SETTINGS | {"epochs": 1}
    model_name = preset_model(name)
    known = recbole_cafe.Config(model_name, source.name).final_config_dict
    given = {key: value for key, value in given.items() if key in known}
    result = recbole_cafe.run(model_name, source.name, config_dict=given)
    config, model, _, _, _, test = load_data_and_model(result.checkpoint)
    model.eval()
    net, chosen = model.network, []
    rows = test._dataset
    with torch.no_grad():
        for at in torch.arange(len(rows)).split(1024):
            batch = rows[at]
            p = net.intent_probabilities(batch[model.ITEM_SEQ]).double()
            came = net.item2intent[batch[config["ITEM_ID_FIELD"]]]
            top, intent = p.max(1)
            chosen.append(torch.stack((top, (intent == came).double(), p.gather(1, came[:, None])[:, 0]), 1))
    sure, right, of_target = torch.cat(chosen).numpy().T
    order = np.argsort(sure, kind="stable")
    bins = [
        {"probability": float(sure[i].mean()), "came": float(right[i].mean()), "users": len(i)}
        for i in np.array_split(order, BINS)
        if len(i)
    ]
    return {
        "preset": name, "seed": result.seed, "users": len(sure), "first_intent_right": float(right.mean()),
        "ece": sum(b["users"] * abs(b["probability"] - b["came"]) for b in bins) / len(sure),
        "nll": float(-np.log(np.maximum(of_target, 1e-12)).mean()), "bins": bins,
    }  # fmt: skip


def draw(systems: dict[str, dict[str, Any]], path: Path) -> None:
    """What came against what was said, a line for each system; on the diagonal both are the same."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for (label, system), mark in zip(systems.items(), "os^Dv", strict=False):
        x, y = ([b[key] for b in system["bins"]] for key in ("probability", "came"))
        axes.plot(x, y, f"{mark}-", markersize=4, linewidth=1, label=f"{label} (ece {system['ece']:.3f})")
    axes.set_xlabel("probability of the most likely intent")
    axes.set_ylabel("share of users whose next intent it was")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
