"""What every model of recbole_cafe promises. The test of a new model is::

    class TestFoo(ModelContract):
        model = "Foo"

A promise a model cannot give is declared in its test class: ``causal = False``, an entry in `no_gradient`, ...
What a model without gradients promises too, a model of counts, is :class:`ScoringContract`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import toy
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, general_arguments, training_arguments
from torch import Tensor, nn

from recbole_cafe import Config
from recbole_cafe.config.props import model_yaml, props_dir, read_yaml
from recbole_cafe.config.signature import net_keys, signature_of
from recbole_cafe.data.batch import Batch, next_items
from recbole_cafe.data.sequences import TARGET_LIST
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.layers.draws import drawing
from recbole_cafe.model import faces
from recbole_cafe.model.settings import LossSettings
from recbole_cafe.ranking.ranks import rank_of_target
from recbole_cafe.train import checkpoint
from recbole_cafe.train.sharing import step_draws
from recbole_cafe.train.trainer import NetTrainer

# float32 sums of a few hundred terms in another order (batched or not, one column or all)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
QUIET = {"gpu_id": "", "show_progress": False, "worker": 0, "state": "WARNING", "eval_mode": "full"}
SMALL = {"hidden_size": 32, "inner_size": 64}  # used where the model's net has the key


@dataclass(repr=False)
class Run:
    """A model and its data."""

    config: Config
    model: Any
    train: Any
    test: Any

    def batch(self, part: str = "test") -> Interaction:
        """All rows of a split."""
        dataset = getattr(self, part)._dataset
        return dataset[torch.arange(len(dataset))]

    def fit(self) -> Run:
        """Train for `epochs` epochs from the seed; the last weights stay."""
        init_seed(self.config["seed"], self.config["reproducibility"])
        NetTrainer(self.config, self.model).fit(self.train, None, saved=False, verbose=False, show_progress=False)
        self.model.eval()
        return self

    def enlarged(self, factor: float = 3.0) -> Run:
        """With larger weights, in eval mode: at the start, N(0, 0.02^2), all logits are nearly equal."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(factor)
        self.model.eval()
        return self

    def scores(self, batch: Interaction | None = None) -> Tensor:
        """[B, V] in eval mode."""
        self.model.eval()
        return self.model.full_sort_predict(self.batch() if batch is None else batch)


def build(model: str | type, data_path: Path, **settings: Any) -> Run:
    """A model on the toy data, from its YAML and `settings`."""
    given = {"data_path": str(data_path), "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH, **QUIET, **settings}
    config = Config(model, toy.NAME, config_dict=given)
    init_seed(config["seed"], config["reproducibility"])
    train, _, test = data_preparation(config, create_dataset(config))
    return Run(config, config.model_class(config, train._dataset), train, test)


def trimmed(batch: Interaction, row: int, length_field: str, list_field: str) -> Interaction:
    """One row alone, without its padding."""
    alone = batch[[row]]
    alone.interaction[list_field] = alone[list_field][:, : int(alone[length_field])]
    return alone


def with_all_targets(model: Any, batch: Interaction) -> Interaction:
    """The same rows with a target at every position; rows for a test have one, the last."""
    rows = copy.copy(batch)
    target = next_items(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN], batch[model.ITEM_ID], "all")
    rows.interaction = {**batch.interaction, TARGET_LIST: target}
    return rows


