"""Evaluation by protocol: where the target of each row stands, and what RecBole's metrics make of it.

A history is encoded once, however many candidates are scored (RecBole: 101 times for `pop100`); candidates are drawn
once and stored; ties are counted; values are not rounded.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from logging import Logger
from pathlib import Path
from typing import Any
from typing import Protocol as Declared

import numpy as np
import torch
import torch.distributed
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import set_color
from torch import Tensor
from tqdm import tqdm

from recbole_cafe.data.facts import ItemIntents
from recbole_cafe.errors import ConfigError
from recbole_cafe.files import candidates as sampled
from recbole_cafe.files.candidates import AUTHORS_NOTICE, Candidates, Protocol, parse_protocol
from recbole_cafe.files.places import check_folder
from recbole_cafe.model.net import Ranking
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import Ranks, rank_of_target
from recbole_cafe.train.metrics import ProtocolEvaluator

EXACT_RANKS = 100_000  # catalogues up to this size get exact ranks of all targets, larger ones up to the last cut-off
SCORE_BUDGET = 2**26  # scores held at a time in full ranking: 256 MB of float32
NO_INTENTS_NOTICE = (
    "authors{n}: the score of {model} does not depend on the candidates' intents, so that this is pop{n} for it"
)


class Scorer(Declared):
    """What evaluation needs of a model."""

    @property
    def learns(self) -> bool:
        """Whether there is something to train."""

    @property
    def scores_intents(self) -> bool:
        """Whether the score of a candidate depends on its intent."""

    @property
    def scores_candidates(self) -> bool:
        """Whether it scores given items without scoring all others."""

    @property
    def intents(self) -> ItemIntents:
        """The intents of the items; asked only of a model that scores intents."""

    def catalogue(self) -> Ranking | None:
        """The items as they are ranked exactly; None if all scores have to be made."""

    def query(self, interaction: Interaction) -> Query:
        """What the histories of a batch say, for :meth:`catalogue`."""

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, [B, V] or [B V]."""

    def score_candidates(self, interaction: Interaction, items: Tensor, intents: Tensor | None = None) -> Tensor:
        """Scores of K items per row, [B, K]."""


