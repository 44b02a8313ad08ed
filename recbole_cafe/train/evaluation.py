"""Evaluation by protocol: where the target of each row stands, and what RecBole's metrics make of it.

A history is encoded once, however many candidates are scored (RecBole: 101 times for `pop100`); candidates are drawn
once and stored; ties are counted; values are not rounded.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
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
from recbole.utils import EvaluatorType, set_color
from torch import Tensor
from tqdm import tqdm

from recbole_cafe.data.facts import ItemIntents
from recbole_cafe.errors import ConfigError
from recbole_cafe.files import candidates as sampled
from recbole_cafe.files.candidates import AUTHORS_NOTICE, LATER, Candidates, Protocol, parse_protocol
from recbole_cafe.files.places import check_folder
from recbole_cafe.model.net import Ranking
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import Ranks, list_with_target, rank_of_target
from recbole_cafe.train.metrics import ProtocolEvaluator

EXACT_RANKS = 100_000  # catalogues up to this size get exact ranks of all targets, larger ones up to the last cut-off
SCORE_BUDGET = 2**26  # scores held at a time in full ranking: 256 MB of float32
SCORE_TABLE = 2**32  # scores of all items for all rows, if a metric of a user's own needs them: 16 GiB of float32
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
    def sharded(self) -> bool:
        """Whether several processes hold its items together, so that all have to rank every row."""

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
        predicts: candidates are scored item by item by the model's `predict`. Value metrics (LogLoss) need it: some
            models' `predict` is a probability where their scores of all items are only in the same order.
    """

    learns = True
    scores_intents = False
    sharded = False

    def __init__(self, model: AbstractRecommender, predict: Callable[[Interaction, int], Tensor], item_field: str,
                 n_items: int, *, predicts: bool = False) -> None:  # fmt: skip
        self.model, self.predict, self.item_field, self.n_items = model, predict, item_field, n_items
        self.scores_candidates = predicts

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
            everything = torch.arange(self.n_items, device=interaction[self.item_field].device)
            return self._item_by_item(interaction, everything.expand(len(interaction), -1))

    def score_candidates(self, interaction: Interaction, items: Tensor, intents: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """[B, K], taken from the scores of all items unless the model `predicts`."""
        if self.scores_candidates:
            return self._item_by_item(interaction, items)
        return self.full_sort_predict(interaction).gather(1, items)

    def _item_by_item(self, interaction: Interaction, items: Tensor) -> Tensor:
        """[B, K]: RecBole's `predict` of K copies of each row."""
        copies = interaction.repeat_interleave(items.shape[1])
        copies.update(Interaction({self.item_field: items.reshape(-1)}))
        return self.predict(copies, len(copies)).view(items.shape)


@dataclass(frozen=True)
class Outcome:
    """How N rows were ranked.

    Attributes:
        ranks: of their targets.
        collected: what else the metrics need of the rows, by RecBole's names.
    """

    ranks: Ranks
    collected: dict[str, Tensor]

    @staticmethod
    def cat(parts: list[Outcome]) -> Outcome:
        """All of them, in order."""
        collected = {key: torch.cat([part.collected[key] for part in parts]) for key in parts[0].collected}
        return Outcome(Ranks.cat([part.ranks for part in parts]), collected)


@dataclass(frozen=True)
class Prepared:
    """Rows as they are ranked under a protocol.

    Attributes:
        history: [B, L] items.
        user: [B].
        target: [B].
        items: [B, 1 + N] the target, then its rivals, 0 for none; None where all items compete.
        intents: [B, 1 + N] to score the candidates with instead of their own, or None.
        excluded: where all items compete, those that do not, each once, one tensor per row; None for none.
    """

    history: Tensor
    user: Tensor
    target: Tensor
    items: Tensor | None
    intents: Tensor | None
    excluded: list[Tensor] | None


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
        n_targets: protocol or view -> targets of the last test; `full_later` only where it is known which they are.
        later: [N] bool, which targets of the last test are strictly later than the item before; None if not known.
        later_unknown: why it is not known, empty if it is or `full` was not measured.
    """

    def __init__(
        self, config: Any, scorer: Scorer, module: torch.nn.Module, collector: Collector, logger: Logger
    ) -> None:
        self.config, self.scorer, self.module, self.collector, self.logger = config, scorer, module, collector, logger
        self.device = config["device"]
        self.evaluator = ProtocolEvaluator(config)
        self.ranks: dict[str, Ranks] = {}
        self.candidate_digests: dict[str, str] = {}
        self.n_targets: dict[str, int] = {}
        self.later: Tensor | None = None
        self.later_unknown = ""
        self._candidates: dict[str, Candidates] = {}
        self._told: set[str] = set()

    def check(self, eval_data: Any, protocol: Protocol) -> None:
        """Refuse, before training, metrics that this protocol could not give afterwards.

        RecBole's own metrics are given under every protocol.

        Args:
            eval_data: RecBole's loader of the rows.
            protocol: the candidates.

        Raises:
            ConfigError: a metric of a user's own needs lists, and some row has fewer candidates than the longest
                cut-off; or it needs scores of all items, and there are too many; or labels, and the data have none.
        """
        dataset, needs, k = eval_data._dataset, self.evaluator.needs, max(self.config["topk"])
        metrics, label = f"metrics={self.config['metrics']}", self.config["LABEL_FIELD"]
        ranking = self.config["eval_type"] == EvaluatorType.RANKING
        if self.scorer.sharded and protocol.distribution is None and "rec.score" in needs:
            raise ConfigError(
                f"{metrics}: one needs rec.score, the scores of all items, which lie in several processes; set "
                f"shard_tables=False"
            )
        if "rec.score" in needs and ranking and len(dataset) * dataset.item_num > SCORE_TABLE:
            raise ConfigError(
                f"{metrics}: one needs rec.score, the scores of all {dataset.item_num - 1} items for {len(dataset)} "
                f"rows; at most {SCORE_TABLE} scores are kept"
            )
        if "data.label" in needs and protocol.distribution is None and label not in dataset.inter_feat:
            raise ConfigError(
                f"{metrics}: one needs data.label, under {protocol.name} the column LABEL_FIELD={label!r} of the "
                f"interactions, which is not among the columns loaded"
            )
        if self.evaluator.own_lists:
            least = self._fewest_candidates(dataset, protocol)
            if least < k:
                raise ConfigError(
                    f"topk={self.config['topk']}: the metrics {', '.join(self.evaluator.own_lists)} need lists "
                    f"(rec.items) of {k} items, under {protocol.name} there is a row with {least} candidates"
                )

    def _fewest_candidates(self, dataset: Any, protocol: Protocol) -> int:
        """The smallest number of candidates that a row has."""
        if protocol.distribution is not None:
            users = dataset.inter_feat[dataset.uid_field].numpy()
            return 1 + int((self._table(dataset, protocol).negatives[users] > 0).sum(1).min())
        n_items = dataset.item_num - 1
        if not self.config["mask_history"]:
            return n_items
        targets = dataset.inter_feat[dataset.iid_field].tolist()
        history = dataset.history_items(np.arange(len(dataset)))
        return n_items - max(len(set(items.tolist()) - {t}) for items, t in zip(history, targets, strict=True))

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
            metric -> value; of `full` also ``full_later/<metric>``, over the targets that are strictly later than the
            item before, if it is known which they are and there are any.

        Raises:
            ScoreError: a score is NaN.
            ConfigError: there are no rows; or see :meth:`check`.
        """
        dataset = eval_data._dataset
        self.check(eval_data, protocol)
        self.module.eval()
        self._tell(protocol)
        table = None if protocol.distribution is None else self._table(dataset, protocol)
        rows = np.arange(len(dataset))
        alone = self.config["single_spec"] or self.scorer.sharded
        if not alone:  # each process takes its share; all see all ranks afterwards
            rows = np.array_split(rows, self.config["world_size"])[torch.distributed.get_rank()]
        of_scores = "rec.score" in self.evaluator.needs  # all have to be made then
        catalogue = self.scorer.catalogue() if table is None and not of_scores else None
        per_batch = self.config["eval_batch_size"]
        if of_scores or (catalogue is None and (table is None or not self.scorer.scores_candidates)):
            per_batch = max(1, min(per_batch, SCORE_BUDGET // dataset.item_num))  # these score all items at once
        batches = [rows[i : i + per_batch] for i in range(0, len(rows), per_batch)]
        luck = torch.from_numpy(np.random.default_rng(self.config["candidates_seed"]).random(len(dataset)))
        parts = []
        progress = tqdm(batches, ncols=100, desc=set_color(f"Evaluate {protocol.name}", "pink"),
                        disable=not show_progress)  # fmt: skip
        for index in progress:
            batch = eval_data.transform(dataset, dataset[index]).to(self.device)
            if table is None:
                parts.append(self._rank_all(batch, dataset, index, catalogue, luck[index]))
            else:
                parts.append(self._rank_candidates(batch, table, protocol, phase, luck[index]))
        outcome = _gather(parts, single=alone)
        if phase == "test":
            self.ranks[protocol.name] = outcome.ranks
            self.n_targets[protocol.name] = len(dataset)
        values = self.evaluator.evaluate_ranks(outcome.ranks, outcome.collected, self.collector.data_struct)
        if table is None:
            of_later = self._of_later_targets(outcome.ranks, dataset, phase)
            values.update({f"{LATER}/{key}": value for key, value in of_later.items()})
        return values

    def _of_later_targets(self, ranks: Ranks, dataset: Any, phase: str) -> dict[str, float]:
        """The metrics of `full` over the rows whose target is strictly later; none if not known which, or none is."""
        flags = dataset.later_targets()
        later = None if flags is None else torch.from_numpy(flags)
        if phase == "test":
            self.later, self.later_unknown = later, dataset.later_unknown
            if later is not None:
                self.n_targets[LATER] = int(later.sum())
        if later is None:
            if LATER not in self._told:
                self._told.add(LATER)
                self.logger.warning(f"{LATER}: which targets are later than the item before is unknown: "
                                    f"{dataset.later_unknown}")  # fmt: skip
            return {}
        return self.evaluator.of_ranks(ranks.of(later)) if later.any() else {}

    def prepared(self, eval_data: Any, protocol: Protocol, index: np.ndarray, *, phase: str) -> Prepared:
        """Some rows with their candidates, for a model of ours.

        Args:
            eval_data: RecBole's loader of the rows.
            protocol: the candidates.
            index: [B] which rows.
            phase: ``valid`` or ``test``.
        """
        dataset = eval_data._dataset
        batch = eval_data.transform(dataset, dataset[index]).to(self.device)
        items = intents = excluded = None
        if protocol.distribution is not None:
            items, intents = self._candidates_of(batch, self._table(dataset, protocol), protocol, phase)
        elif self.config["mask_history"]:
            excluded = [torch.unique(gone) for gone in self._histories(dataset, index)]
        history, user = batch[self.module.ITEM_SEQ], batch[dataset.uid_field]
        return Prepared(history, user, batch[dataset.iid_field], items, intents, excluded)

    def _histories(self, dataset: Any, index: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(items).to(self.device) for items in dataset.history_items(index)]

    def _rank_all(self, batch: Interaction, dataset: Any, index: np.ndarray, catalogue: Ranking | None,
                  luck: Tensor) -> Outcome:  # fmt: skip
        target = batch[dataset.iid_field]
        history = self._histories(dataset, index) if self.config["mask_history"] else None
        collected = {}
        if "data.label" in self.evaluator.needs:
            collected["data.label"] = batch[self.config["LABEL_FIELD"]].cpu()
        if catalogue is not None:
            ranks, top = self._rank_in_catalogue(catalogue, batch, target, history)
            return Outcome(ranks, collected | self._placed(ranks, target, luck, top))
        scores = self.scorer.full_sort_predict(batch)
        valid = torch.ones_like(scores, dtype=torch.bool)
        valid[:, 0] = False
        for i, items in enumerate(history or []):
            valid[i, items] = False
        valid[torch.arange(len(scores)), target] = True  # a repeated item is still the target
        ranks = rank_of_target(scores, target, valid)
        if "rec.score" in self.evaluator.needs:
            collected["rec.score"] = scores.masked_fill(~valid, -torch.inf).cpu()
        return Outcome(ranks, collected | self._placed(ranks, target, luck, self._top(scores, valid)))

    def _rank_in_catalogue(self, catalogue: Ranking, batch: Interaction, target: Tensor,
                           history: list[Tensor] | None) -> tuple[Ranks, Tensor | None]:  # fmt: skip
        """Full ranking without a [B, V] tensor.

        In a large catalogue, a target beyond every cut-off is not ranked further: no metric of `full` distinguishes
        such ranks.
        """
        needs, longest = self.evaluator.needs, max(self.config["topk"])
        query = self.scorer.query(batch)
        exact = catalogue.n_items <= EXACT_RANKS or "rec.meanrank" in needs
        excluded = None if history is None else [torch.unique(items) for items in history]
        ranks = catalogue.rank(query, target, excluded=excluded, at_most=None if exact else longest)
        if "rec.items" not in needs:
            return ranks, None
        unwanted = None if excluded is None else [e[e != t] for e, t in zip(excluded, target, strict=True)]
        return ranks, catalogue.top(query, longest + 1, unwanted)[0]

    def _rank_candidates(self, batch: Interaction, table: Candidates, protocol: Protocol, phase: str,
                         luck: Tensor) -> Outcome:  # fmt: skip
        target = batch[self.config["ITEM_ID_FIELD"]]
        items, intents = self._candidates_of(batch, table, protocol, phase)
        scores = self.scorer.score_candidates(batch, items, intents)
        valid = items > 0
        first = torch.zeros(len(items), dtype=torch.long, device=items.device)
        ranks = rank_of_target(scores, first, valid)
        top = self._top(scores, valid, items)
        return Outcome(ranks, self._scored(scores, valid, items) | self._placed(ranks, target, luck, top))

    def _candidates_of(self, batch: Interaction, table: Candidates, protocol: Protocol,
                       phase: str) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """[B, 1 + N] the target and its rivals, and the intents to score them with if not their own."""
        users, target = batch[self.config["USER_ID_FIELD"]], batch[self.config["ITEM_ID_FIELD"]]
        negatives = torch.from_numpy(table.negatives[users.cpu().numpy()]).to(self.device)
        items = torch.cat((target[:, None], negatives), dim=1)
        if protocol.random_intents and self.scorer.scores_intents:
            return items, self._random_intents(users, items, phase)
        return items, None

    def _scored(self, scores: Tensor, valid: Tensor, items: Tensor) -> dict[str, Tensor]:
        """What metrics need of the scores of candidates, in RecBole's shapes.

        Args:
            scores: [B, 1 + N], the target's first.
            valid: [B, 1 + N] which are candidates; M of them.
            items: [B, 1 + N] their ids.

        Returns:
            ``rec.score``, [M] for value metrics, else [B, V] with -inf for items that are no candidates;
            ``data.label``, [M], 1 for a target and else 0.
        """
        collected = {}
        if "rec.score" in self.evaluator.needs:
            if self.config["eval_type"] == EvaluatorType.VALUE:
                collected["rec.score"] = scores[valid].cpu()
            else:
                everything = scores.new_full((len(scores), self.module.n_items), -torch.inf)
                collected["rec.score"] = everything.scatter(1, items, scores.masked_fill(~valid, -torch.inf)).cpu()
        if "data.label" in self.evaluator.needs:
            label = torch.zeros_like(scores, dtype=torch.float32)
            label[:, 0] = 1.0
            collected["data.label"] = label[valid].cpu()
        return collected

    def _placed(self, ranks: Ranks, target: Tensor, luck: Tensor, top: Tensor | None) -> dict[str, Tensor]:
        """What metrics need of the lists.

        A list has one place for the target, so a tie is broken by lot: the same at each evaluation, and without
        preference for the target or for its rivals.

        Args:
            ranks: of B targets.
            target: [B] their ids.
            luck: [B] in [0, 1), the lots.
            top: [B, max(topk) + 1] the best items, or None when nobody needs lists.

        Returns:
            ``rec.topk``, [B, max(topk) + 1], whether the target is at each place, and the number of targets, 1;
            ``rec.items``, [B, max(topk)] ids, 0 where there are no more candidates.
        """
        collected, k = {}, max(self.config["topk"])
        place = ranks.places(luck)
        if "rec.topk" in self.evaluator.needs:
            hits = (torch.arange(k) == place[:, None]).int()
            collected["rec.topk"] = torch.cat((hits, torch.ones(len(hits), 1, dtype=torch.int)), dim=1)
        if top is not None:
            collected["rec.items"] = list_with_target(top.cpu(), target.cpu(), place)
        return collected

    def _top(self, scores: Tensor, valid: Tensor, items: Tensor | None = None) -> Tensor | None:
        """Ids of the best candidates, only when a metric (coverage, Gini, ...) asks for lists.

        Args:
            scores: [B, K].
            valid: [B, K] which are candidates.
            items: [B, K] their ids; None if the column is the id.

        Returns:
            [B, max(topk) + 1], best first, 0 where there are no more.
        """
        if "rec.items" not in self.evaluator.needs:
            return None
        longest = max(self.config["topk"]) + 1
        lowest = torch.finfo(scores.dtype).min  # a candidate with -inf comes before what is no candidate
        best = scores.clamp(min=lowest).masked_fill(~valid, -torch.inf).topk(min(longest, scores.shape[1]), dim=1)
        ids = best.indices if items is None else items.gather(1, best.indices)
        ids = ids.masked_fill(best.values == -torch.inf, 0)
        return torch.nn.functional.pad(ids, (0, longest - ids.shape[1]))

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


def _gather(parts: list[Outcome], *, single: bool) -> Outcome:
    """All batches together; over all processes when there are several."""
    own = Outcome.cat(parts) if parts else None
    if single:
        if own is None:
            raise ConfigError("there is nothing to evaluate: this split of the data set has no rows")
        return own
    everyone: list[Outcome | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    return Outcome.cat([outcome for outcome in everyone if outcome is not None])


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