class ScoringContract:
    """What a model promises about its settings and its scores. Attributes a test class may set:

    model: name in MODELS.
    settings: keys of the config that differ from the model's YAML in all tests.
    layouts: values of train_layout under which it is trained here -> epochs in which it learns the toy data. What a
        layout changes are the rows and their targets, which the data make, not the model: one class of each family
        of losses (CaFe, LOCKER's cloze) is trained under both, the others under one. That the loss has a gradient
        under every layout the model declares is asserted for all.
    learns_with: further keys for the tests in which it learns.
    first: share of users whose known next item has to rank first, see :func:`first_share`.
    """

    model: str
    settings: ClassVar[Mapping[str, Any]] = {}
    layouts: ClassVar[Mapping[str, int]] = {"all": 20}
    learns_with: ClassVar[Mapping[str, Any]] = {"train_batch_size": 16, "learning_rate": 0.005}
    first: float = 0.9  # a joint score can reach 144 / 151: seven users take the item without an intent next

    # How the tests get a model ---------------------------------------------------------------------------------------

    @classmethod
    def build(cls, data_path: Path, **settings: Any) -> Run:
        """The model, small and with the settings of the class."""
        keys = net_keys(cls.model_class())
        small = {key: value for key, value in SMALL.items() if key in keys}
        return build(cls.model, data_path, **{**small, **cls.settings, **settings})

    @classmethod
    def model_class(cls) -> Any:
        """The class behind the name."""
        return getattr(faces, cls.model)

    @pytest.fixture(scope="class")
    @classmethod
    def fresh(cls, toy_path: Path) -> Run:
        """Untrained, once for all tests of a class; its weights are not to be changed. See :meth:`Run.enlarged`."""
        return cls.build(toy_path).enlarged()

    @pytest.fixture(scope="class")
    @classmethod
    def learned(cls, toy_path: Path) -> dict[str, Run]:
        """Trained on the toy data under each layout, once for all tests of a class; not to be changed."""
        return {
            layout: cls.build(toy_path, train_layout=layout, epochs=epochs, **cls.learns_with).fit()
            for layout, epochs in cls.layouts.items()
        }

    # Configuration ---------------------------------------------------------------------------------------------------

    def test_the_yaml_and_the_signature_of_the_net_agree(self) -> None:
        cls = self.model_class()
        path = model_yaml(cls)
        assert path.name == f"{self.model}.yaml"
        given, parameters = set(read_yaml(path)), inspect.signature(cls.net).parameters.values()
        assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == []
        assert [p.name for p in parameters if p.default is not p.empty] == []  # the YAML holds the defaults
        assert len(parameters) <= 10
        keys = signature_of(cls.net).keys
        recboles = {*general_arguments, *training_arguments, *evaluation_arguments, *dataset_arguments}
        host = recboles | set(read_yaml(props_dir() / "overall.yaml"))
        assert given - (host - keys) == keys  # none is missing, none dies unread

    def test_it_asks_for_intents_exactly_if_it_says_so(self, fresh: Run) -> None:
        """The facts are released once the net is built: what is cached then, building has asked for."""
        assert ("intents" in vars(fresh.model.facts)) is self.model_class().net.needs_intents

    def test_it_builds_from_its_yaml_alone(self, toy_path: Path) -> None:
        run = build(self.model, toy_path)
        assert type(run.model) is self.model_class()
        for key, value in read_yaml(model_yaml(type(run.model))).items():
            if key != "MAX_ITEM_LIST_LENGTH":  # toy data are short
                assert run.config[key] == value

    # Scores ----------------------------------------------------------------------------------------------------------

    def test_all_three_ways_to_score_agree(self, fresh: Run) -> None:
        batch, items = fresh.batch(), torch.arange(1, fresh.model.n_items)
        everything = fresh.scores(batch)
        assert everything.shape == (len(batch), fresh.model.n_items)
        assert everything[:, 1:].std() > 1e-3  # the comparison compares something
        assert torch.isfinite(everything[:, 1:]).all()
        target = batch[fresh.model.ITEM_ID]
        torch.testing.assert_close(fresh.model.predict(batch), everything[torch.arange(len(batch)), target], **CLOSE)
        candidates = torch.stack([items[torch.randperm(len(items))[:7]] for _ in range(len(batch))])
        torch.testing.assert_close(
            fresh.model.score_candidates(batch, candidates), everything.gather(1, candidates), **CLOSE
        )

    def test_the_catalogue_ranks_as_the_dense_scores_do(self, fresh: Run) -> None:
        """Up to float32 rounding: a rank lies between those of slightly more and slightly less than its score."""
        batch, model = fresh.batch(), fresh.model
        target, query = batch[model.ITEM_ID], model.query(batch)
        with torch.no_grad():
            scores, catalogue = model.network.scores(query).double(), model.catalogue()
        assert catalogue.n_items == model.n_items
        valid = torch.arange(model.n_items) > 0
        row = torch.arange(len(batch))
        own = scores[row, target]
        within = CLOSE["atol"] + CLOSE["rtol"] * own.abs()
        counts = []
        for offset in (within, -within):
            moved = scores.clone()
            moved[row, target] = own + offset
            counts.append(rank_of_target(moved, target, valid).above)
        ranks = catalogue.rank(query, target)
        assert (counts[0] <= ranks.above).all()
        assert (ranks.above + ranks.tied <= counts[1]).all()
        assert (counts[1] - counts[0]).double().mean() < 1  # the bounds say something
        first = catalogue.top(query, 1)[0][:, 0]
        assert (scores[row, first] >= scores[:, 1:].amax(1) - within.amax()).all()

    def test_padding_and_batch_mates_do_not_change_a_score(self, fresh: Run) -> None:
        batch, model = fresh.batch(), fresh.model
        together = fresh.scores(batch)
        backwards = fresh.scores(batch[list(range(len(batch)))[::-1]]).flip(0)
        torch.testing.assert_close(backwards[:, 1:], together[:, 1:], **CLOSE)
        assert batch[model.ITEM_SEQ_LEN].unique().numel() > 3
        for row in range(0, len(batch), 5):
            alone = trimmed(batch, row, model.ITEM_SEQ_LEN, model.ITEM_SEQ)
            torch.testing.assert_close(fresh.scores(alone)[0, 1:], together[row, 1:], **CLOSE)

    def test_it_is_the_history_that_is_scored(self, fresh: Run) -> None:
        """Changing the last item changes the scores; the target, which the batch carries too, does not."""
        batch, model = fresh.batch(), fresh.model
        before = fresh.scores(batch)
        peeked = copy.copy(batch)
        peeked.interaction = {**batch.interaction, model.ITEM_ID: torch.ones_like(batch[model.ITEM_ID])}
        assert torch.equal(fresh.scores(peeked), before)
        at = (torch.arange(len(batch)), batch[model.ITEM_SEQ_LEN] - 1)
        history = batch[model.ITEM_SEQ].clone()
        history[at] = history[at] % (model.n_items - 1) + 1
        peeked.interaction = {**batch.interaction, model.ITEM_SEQ: history}
        assert ((fresh.scores(peeked) - before)[:, 1:].abs().amax(1) > 1e-3).all()

    def test_one_row_and_one_item_are_enough(self, fresh: Run) -> None:
        model, batch = fresh.model, fresh.batch()
        several = batch[[0, 1, 2]]
        several.interaction[model.ITEM_SEQ] = several[model.ITEM_SEQ][:, :1]
        several.interaction[model.ITEM_SEQ_LEN] = torch.ones(3, dtype=torch.long)
        together = fresh.scores(several)
        for row in range(3):
            one = several[[row]]
            torch.testing.assert_close(fresh.scores(one)[0, 1:], together[row, 1:], **CLOSE)
            assert model.predict(one).shape == (1,)

    # Learning --------------------------------------------------------------------------------------------------------

    def test_the_known_next_item_ranks_first(self, learned: dict[str, Run]) -> None:
        for layout, run in learned.items():
            assert first_share(run) >= self.first, layout

    # Devices ---------------------------------------------------------------------------------------------------------

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    def test_it_learns_on_a_gpu_and_scores_there_as_on_a_cpu(self, toy_path: Path) -> None:
        for layout, epochs in self.layouts.items():
            keys = {"train_layout": layout, "epochs": epochs, "eval_mode": ["full", "pop5"], **self.learns_with}
            on_gpu, on_cpu = self.build(toy_path, gpu_id="0", **keys), self.build(toy_path, **keys)
            on_gpu.model.to(on_gpu.config["device"])
            assert {t.device.type for t in (*on_gpu.model.parameters(), *on_gpu.model.buffers())} == {"cuda"}
            on_gpu.fit()
            on_cpu.model.load_state_dict(on_gpu.model.state_dict())
            batch = on_gpu.batch()
            scores = on_gpu.scores(copy.copy(batch).to("cuda")).cpu()
            torch.testing.assert_close(scores[:, 1:], on_cpu.scores(batch)[:, 1:], rtol=1e-3, atol=1e-4)
            ranks = []
            for run in (on_gpu, on_cpu):
                trainer = NetTrainer(run.config, run.model)
                trainer.evaluate(run.test, load_best_model=False)
                ranks.append(trainer.evaluation.ranks)
            for name in ("full", "pop5"):  # near ties may fall the other way
                assert (ranks[0][name].above == ranks[1][name].above).float().mean() > 0.95, (layout, name)
            on_gpu.model.cpu()
            # other random numbers than those the epochs are enough for
            assert first_share(on_gpu) >= self.first - 0.15, layout