class RecBoleScorer:
    """A model of RecBole's as evaluation needs it: all items are scored, and no intents.

    Args:
        model: the model.
        predict: RecBole's way to score rows in parts, for models that know no other.
        item_field: column of the items.
        n_items: V, padding included.
    """

    learns = True
    scores_intents = False
    scores_candidates = False

    def __init__(self, model: AbstractRecommender, predict: Callable[[Interaction, int], Tensor], item_field: str,
                 n_items: int) -> None:  # fmt: skip
        self.model, self.predict, self.item_field, self.n_items = model, predict, item_field, n_items

    @property
    def intents(self) -> ItemIntents:
        """None are known.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self.model).__name__} scores no intents")

    def catalogue(self) -> None:
        """All scores have to be made."""
        return None

    def query(self, interaction: Interaction) -> Query:  # noqa: ARG002
        """There is none.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self.model).__name__} has no query, its scores are made at once")

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """[B, V], the dense product of a batch; models without one are asked item by item, as RecBole does."""
        try:
            return self.model.full_sort_predict(interaction).view(len(interaction), self.n_items)
        except NotImplementedError:
            everything = interaction.repeat_interleave(self.n_items)
            items = torch.arange(self.n_items).repeat(len(interaction)).to(interaction[self.item_field].device)
            everything.update(Interaction({self.item_field: items}))
            return self.predict(everything, len(everything)).view(len(interaction), self.n_items)

    def score_candidates(self, interaction: Interaction, items: Tensor, intents: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """[B, K], taken from the scores of all items."""
        return self.full_sort_predict(interaction).gather(1, items)


class Evaluation:
    """Ranks and metrics of a model, protocol by protocol.

    Args:
        config: RecBole's Config.
        scorer: the model.
        module: the same as a module, put in evaluation mode.
        collector: RecBole's, which has read the train data.
        logger: RecBole's.

    Attributes:
        ranks: protocol -> ranks of the last test.
        candidate_digests: protocol -> sha256 of its candidates.
    """

    def __init__(
        self, config: Any, scorer: Scorer, module: torch.nn.Module, collector: Collector, logger: Logger
    ) -> None:
        self.config, self.scorer, self.module, self.collector, self.logger = config, scorer, module, collector, logger
        self.device = config["device"]
        self.ranks: dict[str, Ranks] = {}
        self.candidate_digests: dict[str, str] = {}
        self._candidates: dict[str, Candidates] = {}
        self._told: set[str] = set()

    def measure(
        self, eval_data: Any, protocol: Protocol, *, phase: str, show_progress: bool = False
    ) -> OrderedDict[str, float]:
        """Metrics of the current weights under one protocol.

        Args:
            eval_data: RecBole's loader of the rows.
            protocol: the candidates.
            phase: ``valid`` or ``test``; the ranks of the latter are kept.
            show_progress: draw a bar.

        Returns:
            metric -> value.

        Raises:
            ScoreError: a score is NaN.
            ConfigError: there are no rows.
        """
        dataset = eval_data._dataset
        self.module.eval()
        self._tell(protocol)
        table = None if protocol.distribution is None else self._table(dataset, protocol)
        rows = np.arange(len(dataset))
        if not self.config["single_spec"]:  # each process takes its share; all see all ranks afterwards
            rows = np.array_split(rows, self.config["world_size"])[torch.distributed.get_rank()]
        catalogue = self.scorer.catalogue() if table is None else None
        per_batch = self.config["eval_batch_size"]
        if catalogue is None and (table is None or not self.scorer.scores_candidates):
            per_batch = max(1, min(per_batch, SCORE_BUDGET // dataset.item_num))  # these score all items at once
        batches = [rows[i : i + per_batch] for i in range(0, len(rows), per_batch)]
        parts, lists = [], []
        progress = tqdm(batches, ncols=100, desc=set_color(f"Evaluate {protocol.name}", "pink"),
                        disable=not show_progress)  # fmt: skip
        for index in progress:
            batch = eval_data.transform(dataset, dataset[index]).to(self.device)
            if table is None:
                ranks, top = self._rank_all(batch, dataset, index, catalogue)
            else:
                ranks, top = self._rank_candidates(batch, table, protocol, phase)
            parts.append(ranks)
            lists.append(top)
        ranks, top = _gather(parts, lists, single=self.config["single_spec"])
        if phase == "test":
            self.ranks[protocol.name] = ranks
        return ProtocolEvaluator(self.config).evaluate_ranks(ranks, top, self.collector.data_struct)

    def _rank_all(self, batch: Interaction, dataset: Any, index: np.ndarray,
                  catalogue: Ranking | None) -> tuple[Ranks, Tensor | None]:  # fmt: skip
        target = batch[dataset.iid_field]
        history = [torch.from_numpy(items).to(self.device) for items in dataset.history_items(index)] \
            if self.config["mask_history"] else None  # fmt: skip
        if catalogue is not None:
            return self._rank_in_catalogue(catalogue, batch, target, history)
        scores = self.scorer.full_sort_predict(batch)
        valid = torch.ones_like(scores, dtype=torch.bool)
        valid[:, 0] = False
        for i, items in enumerate(history or []):
            valid[i, items] = False
        valid[torch.arange(len(scores)), target] = True  # a repeated item is still the target
        return rank_of_target(scores, target, valid), self._top(scores, valid)

    def _rank_in_catalogue(self, catalogue: Ranking, batch: Interaction, target: Tensor,
                           history: list[Tensor] | None) -> tuple[Ranks, Tensor | None]:  # fmt: skip
        """Full ranking without a [B, V] tensor.

        In a large catalogue, a target beyond every cut-off is not ranked further: no metric of `full` distinguishes
        such ranks.
        """
        need, longest = self.collector.register.need, max(self.config["topk"])
        query = self.scorer.query(batch)
        exact = catalogue.n_items <= EXACT_RANKS or need("rec.meanrank")
        excluded = None if history is None else [torch.unique(items) for items in history]
        ranks = catalogue.rank(query, target, excluded=excluded, at_most=None if exact else longest)
        if not need("rec.items"):
            return ranks, None
        unwanted = None if excluded is None else [e[e != t] for e, t in zip(excluded, target, strict=True)]
        return ranks, catalogue.top(query, longest, unwanted)[0].cpu()

    def _rank_candidates(self, batch: Interaction, table: Candidates, protocol: Protocol,
                         phase: str) -> tuple[Ranks, Tensor | None]:  # fmt: skip
        users, target = batch[self.config["USER_ID_FIELD"]], batch[self.config["ITEM_ID_FIELD"]]
        negatives = torch.from_numpy(table.negatives[users.cpu().numpy()]).to(self.device)
        items = torch.cat((target[:, None], negatives), dim=1)  # [B, 1 + N]
        intents = None
        if protocol.random_intents and self.scorer.scores_intents:
            intents = self._random_intents(users, items, phase)
        scores = self.scorer.score_candidates(batch, items, intents)
        valid = items > 0
        top = self._top(scores, valid)
        first = torch.zeros(len(items), dtype=torch.long, device=items.device)
        return rank_of_target(scores, first, valid), None if top is None else items.cpu().gather(1, top)

    def _top(self, scores: Tensor, valid: Tensor) -> Tensor | None:
        """Column ids of the best max(topk) candidates, only when a metric (coverage, Gini, ...) asks for lists."""
        if not self.collector.register.need("rec.items"):
            return None
        k = min(max(self.config["topk"]), scores.shape[1])
        return scores.masked_fill(~valid, -torch.inf).topk(k, dim=1).indices.cpu()

    def _random_intents(self, users: Tensor, items: Tensor, phase: str) -> Tensor:
        """[B, 1 + N]: the target's own intent, then random others. Drawn per user, so batching changes nothing."""
        intents = self.scorer.intents
        own = intents.item2intent.to(items.device)[items[:, :1]]
        rows = [
            sampled.other_intents(
                np.array([target]), n_intents=intents.n_intents, n_negatives=items.shape[1] - 1,
                seed=[self.config["candidates_seed"], int(phase == "test"), int(user)],
            )
            for user, target in zip(users.tolist(), own[:, 0].tolist(), strict=True)
        ]  # fmt: skip
        return torch.cat((own, torch.from_numpy(np.concatenate(rows)).to(items.device)), dim=1)

    def check_places(self, dataset: Any) -> None:
        """Raise unless the candidates of all protocols are stored, or can be; now, not after the training.

        Args:
            dataset: a split.

        Raises:
            ConfigError: naming the folder.
        """
        folder = self._candidates_folder()
        protocols = [parse_protocol(name) for name in self.config["eval_mode"]]
        if self.config["candidates"] == "recbole" or all(protocol.n_negatives == 0 for protocol in protocols):
            return
        try:
            check_folder("candidates_dir", folder)
        except ConfigError:  # a folder that others have filled need not be writable
            of = {"name": dataset.dataset_name, "data": _fingerprint(dataset)}
            seed = int(self.config["candidates_seed"])
            sampling = [protocol for protocol in protocols if protocol.n_negatives]
            if not all(sampled.place(folder, **of, protocol=p, seed=seed).is_file() for p in sampling):
                raise

    def _candidates_folder(self) -> Path:
        return Path(self.config["candidates_dir"] or Path(self.config["checkpoint_dir"]) / "candidates")

    def _table(self, dataset: Any, protocol: Protocol) -> Candidates:
        key = f"{'uni' if protocol.distribution == 'uni' else 'pop'}{protocol.n_negatives}"
        if key not in self._candidates:
            users, items = dataset.all_interactions()
            seed, folder = int(self.config["candidates_seed"]), self._candidates_folder()
            with _first_process_first(self.config):
                table = sampled.stored(
                    folder,
                    name=dataset.dataset_name,
                    data=_fingerprint(dataset),
                    protocol=protocol,
                    seed=seed,
                    make=lambda: sampled.draw(
                        users, items, n_users=dataset.user_num, n_items=dataset.item_num,
                        n_negatives=protocol.n_negatives, distribution=key[:3], seed=seed,
                    ),
                )  # fmt: skip
            self.logger.info(f"{protocol.name}: candidates {table.path}, sha256 {table.digest[:16]}")
            if table.n_short:
                self.logger.warning(
                    f"{protocol.name}: {table.n_short} users have fewer than {protocol.n_negatives} items outside "
                    f"their own; for them all of those are candidates"
                )
            self._candidates[key] = table
        self.candidate_digests[protocol.name] = self._candidates[key].digest
        return self._candidates[key]

    def _tell(self, protocol: Protocol) -> None:
        if protocol.random_intents and protocol.name not in self._told:
            self._told.add(protocol.name)
            notice = AUTHORS_NOTICE if self.scorer.scores_intents else NO_INTENTS_NOTICE
            self.logger.warning(notice.format(n=protocol.n_negatives, model=self.config["model"]))


def _gather(parts: list[Ranks], lists: list[Tensor | None], *, single: bool) -> tuple[Ranks, Tensor | None]:
    """All batches together; over all processes when there are several."""
    own = (Ranks.cat(parts) if parts else None, None if not lists or lists[0] is None else torch.cat(lists))
    if single:
        if own[0] is None:
            raise ConfigError("there is nothing to evaluate: this split of the data set has no rows")
        return own
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    observed = [pair for pair in everyone if pair[0] is not None]
    tops = [pair[1] for pair in observed if pair[1] is not None]
    return Ranks.cat([pair[0] for pair in observed]), torch.cat(tops) if tops else None


def _fingerprint(dataset: Any) -> str:
    tokens = [dataset.field2id_token[field] for field in (dataset.uid_field, dataset.iid_field)]
    return sampled.fingerprint(dataset.dataset_name, *tokens, *dataset.all_interactions())


@contextlib.contextmanager
def _first_process_first(config: Any) -> Any:
    """Process 0 draws and stores, the others wait and read."""
    waits = not config["single_spec"] and torch.distributed.get_rank() != 0
    if waits:
        torch.distributed.barrier()
    yield
    if not config["single_spec"] and not waits:
        torch.distributed.barrier()
