"""RecBole's trainers with our evaluation and our checkpoints.

`trainer_class(Base)` puts :class:`EvaluationMixin` on any RecBole trainer class. `fit`, the optimiser, early stopping,
logging and tensorboard are RecBole's. Evaluated through it, a model

* encodes each history once, however many candidates are scored (RecBole: 101 times for `pop100`);
* is ranked by the project's protocols, with stored candidates, counted ties and unrounded metrics;
* keeps its best weights in a checkpoint of tensors and plain data, written atomically.

RecBole's metric classes compute every value; only what they are fed differs. ``candidates: recbole`` gives RecBole's
own evaluation instead.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import OrderedDict
from datetime import datetime
from functools import cache, partial, wraps
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.distributed
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, ModelType, set_color
from torch import Tensor
from tqdm import tqdm

from recbole_cafe.config.config import is_ours
from recbole_cafe.errors import ConfigError
from recbole_cafe.files import candidates as sampled
from recbole_cafe.files.candidates import AUTHORS_NOTICE, Candidates, Protocol, parse_protocol
from recbole_cafe.ranking.ranks import Ranks, rank_of_target
from recbole_cafe.train import checkpoint
from recbole_cafe.train.gradients import average_gradients, clip_grad_norm
from recbole_cafe.train.lazy_logits import PromisedLogits
from recbole_cafe.train.metrics import ProtocolEvaluator
from recbole_cafe.train.row_adam import SPARSE_LEARNERS, RowWise, Together, sparse_tables
from recbole_cafe.train.weight_average import WeightAverage

EXACT_RANKS = 100_000  # catalogues up to this size get exact ranks of all targets, larger ones up to the last cut-off
SCORE_BUDGET = 2**26  # scores held at a time in full ranking: 256 MB of float32
NO_INTENTS_NOTICE = (
    "authors{n}: the score of {model} does not depend on the candidates' intents, so that this is pop{n} for it"
)


class EvaluationMixin:
    """Evaluation by protocol, and checkpoints of plain data, for any RecBole trainer."""

    _row_wise: RowWise | None = None
    _average: WeightAverage | None = None

    def __init__(self, config: Any, model: AbstractRecommender) -> None:
        super().__init__(config, model)
        if not getattr(model, "learns", True):
            self.epochs = 1  # there is nothing to train, the one epoch is for validation
        # RecBole's TraditionalTrainer has one epoch, whatever the config says
        self.eval_step = min(self.eval_step, self.epochs)
        self.average_from = config["average_from"] or 0
        if self.average_from and getattr(model, "learns", True):
            self._average = WeightAverage(model.parameters())
        self.saved_model_file = self._file_name()
        self.protocols = [parse_protocol(name) for name in config["eval_mode"]]
        self.seconds = {"train": 0.0, "evaluation": 0.0}
        self.epochs_run = 0
        self.ranks: dict[str, Ranks] = {}  # of the last test, per protocol
        self.candidate_digests: dict[str, str] = {}
        self._candidates: dict[str, Candidates] = {}
        self._told: set[str] = set()

    # Training --------------------------------------------------------------------------------------------------------

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimiser for the `learner`, Adam in PyTorch's fused form (the same update in one pass); of our
        models, tables with sparse gradients row by row (recbole_cafe.train.row_adam).

        Raises:
            ConfigError: the learner has no form for sparse gradients.
        """
        if not is_ours(type(self.model)):
            return _fused(super()._build_optimizer(**kwargs))
        tables = sparse_tables(self.model)
        weights = [table.weight for table in tables]
        table_ids = {id(weight) for weight in weights}
        dense = super()._build_optimizer(params=[p for p in self.model.parameters() if id(p) not in table_ids])
        _fused(dense)
        if not tables:
            return dense
        learner, lr, decay = self.learner.lower(), self.learning_rate, self.weight_decay
        if learner not in SPARSE_LEARNERS or (learner in ("sgd", "adagrad") and decay):
            raise ConfigError(
                f"learner={self.learner} with weight_decay={decay} has no form for sparse gradients: set "
                f"sparse_tables=False, or a learner of {', '.join(SPARSE_LEARNERS)} (sgd, adagrad without weight_decay)"
            )
        if learner in ("adam", "adamw"):
            rows: torch.optim.Optimizer = RowWise(weights, lr=lr, weight_decay=decay, decoupled=learner == "adamw")
            for table in tables:
                table.register_forward_pre_hook(partial(_catch_up, rows))
            self._row_wise = rows
        else:
            rows = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[learner](weights, lr=lr)
        return Together(dense, rows)

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        """RecBole's epoch; afterwards the model holds the weights to be evaluated and saved, see `average_from`."""
        start = perf_counter()
        if self._average is not None:
            self._average.train()
        if is_ours(type(self.model)):
            loss = self._epoch(train_data, epoch_idx, loss_func or self.model.calculate_loss, show_progress)
        else:
            with warnings.catch_warnings():
                # RecBole's torch.cuda.amp.GradScaler is deprecated and works; nobody but RecBole can rename it
                warnings.filterwarnings("ignore", message=".*GradScaler.*", category=FutureWarning)
                loss_func = self._promising(loss_func or self.model.calculate_loss)
                loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        if self._average is not None and epoch_idx + 1 >= self.average_from:
            self._average.add()
        self.seconds["train"] += perf_counter() - start
        self.epochs_run += 1
        return loss

    def _promising(self, loss_func: Any) -> Any:
        """A loss function of RecBole's in which the softmax over the catalogue makes no logits."""

        promised = PromisedLogits(self.model, getattr(self.model, "n_items", 0))

        @wraps(loss_func)
        def loss(*arguments: Any) -> Any:
            with promised:
                return loss_func(*arguments)

        return loss

    def _epoch(self, train_data: Any, epoch_idx: int, loss_func: Any, show_progress: bool) -> float:
        """RecBole's epoch for sparse gradients too. RecBole's own clips with a function that has no sparse form, clips
        scaled gradients, and in several processes touches every row of every table.

        Returns:
            the sum of the batches' losses, as RecBole's.
        """
        if not getattr(self.model, "learns", True):
            return 0.0
        self.model.train()
        several = not self.config["single_spec"]
        if several and train_data.shuffle:
            train_data.sampler.set_epoch(epoch_idx)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        total = torch.zeros((), device=self.device)
        description = set_color(f"Train {epoch_idx:>5}", "pink")
        for step, batch in enumerate(tqdm(train_data, ncols=100, desc=description, disable=not show_progress)):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
                loss = loss_func(batch.to(self.device))
            scaler.scale(loss).backward()
            if several:
                average_gradients(self.model.parameters())
            if self.clip_grad_norm:
                scaler.unscale_(self.optimizer)
                clip_grad_norm(self.model.parameters(), **self.clip_grad_norm)
            scaler.step(self.optimizer)
            scaler.update()
            total += loss.detach()
            if step % 100 == 0:
                self._check_nan(total)  # waits for the device, so not at every step
        self._check_nan(total)
        if self._row_wise is not None:
            self._row_wise.catch_up_all()  # what evaluates or saves the model reads whole tables
        return total.item()

    def _file_name(self) -> str:
        """Name of the checkpoint, the same in all processes. RecBole's has one second's resolution and no data set, so
        two runs started in one second overwrite each other."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = [f"{self.config['model']}-{self.config['dataset']}-{stamp}-{os.getpid()}.pth"]
        if not self.config["single_spec"]:
            torch.distributed.broadcast_object_list(name)
        return str(Path(self.checkpoint_dir) / name[0])

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """RecBole's checkpoint as plain data and tensors, written whole or not at all."""
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        state = {
            "config": checkpoint.plain_config(self.config),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self._average is not None:
            state["average"] = self._average.state_dict()
        checkpoint.save(path, state)
        if verbose:
            self.logger.info(f"Saving current: {path}")

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Continue from a checkpoint: weights and their mean, optimiser, epoch and best score; otherwise RecBole's.

        Raises:
            UnsafeCheckpointError: the file would have to be unpickled and `trust_checkpoint` is not set.
        """
        state = self._load(resume_file)
        if str(state["config"]["model"]).lower() != str(self.config["model"]).lower():
            raise ConfigError(
                f"{resume_file} holds a {state['config']['model']}, the model to train is {self.config['model']}"
            )
        self.saved_model_file = str(resume_file)
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self._take(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if average := state.get("average"):
            kept = self._average or WeightAverage(self.model.parameters())
            kept.load_state_dict(average)
            if self._average is None:
                kept.train()  # what is in the mean so far is given up
        self.logger.info(f"Checkpoint loaded. Resume training from epoch {self.start_epoch}")

    def _load(self, path: str | Path, mmap: bool = False) -> dict[str, Any]:
        trust = bool(self.config["trust_checkpoint"])
        return checkpoint.load(path, map_location=self.device, trust_checkpoint=trust, mmap=mmap)

    def _take(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["state_dict"])
        self.model.load_other_parameter(state.get("other_parameter"))  # checkpoint.load has decoded it

    # Evaluation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, eval_data: Any, load_best_model: bool = True, model_file: str | None = None,
                 show_progress: bool = False) -> OrderedDict | None:  # fmt: skip
        """RecBole's `evaluate`: metrics of the first protocol for validation, of all protocols for test.

        Returns:
            metric -> value, the keys of the second and later protocols prefixed: ``pop100/ndcg@5``. Values are not
            rounded. None without data, as in RecBole.
        """
        if not eval_data:
            return None
        if load_best_model:
            path = model_file or self.saved_model_file
            if not self.config["single_spec"]:
                torch.distributed.barrier()  # process 0 may still be writing it
            # of its own file only the weights are read: the optimiser's state is twice as large
            own = model_file is None and self.device.type == "cpu"
            self._take(self._load(path, mmap=own))
            self.logger.info(f"Loading model structure and parameters from {path}")
        if self.config["candidates"] == "recbole" or self.eval_type != EvaluatorType.RANKING:
            return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        start = perf_counter()
        phase = getattr(eval_data._sampler, "phase", None) or "test"
        protocols = self.protocols[:1] if phase == "valid" else self.protocols
        result: OrderedDict = OrderedDict()
        for i, protocol in enumerate(protocols):
            values = self.evaluate_protocol(eval_data, protocol, phase=phase, show_progress=show_progress)
            result.update({key if i == 0 else f"{protocol.name}/{key}": value for key, value in values.items()})
        self.seconds["evaluation"] += perf_counter() - start
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    def evaluate_protocol(self, eval_data: Any, protocol: Protocol, *, phase: str,
                          show_progress: bool = False) -> OrderedDict:  # fmt: skip
        """Metrics of the current weights on the rows of `eval_data` under one protocol."""
        dataset = eval_data._dataset
        self.model.eval()
        self._tell(protocol)
        table = None if protocol.distribution is None else self._table(dataset, protocol)
        rows = np.arange(len(dataset))
        if not self.config["single_spec"]:  # each process takes its share; all see all ranks afterwards
            rows = np.array_split(rows, self.config["world_size"])[torch.distributed.get_rank()]
        self._catalogue = None
        if table is None and hasattr(getattr(self.model, "network", None), "catalogue"):
            self._catalogue = self.model.network.catalogue()
        per_batch = self.config["eval_batch_size"]
        if self._catalogue is None and (table is None or not hasattr(self.model, "score_candidates")):
            per_batch = max(1, min(per_batch, SCORE_BUDGET // dataset.item_num))  # these score all items at once
        batches = [rows[i : i + per_batch] for i in range(0, len(rows), per_batch)]
        parts, lists = [], []
        progress = tqdm(batches, ncols=100, desc=set_color(f"Evaluate {protocol.name}", "pink"),
                        disable=not show_progress)  # fmt: skip
        for index in progress:
            batch = eval_data.transform(dataset, dataset[index]).to(self.device)
            if table is None:
                ranks, top = self._rank_all(batch, dataset, index)
            else:
                ranks, top = self._rank_candidates(batch, table, protocol, phase)
            parts.append(ranks)
            lists.append(top)
        ranks, top = _gather(parts, lists, single=self.config["single_spec"])
        if phase == "test":
            self.ranks[protocol.name] = ranks
        return ProtocolEvaluator(self.config).evaluate_ranks(ranks, top, self.eval_collector.data_struct)

    def _rank_all(self, batch: Interaction, dataset: Any, index: np.ndarray) -> tuple[Ranks, Tensor | None]:
        target = batch[dataset.iid_field]
        history = [torch.from_numpy(items).to(self.device) for items in dataset.history_items(index)] \
            if self.config["mask_history"] else None  # fmt: skip
        if self._catalogue is not None:
            return self._rank_in_catalogue(batch, target, history)
        scores = self._all_scores(batch, dataset.item_num)
        valid = torch.ones_like(scores, dtype=torch.bool)
        valid[:, 0] = False
        for i, items in enumerate(history or []):
            valid[i, items] = False
        valid[torch.arange(len(scores)), target] = True  # a repeated item is still the target
        return rank_of_target(scores, target, valid), self._top(scores, valid)

    def _rank_in_catalogue(self, batch: Interaction, target: Tensor,
                           history: list[Tensor] | None) -> tuple[Ranks, Tensor | None]:  # fmt: skip
        """Full ranking without a [B, V] tensor. In a large catalogue, a target beyond every cut-off is not ranked
        further: no metric of `full` distinguishes such ranks."""
        need, longest = self.eval_collector.register.need, max(self.config["topk"])
        state, terms = self.model.encode(batch)
        exact = self._catalogue.n_items <= EXACT_RANKS or need("rec.meanrank")
        excluded = None if history is None else [torch.unique(items) for items in history]
        ranks = self._catalogue.rank(state, terms, target, excluded=excluded, at_most=None if exact else longest)
        if not need("rec.items"):
            return ranks, None
        wanted = None if excluded is None else [e[e != t] for e, t in zip(excluded, target, strict=True)]
        return ranks, self._catalogue.top(state, terms, longest, wanted)[0].cpu()

    def _rank_candidates(self, batch: Interaction, table: Candidates, protocol: Protocol,
                         phase: str) -> tuple[Ranks, Tensor | None]:  # fmt: skip
        users, target = batch[self.config["USER_ID_FIELD"]], batch[self.config["ITEM_ID_FIELD"]]
        negatives = torch.from_numpy(table.negatives[users.cpu().numpy()]).to(self.device)
        items = torch.cat((target[:, None], negatives), dim=1)  # [B, 1 + N]
        intents = None
        if protocol.random_intents and self._scores_intents():
            intents = self._random_intents(users, items, phase)
        if hasattr(self.model, "score_candidates"):
            scores = self.model.score_candidates(batch, items, intents)
        else:
            scores = self._all_scores(batch, self.model.n_items).gather(1, items)
        valid = items > 0
        top = self._top(scores, valid)
        first = torch.zeros(len(items), dtype=torch.long, device=items.device)
        return rank_of_target(scores, first, valid), None if top is None else items.cpu().gather(1, top)

    def _all_scores(self, batch: Interaction, n_items: int) -> Tensor:
        """[B, V], the dense product of a batch; models without one are asked item by item, as RecBole does."""
        try:
            return self.model.full_sort_predict(batch).view(len(batch), n_items)
        except NotImplementedError:
            item_field = self.config["ITEM_ID_FIELD"]
            everything = batch.repeat_interleave(n_items)
            everything.update(Interaction({item_field: torch.arange(n_items).repeat(len(batch)).to(self.device)}))
            return self._spilt_predict(everything, len(everything)).view(len(batch), n_items)

    def _top(self, scores: Tensor, valid: Tensor) -> Tensor | None:
        """Column ids of the best max(topk) candidates, only when a metric (coverage, Gini, ...) asks for lists."""
        if not self.eval_collector.register.need("rec.items"):
            return None
        k = min(max(self.config["topk"]), scores.shape[1])
        return scores.masked_fill(~valid, -torch.inf).topk(k, dim=1).indices.cpu()

    def _scores_intents(self) -> bool:
        """Whether a candidate's intent is part of its score. A net that knows intents and scores items alone says so
        with ``scores_intents = False``."""
        knows = hasattr(self.model, "score_candidates") and getattr(self.model, "_intents", None) is not None
        return knows and bool(getattr(getattr(self.model, "network", None), "scores_intents", True))

    def _random_intents(self, users: Tensor, items: Tensor, phase: str) -> Tensor:
        """[B, 1 + N]: the target's own intent, then random others. Drawn per user, so batching changes nothing."""
        intents = self.model._intents
        own = intents.item2intent.to(items.device)[items[:, :1]]
        rows = [
            sampled.other_intents(
                np.array([target]), n_intents=intents.n_intents, n_negatives=items.shape[1] - 1,
                seed=[self.config["candidates_seed"], int(phase == "test"), int(user)],
            )
            for user, target in zip(users.tolist(), own[:, 0].tolist(), strict=True)
        ]  # fmt: skip
        return torch.cat((own, torch.from_numpy(np.concatenate(rows)).to(items.device)), dim=1)

    def _table(self, dataset: Any, protocol: Protocol) -> Candidates:
        key = f"{'uni' if protocol.distribution == 'uni' else 'pop'}{protocol.n_negatives}"
        if key not in self._candidates:
            users, items = dataset.all_interactions()
            seed = int(self.config["candidates_seed"])
            tokens = [dataset.field2id_token[field] for field in (dataset.uid_field, dataset.iid_field)]
            folder = Path(self.config["candidates_dir"] or Path(self.checkpoint_dir) / "candidates")
            with _first_process_first(self.config):
                table = sampled.stored(
                    folder,
                    name=dataset.dataset_name,
                    data=sampled.fingerprint(dataset.dataset_name, *tokens, users, items),
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
            notice = AUTHORS_NOTICE if self._scores_intents() else NO_INTENTS_NOTICE
            self.logger.warning(notice.format(n=protocol.n_negatives, model=self.config["model"]))


def _fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Adam in its fused form."""
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
    return optimizer


def _catch_up(rows: RowWise, table: torch.nn.Embedding, inputs: tuple[Tensor, ...]) -> None:
    """Before a lookup in training: apply the steps that the rows missed."""
    if table.training:
        rows.catch_up(table.weight, inputs[0])


@cache
def trainer_class(base: type[Trainer]) -> type[Trainer]:
    """`base` with our evaluation."""
    if issubclass(base, EvaluationMixin):
        return base
    return type(base.__name__, (EvaluationMixin, base), {"__module__": __name__, "__doc__": base.__doc__})


class NetTrainer(EvaluationMixin, Trainer):
    """The trainer RecBole finds for our models."""


def _gather(parts: list[Ranks], lists: list[Tensor | None], *, single: bool) -> tuple[Ranks, Tensor | None]:
    """All batches together; over all processes when there are several."""
    mine = (Ranks.cat(parts) if parts else None, None if not lists or lists[0] is None else torch.cat(lists))
    if single:
        if mine[0] is None:
            raise ConfigError("there is nothing to evaluate: this split of the data set has no rows")
        return mine
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    there = [pair for pair in everyone if pair[0] is not None]
    tops = [pair[1] for pair in there if pair[1] is not None]
    return Ranks.cat([pair[0] for pair in there]), torch.cat(tops) if tops else None


@contextlib.contextmanager
def _first_process_first(config: Any) -> Any:
    """Process 0 draws and stores, the others wait and read."""
    waits = not config["single_spec"] and torch.distributed.get_rank() != 0
    if waits:
        torch.distributed.barrier()
    yield
    if not config["single_spec"] and not waits:
        torch.distributed.barrier()


def supported(model_type: ModelType) -> bool:
    """Whether rows of user, history and one target describe what the model is evaluated on."""
    return model_type in (ModelType.SEQUENTIAL, ModelType.GENERAL, ModelType.TRADITIONAL)