class ModelContract(ScoringContract):
    """What a model that learns by gradients promises besides. Attributes a test class may set:

    causal: a position's state depends on itself and the past only.
    no_gradient: end of a parameter's name -> why the loss does not depend on it. An entry must be true.
    loss_types: values of loss_type it learns with; None for all that its net knows.
    """

    causal: bool = True
    no_gradient: ClassVar[Mapping[str, str]] = {
        "key.bias": "adds the same to a query's scores of all keys, which the softmax does not see"
    }

    loss_types: Sequence[str] | None = None

    # Loss ------------------------------------------------------------------------------------------------------------

    def test_every_loss_can_be_learned_from(self, toy_path: Path) -> None:
        """Ten steps of Adam on one batch, a tenth of whose loss at least has to go; test_the_loss_falls has the loss of
        the settings."""
        cls = self.model_class()
        settings = [kind for kind in signature_of(cls.net).settings.values() if issubclass(kind, LossSettings)]
        if not settings:
            pytest.skip(f"{self.model} has one loss")
        own = {**read_yaml(model_yaml(cls)), **self.settings}["loss_type"]
        for loss_type in set(self.loss_types or settings[0].accepted) - {own}:
            run = self.build(toy_path, loss_type=loss_type, n_negatives=3)
            batch, losses = run.batch("train"), []
            optimizer = torch.optim.Adam(run.model.parameters(), lr=0.04)
            for _ in range(10):
                torch.manual_seed(1)  # the same negatives, the same dropout
                loss = run.model.calculate_loss(batch)
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                for parameter in run.model.parameters():
                    if parameter.grad is not None and parameter.grad.is_sparse:
                        parameter.grad = parameter.grad.to_dense()
                optimizer.step()
            assert losses[-1] < 0.9 * losses[0], (loss_type, losses)

    @pytest.mark.parametrize("layout", ["all", "last"])
    def test_the_loss_is_finite_and_every_parameter_has_a_gradient(self, toy_path: Path, layout: str) -> None:
        if layout not in self.model_class().net.layouts or self.settings.get("train_layout", layout) != layout:
            pytest.skip(f"{self.model} does not train under {layout}")
        run = self.build(toy_path, train_layout=layout).enlarged(5.0)
        run.model.train()
        loss = run.model.calculate_loss(run.batch("train"))
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert loss > 0
        loss.backward()
        size = {
            name: 0.0 if p.grad is None else p.grad.to_dense().norm().item() for name, p in run.model.named_parameters()
        }
        excused = {name for name in size if name.endswith(tuple(self.no_gradient))}
        # A gradient that is zero in exact arithmetic is float32 rounding, some 1e-9 of the largest; CaFe's smallest
        # real one (the distance table's) is some 1e-4 of it.
        large = max(size.values())
        assert {name for name in set(size) - excused if size[name] < 1e-6 * large} == set()
        assert {name for name in excused if size[name] > 1e-6 * large} == set(), "no_gradient is wrong about these"

    def test_the_loss_falls(self, toy_path: Path, learned: dict[str, Run]) -> None:
        for layout, run in learned.items():
            before = self.build(toy_path, train_layout=layout)
            losses = []
            for one in (before, run):
                one.model.eval()
                torch.manual_seed(1)  # the same negatives
                losses.append(one.model.calculate_loss(one.batch("train")).item())
            assert losses[1] < 0.7 * losses[0], layout

    def test_a_future_item_does_not_change_an_earlier_state(self, fresh: Run) -> None:
        """The loss of the target at position t alone, when other items or none stand after t."""
        if not self.causal:
            pytest.skip(f"{self.model} declares causal = False")
        batch, model, t = fresh.batch(), fresh.model.eval(), 3
        user = batch[model.USER_ID]
        seq = batch[model.ITEM_SEQ]
        rows = seq[:, t + 1] > 0
        seq, user = seq[rows], user[rows]
        assert len(seq) > 10
        target = torch.zeros_like(seq)
        target[:, t] = seq[:, t + 1]

        def loss(history: Tensor) -> Tensor:
            torch.manual_seed(1)
            return model.network.loss(Batch(history, target, user))

        others, gone, earlier = seq.clone(), seq.clone(), seq.clone()
        real = seq > 0
        others[:, t + 1 :] = torch.where(real, (seq + 4) % (model.n_items - 1) + 1, 0)[:, t + 1 :]
        gone[:, t + 1 :] = 0
        earlier[:, t - 1] = seq[:, t - 1] % (model.n_items - 1) + 1
        torch.testing.assert_close(loss(others), loss(seq), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(loss(gone), loss(seq), rtol=1e-6, atol=1e-7)
        assert abs((loss(earlier) - loss(seq)).item()) > 1e-5  # the past does

    def test_one_row_and_one_item_are_enough_to_learn_from(self, fresh: Run) -> None:
        model, one = fresh.model, fresh.batch()[[0]]
        one.interaction[model.ITEM_SEQ] = one[model.ITEM_SEQ][:, :1]
        one.interaction[model.ITEM_SEQ_LEN] = torch.ones(1, dtype=torch.long)
        model.train()
        loss = model.calculate_loss(with_all_targets(model, one))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is None or torch.isfinite(p.grad.to_dense()).all() for p in model.parameters())
        model.zero_grad()
        model.eval()

    # State -----------------------------------------------------------------------------------------------------------

    def test_row_0_of_every_padded_table_stays_zero(self, learned: dict[str, Run]) -> None:
        for run in learned.values():
            tables = [m for m in run.model.modules() if isinstance(m, nn.Embedding) and m.padding_idx == 0]
            assert tables
            for table in tables:
                assert torch.count_nonzero(table.weight[0]) == 0
                assert torch.count_nonzero(table.weight[1:]) > 0

    def test_a_state_dict_carries_all_that_was_learned(self, toy_path: Path, learned: dict[str, Run]) -> None:
        run = learned[next(iter(self.layouts))]
        other = self.build(toy_path, seed=99)
        batch = run.batch()
        assert not torch.equal(other.scores(batch), run.scores(batch))
        other.model.load_state_dict(run.model.state_dict())
        assert torch.equal(other.scores(batch), run.scores(batch))

    def test_a_saved_model_scores_the_same_once_loaded(self, toy_path: Path, learned: dict[str, Run]) -> None:
        run = next(iter(learned.values()))
        other, path = self.build(toy_path, seed=99), Path("saved.pth")
        NetTrainer(run.config, run.model)._save_checkpoint(0, verbose=False, saved_model_file=path)
        state = checkpoint.load(path, map_location="cpu", trust_checkpoint=False)
        other.model.load_state_dict(state["state_dict"])
        assert torch.equal(other.scores(), run.scores())

    def test_one_seed_gives_one_model(self, toy_path: Path) -> None:
        def trained(seed: int) -> dict[str, Tensor]:
            run = self.build(toy_path, **{**self.learns_with, "train_batch_size": 64, "epochs": 2, "seed": seed})
            return run.fit().model.state_dict()

        one, same, other = trained(5), trained(5), trained(6)
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("layout", ["all", "last"])
    def test_a_step_that_is_shared_has_the_gradient_of_the_whole(self, toy_path: Path, layout: str) -> None:
        """Three processes' parts of the loss, with dropout and negatives drawn, add up to that of one."""
        if layout not in self.model_class().net.layouts or self.settings.get("train_layout", layout) != layout:
            pytest.skip(f"{self.model} does not train under {layout}")
        run = self.build(toy_path, train_layout=layout).enlarged(5.0)
        run.model.double().train()
        batch = run.batch("train")
        place = torch.arange(len(batch))

        def losses(rows: Tensor) -> list[tuple[Tensor, int]]:
            with drawing(step_draws(1, 2, 3, place[rows])):
                return run.model.calculate_losses(batch[rows])

        def gradients(loss: Tensor) -> list[Tensor]:
            run.model.zero_grad(set_to_none=True)
            loss.backward()
            return [p.grad.to_dense() if p.grad is not None else torch.zeros(()) for p in run.model.parameters()]

        whole = losses(place)
        every = gradients(sum(mean for mean, _ in whole))
        parts = [losses(place[rank::3]) for rank in range(3)]
        total = [max(1, sum(part[i][1] for part in parts)) for i in range(len(whole))]
        assert total == [n for _, n in whole]
        shared = sum(mean * (n / total[i]) for part in parts for i, (mean, n) in enumerate(part))
        same = float((shared - sum(mean for mean, _ in whole)).abs().detach()) < 1e-9 and all(
            torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(gradients(shared), every, strict=True)
        )
        assert same != bool(run.model.network.not_shared), "not_shared is wrong"

    def test_a_deep_copy_is_a_model_of_its_own(self, toy_path: Path, learned: dict[str, Run]) -> None:
        run = next(iter(learned.values()))
        before = run.scores()
        model = copy.deepcopy(run.model)
        config = self.build(toy_path, **{**self.learns_with, "epochs": 1}).config
        other = Run(config, model, run.train, run.test)
        assert torch.equal(other.scores(), before)
        other.fit()
        assert not torch.equal(other.scores(), before)
        assert torch.equal(run.scores(), before)


