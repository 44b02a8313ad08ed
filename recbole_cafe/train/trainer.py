"""RecBole's trainers with our evaluation and our checkpoints.

`trainer_class(Base)` puts :class:`EvaluationMixin` on any RecBole trainer class. `fit`, the optimiser, early stopping,
logging and tensorboard are RecBole's. Evaluated through it, a model

* encodes each history once, however many candidates are scored (RecBole: 101 times for `pop100`);
* is ranked by our protocols, with stored candidates, counted ties and unrounded metrics;
* keeps its best weights in a checkpoint of tensors and plain data, written atomically.

RecBole's metric classes compute every value; only what they are fed differs. ``candidates: recbole`` gives RecBole's
own evaluation instead.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from functools import cache, partial, wraps
from time import perf_counter
from typing import Any

import torch
import torch.distributed
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.sampler import RepeatableSampler, Sampler
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, ModelType, set_color
from torch import Tensor
from tqdm import tqdm

from recbole_cafe.errors import ConfigError
from recbole_cafe.files.candidates import LATER, Protocol, parse_protocol
from recbole_cafe.layers.draws import drawing
from recbole_cafe.layers.sharded import ShardedEmbedding
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.train import checkpoint
from recbole_cafe.train.divergence import Losses
from recbole_cafe.train.evaluation import Evaluation, RecBoleScorer
from recbole_cafe.train.gradients import clip_grad_norm
from recbole_cafe.train.lazy_logits import PromisedLogits
from recbole_cafe.train.ranking_settings import LEAST_ROWS, Validation, chosen_on, told
from recbole_cafe.train.resume import ResumeMixin
from recbole_cafe.train.row_adam import SPARSE_LEARNERS, ChainedOptimizer, RowWise, sparse_tables
from recbole_cafe.train.run_state import digests_of, refuse_other_data
from recbole_cafe.train.sharing import Share, Sums, dealt, place_in_group, step_draws
from recbole_cafe.train.weight_average import WeightAverage


class EvaluationMixin(ResumeMixin):
    """Evaluation by protocol, and checkpoints of plain data, for any RecBole trainer."""

    _row_wise: RowWise | None = None

    def __init__(self, config: Any, model: AbstractRecommender) -> None:
        super().__init__(config, model)
        self.scorer = model if isinstance(model, NetRecommender) else self._adapter(model)
        if not self.scorer.learns:
            self.epochs = 1  # there is nothing to train, the one epoch is for validation
        # RecBole's TraditionalTrainer has one epoch, whatever the config says
        self.eval_step = min(self.eval_step, self.epochs)
        self._losses = Losses()
        self.chosen: dict[str, Any] = {}  # settings of the ranking, with `ranking_settings: auto`
        self.average_from = config["average_from"] or 0
        if self.average_from and self.scorer.learns:
            self._average = WeightAverage(model.parameters())
        self.protocols = [parse_protocol(name) for name in config["eval_mode"]]
        self.evaluation = Evaluation(config, self.scorer, model, self.eval_collector, self.logger)

    def _adapter(self, model: AbstractRecommender) -> RecBoleScorer:
        items = self.config["ITEM_ID_FIELD"]
        predicts = self.config["eval_type"] == EvaluatorType.VALUE
        return RecBoleScorer(model, self._spilt_predict, items, model.n_items, predicts=predicts)

    def _protocols_of(self, phase: str) -> list[Protocol]:
        return self.protocols[:1] if phase == "valid" else self.protocols

    def check(self, *eval_data: Any) -> None:
        """Refuse, before training, what could not be measured afterwards.

        Args:
            eval_data: RecBole's loaders for validation and test; those that are None are left out.

        Raises:
            ConfigError: see :meth:`Evaluation.check`; or RecBole's own evaluation could not make lists of `topk` items.
        """
        if self.scorer.sharded and self.enable_scaler:
            raise ConfigError("enable_scaler=True: processes with a part of a table each would scale differently; "
                              "set shard_tables=False")  # fmt: skip
        for loader in eval_data:
            if loader is None:
                continue
            if self.config["candidates"] == "recbole":
                if self.scorer.sharded:
                    raise ConfigError(
                        "candidates=recbole: RecBole scores all items, which lie in several processes; set "
                        "shard_tables=False"
                    )
                n_items, (protocol,) = loader._dataset.item_num - 1, self.protocols
                if protocol.n_negatives and "rec.items" in self.evaluation.evaluator.needs:
                    n_items = min(n_items, 1 + protocol.n_negatives)  # beyond, it lists items that are no candidates
                if max(self.config["topk"]) > n_items and self.eval_type == EvaluatorType.RANKING:
                    raise ConfigError(
                        f"topk={self.config['topk']}: candidates=recbole makes lists of at most {n_items} items under "
                        f"{protocol.name}; candidates=stored ends a list where the candidates end"
                    )
                continue
            for protocol in self._protocols_of(phase_of(loader)):
                self.evaluation.check(loader, protocol)

    # Training --------------------------------------------------------------------------------------------------------

    def fit(self, train_data: Any, valid_data: Any = None, verbose: bool = True, saved: bool = True,
            *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        """RecBole's `fit`, after :meth:`check`; afterwards the settings of the ranking are chosen, if they are to be.

        For that the model takes the best weights, if they are saved.
        """
        self.check(valid_data)
        result = super().fit(train_data, valid_data, verbose, saved, *args, **kwargs)
        if self.config["ranking_settings"] == "auto":
            self._choose_ranking(valid_data, saved)
        return result

    @torch.no_grad()
    def _choose_ranking(self, valid_data: Any, saved: bool) -> None:
        """Settings that touch no weight, on the validation; into the model, its config and its checkpoint.

        Args:
            valid_data: RecBole's loader, or None.
            saved: the best weights are in the checkpoint.
        """
        if said := self._why_not_chosen(valid_data):
            self.logger.info(f"ranking_settings=auto: {said}; those of the configuration stay")
            return
        start, net, metric = perf_counter(), self.model.network, self.config["valid_metric"].lower()
        default = {key: self.config[key] for key in net.tried()}
        if saved:
            if not self.config["single_spec"]:
                torch.distributed.barrier()  # process 0 may still be writing it
            checkpoint.take_weights(self.model, self._load(self.saved_model_file), self.saved_model_file)
        self.model.eval()
        validation = Validation(net, self.evaluation, valid_data, self.protocols[0], metric, self.config["seed"])
        choice = self._agreed(chosen_on(validation, default))
        net.rank_with(choice.chosen)
        self.chosen = told(choice, validation, self.protocols[0].name)
        self.config["ranking_settings"] = choice.changes
        if saved:
            self._renew_best()
        self.seconds["ranking_settings"] = perf_counter() - start
        share = self.seconds["ranking_settings"] * self.epochs_run / self.seconds["train"] if self.epochs_run else 0.0
        valid = self.chosen["valid"]
        self.logger.info(
            set_color("ranking settings ", "yellow") + f": {choice.changes or 'as they were'}, {metric} under "
            f"{self.protocols[0].name} {valid['default']:.4f} -> {valid['chosen']:.4f} on {self.chosen['rows']} rows "
            f"of the validation, {choice.evaluations} tried in {self.seconds['ranking_settings']:.1f}s"
            + (f", {share:.2f} of an epoch" if self.scorer.learns else "")
        )

    def _why_not_chosen(self, valid_data: Any) -> str:
        """What keeps settings of the ranking from being chosen; empty if nothing does."""
        if not isinstance(self.model, NetRecommender) or not self.model.network.tried():
            return f"{self.config['model']} has no settings that touch no weight"
        if not valid_data:
            return "there is no validation"
        if len(valid_data._dataset) < LEAST_ROWS:
            return f"the validation has {len(valid_data._dataset)} rows, fewer than {LEAST_ROWS}"
        if self.config["candidates"] == "recbole":
            return "with candidates=recbole RecBole evaluates, which gives no ranks"
        if not self.evaluation.evaluator.judges_rows(self.config["valid_metric"].lower()):
            return f"valid_metric={self.config['valid_metric']} does not judge row by row"
        return ""

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimiser for the `learner`, Adam in PyTorch's fused form (the same update in one pass).

        Of our models, tables with sparse gradients are updated row by row (recbole_cafe.train.row_adam).

        Raises:
            ConfigError: the learner has no form for sparse gradients.
        """
        if not isinstance(self.model, NetRecommender):
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
                if isinstance(table, ShardedEmbedding):
                    table.catch_up = rows.catch_up
                else:
                    table.register_forward_pre_hook(partial(_catch_up, rows))
            self._row_wise = rows
        else:
            rows = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[learner](weights, lr=lr)
        return ChainedOptimizer(dense, rows)

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        """RecBole's epoch; afterwards the model holds the weights to be evaluated and saved, see `average_from`."""
        self._begin_epoch(epoch_idx)
        loss_func = loss_func or self.model.calculate_loss
        start = perf_counter()
        if self._average is not None:
            self._average.train()
        if isinstance(self.model, NetRecommender):
            loss = self._epoch(train_data, epoch_idx, loss_func, show_progress)
        else:
            with warnings.catch_warnings():
                # RecBole's torch.cuda.amp.GradScaler is deprecated and works; nobody but RecBole can rename it
                warnings.filterwarnings("ignore", message=".*GradScaler.*", category=FutureWarning)
                loss = super()._train_epoch(
                    train_data, epoch_idx, self._promising(self._losses.watched(loss_func)), show_progress
                )
        if said := self._losses.end_of_epoch(loss):
            self.logger.warning(f"epoch {epoch_idx}: {said}; lower learning_rate={self.learning_rate}")
        if self._average is not None and epoch_idx + 1 >= self.average_from:
            self._average.add()
        self.seconds["train"] += perf_counter() - start
        self.epochs_run += 1
        total = math.fsum(loss) if isinstance(loss, tuple) else loss  # RecBole's losses of several parts
        mean = total / len(train_data) if self.scorer.learns and len(train_data) else None
        self.curve.append({"epoch": epoch_idx + 1, "loss": mean, "score": None})
        return loss

    def _say_not_shared(self) -> None:
        """Once, if several processes give other weights than one."""
        why = self.model.network.not_shared
        if self.config["window_prob"]:
            why = why or f"window_prob={self.config['window_prob']} moves rows by the process's own random numbers"
        if why and self.epochs_run == 0:
            self.logger.warning(f"{self.config['model']} in several processes: other weights than in one: {why}")

    def _check_nan(self, loss: Tensor) -> None:
        """Raise ConfigError if a loss is no number any more, or infinite: no step can mend that."""
        if not torch.isfinite(loss):
            raise ConfigError(
                f"training has diverged: the loss is {loss.item()} in epoch {self.epochs_run}; lower "
                f"learning_rate={self.learning_rate}, or bound the gradients (clip_grad_norm: {{max_norm: 5}})"
            )

    def _promising(self, loss_func: Any) -> Any:
        """A loss function of RecBole's in which the softmax over the catalogue makes no logits."""
        promised = PromisedLogits(self.model, self.model.n_items)

        @wraps(loss_func)
        def loss(*arguments: Any) -> Any:
            with promised:
                return loss_func(*arguments)

        return loss

    def _epoch(self, train_data: Any, epoch_idx: int, loss_func: Any, show_progress: bool) -> float:
        """RecBole's epoch for sparse gradients too, and for steps that processes share.

        RecBole's own clips with a function that has no sparse form, clips scaled gradients, and in several processes
        touches every row of every table.

        Returns:
            the sum of the batches' losses, as RecBole's.
        """
        if not self.scorer.learns:
            return 0.0
        self.model.train()
        share, sums = Share(*place_in_group(self.config)), None
        shares = False
        if not self.config["single_spec"]:
            sums = Sums(self.model)
            shares = not dealt(train_data)
            if shares:
                self._say_not_shared()
            elif train_data.shuffle:  # RecBole's loader: each process takes steps of its own
                train_data.sampler.set_epoch(epoch_idx)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        total = torch.zeros((), device=self.device)
        batches = share.batches(train_data) if shares else share.own_batches(train_data)
        progress = tqdm(batches, total=len(train_data), ncols=100, desc=set_color(f"Train {epoch_idx:>5}", "pink"),
                        disable=not show_progress)  # fmt: skip
        for step, (batch, place, n_own) in enumerate(progress):
            self.optimizer.zero_grad(set_to_none=True)
            batch = batch.to(self.device)
            draws = step_draws(self.config["seed"], epoch_idx, step, place.to(self.device))
            with drawing(draws), torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
                loss = share.scaled(self.model.calculate_losses(batch), n_own) if shares else loss_func(batch)
            scaler.scale(loss).backward()
            whole = loss.detach()
            if sums is not None:
                whole = sums(whole, mean=not shares)
            if self.clip_grad_norm:
                scaler.unscale_(self.optimizer)
                clip_grad_norm(self.model.parameters(), **self.clip_grad_norm, in_parts=self.shards.weights)
            scaler.step(self.optimizer)
            scaler.update()
            self._losses.saw(whole)
            total += whole
            if step % 100 == 0:
                self._check_nan(total)  # waits for the device, so not at every step
        self._check_nan(total)
        if self._row_wise is not None:
            self._row_wise.catch_up_all()  # what evaluates or saves the model reads whole tables
        if sums is not None:
            sums.agree(self.model, self.optimizer)
        return total.item()

    # Evaluation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, eval_data: Any, load_best_model: bool = True, model_file: str | None = None,
                 show_progress: bool = False) -> OrderedDict | None:  # fmt: skip
        """RecBole's `evaluate`: metrics of the first protocol for validation, of all protocols for test.

        Args:
            eval_data: RecBole's loader, or None.
            load_best_model: of the checkpoint; otherwise the weights are evaluated as they are.
            model_file: the checkpoint, unless it is this trainer's own.
            show_progress: draw a bar.

        Returns:
            metric -> value, the keys of the second and further protocols prefixed: ``pop100/ndcg@5``; with `full` also
            those of its later targets, ``full_later/ndcg@5``. Values are not rounded. None without data, as in RecBole.
        """
        if not eval_data:
            return None
        if load_best_model:
            path = model_file or self.saved_model_file
            if not self.config["single_spec"]:
                torch.distributed.barrier()  # process 0 may still be writing it
            # of its own file only the weights are read: the optimiser's state is twice as large
            own = model_file is None and self.device.type == "cpu"
            state = self._load(path, mmap=own)
            refuse_other_data(state, digests_of(eval_data), path)
            checkpoint.take_weights(self.model, state, path)
            self.logger.info(f"Loading model structure and parameters from {path}")
        if self.config["candidates"] == "recbole":
            return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        start = perf_counter()
        phase = phase_of(eval_data)
        result: OrderedDict = OrderedDict()
        for i, protocol in enumerate(self._protocols_of(phase)):
            values = self.evaluation.measure(eval_data, protocol, phase=phase, show_progress=show_progress)
            named = i == 0  # whose metrics have no prefix; those of a view of `full` bring their own
            result.update({k if named or k.startswith(f"{LATER}/") else f"{protocol.name}/{k}": v
                           for k, v in values.items()})  # fmt: skip
        self.seconds["evaluation"] += perf_counter() - start
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result


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


def phase_of(eval_data: Any) -> str:
    """What a loader's rows are for, ``valid`` or ``test``: its sampler says so."""
    sampler = eval_data._sampler
    return sampler.phase or "test" if isinstance(sampler, (Sampler, RepeatableSampler)) else "test"


def supported(model_type: ModelType) -> bool:
    """Whether rows of user, history and one target describe what the model is evaluated on."""
    return model_type in (ModelType.SEQUENTIAL, ModelType.GENERAL, ModelType.TRADITIONAL)