def known_answers(run: Run) -> Iterator[tuple[int, int]]:
    """(last item of the history, the item that follows on the ring) of each test row, as ids."""
    dataset, batch = run.test._dataset, run.batch()
    tokens = dataset.field2id_token[dataset.iid_field]
    last = batch[run.model.ITEM_SEQ].gather(1, batch[run.model.ITEM_SEQ_LEN][:, None] - 1)[:, 0]
    for item, target in zip(last.tolist(), batch[run.model.ITEM_ID].tolist(), strict=True):
        expected = dataset.token2id(dataset.iid_field, toy.successor(tokens[item]))
        assert expected == target  # the test row is made as the ring says
        yield item, expected


def first_share(run: Run) -> float:
    """Share of the test rows whose known next item has the highest score of all items that are not in the history.

    Of all items would ask too much of a model trained with sampled negatives: a user's own items are none of his, so
    that nothing teaches it not to recommend the item it stands on.
    """
    known = torch.tensor([successor for _, successor in known_answers(run)])
    assert len(known) == toy.USERS + 1  # every user is tested
    row = torch.arange(len(known))
    scores, history = run.scores().clone(), run.batch()[run.model.ITEM_SEQ]
    own = scores[row, known]
    scores.scatter_(1, history, -torch.inf)  # padding too: column 0
    scores[row, known] = own  # the long user has been there before
    return float((scores.argmax(1) == known).float().mean())
