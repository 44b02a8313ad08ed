"""recbole_cafe.model.intent_backoff: probabilities by hand, a naive reference, exact ranks, and what is counted."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
import toy
from contract import CLOSE, ScoringContract, build

from recbole_cafe.config.props import model_yaml, read_yaml
from recbole_cafe.config.signature import arguments_of
from recbole_cafe.data.facts import DataFacts, ItemIntents
from recbole_cafe.experiment import run
from recbole_cafe.model.counts import repeat_rate, transitions
from recbole_cafe.model.faces import IntentBackoff
from recbole_cafe.model.intent_backoff import IntentBackoffNet
from recbole_cafe.ranking.ranks import expectation, rank_of_target

ITEM_ONLY = {"use_intents": False}
EXACT = {"rtol": 1e-12, "atol": 1e-15}


class TestIntentBackoff(ScoringContract):
    model = "IntentBackoff"
    layouts = {"all": 1, "last": 1}
    learns_with = {}
    first = 1.0

    def test_nothing_depends_on_seed_layout_or_epoch(self, toy_path, learned):
        states = [run.model.state_dict() for run in learned.values()]
        states.append(self.build(toy_path, seed=99).model.state_dict())
        for other in states[1:]:
            assert all(torch.equal(states[0][name], other[name]) for name in states[0])


class TestItemOnly(ScoringContract):
    model = "IntentBackoff"
    settings = ITEM_ONLY
    layouts = {"all": 1}
    learns_with = {}
    first = 1.0


# By hand -------------------------------------------------------------------------------------------------------------

ITEM2INTENT = torch.tensor([0, 1, 1, 2, 2, 3])  # items 1..5; item 5 has no intent, C = 3
PLAIN = {
    "use_intents": True, "window": 1, "window_decay": 1.0, "backward": 0.0, "history_length": 10, "history_decay": 0.5,
    "discount": 0.0, "prior": 1.0, "max_successors": 0, "intent_window": 1, "intent_window_decay": 1.0,
    "intent_history_decay": 0.5, "intent_discount": 0.0, "intent_prior": 1.0, "popularity_exponent": 1.0,
    "popularity_prior": 1.0, "repeats": "free",
}  # fmt: skip


def net(sequences, item2intent=ITEM2INTENT, n_intents=3, max_seq_length=5, **settings):
    pairs = [(user, item) for user, items in enumerate(sequences, start=1) for item in items]
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    facts = DataFacts(
        n_items=len(item2intent), n_users=len(sequences) + 1, max_seq_length=max_seq_length,
        train_pairs=lambda: (users, items), intents=lambda: ItemIntents(item2intent, n_intents),
    )  # fmt: skip
    arguments = arguments_of(IntentBackoffNet, {**PLAIN, **settings}, model_yaml(IntentBackoff))
    return IntentBackoffNet(data=facts, **arguments)


def probabilities(made, *histories):
    """[B, V]; histories oldest first."""
    rows = torch.zeros(len(histories), max(map(len, histories)), dtype=torch.long)
    for row, items in zip(rows, histories, strict=True):
        row[: len(items)] = torch.tensor(items)
    return made.scores(made.query(rows))


def test_the_names_of_the_settings_are_those_of_the_yaml():
    assert set(PLAIN) == set(read_yaml(model_yaml(IntentBackoff))) - {"MAX_ITEM_LIST_LENGTH", "ranking_settings"}


def test_a_history_of_one_item_by_hand():
    """Sequences 1 3 | 1 3 | 1 4 | 2 5.

    After item 1: twice 3, once 4, N = 3. After intent 1: three times 2, once 3 (the item without intent), N' = 4.
    P(c) from n = 4, 3, 1: (5, 4, 2) / 11. P(v | c) from n + 1: intent 1: 4, 2 of 6; intent 2: 3, 2 of 5; item 5: all.
    """
    got = probabilities(net([[1, 3], [1, 3], [1, 4], [2, 5]]), [1])[0]
    of_intent = [1 / 5 * 5 / 11, 3 / 5 + 1 / 5 * 4 / 11, 1 / 5 + 1 / 5 * 2 / 11]
    expected = [
        0,
        1 / 4 * of_intent[0] * 4 / 6,
        1 / 4 * of_intent[0] * 2 / 6,
        2 / 4 + 1 / 4 * of_intent[1] * 3 / 5,
        1 / 4 + 1 / 4 * of_intent[1] * 2 / 5,
        1 / 4 * of_intent[2],
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_items_alone_by_hand():
    """The same with discount 1/2: 3/2 and 1/2 are left of the counts, and 1 + 1 of 4 goes to popularity."""
    got = probabilities(net([[1, 3], [1, 3], [1, 4], [2, 5]], use_intents=False, discount=0.5), [1])[0]
    popularity = torch.tensor([0, 4, 2, 3, 2, 2], dtype=torch.float64) / 13
    expected = torch.tensor([0, 0, 0, 1.5, 0.5, 0], dtype=torch.float64) / 4 + 2 / 4 * popularity
    torch.testing.assert_close(got, expected, **EXACT)


def test_repeats_by_hand():
    """Sequences 1 2 1 | 3 4: of three interactions with a history one is with an item of it: rho = 2 / 5."""
    free, observed = (net([[1, 2, 1], [3, 4]], repeats=repeats) for repeats in ("free", "observed"))
    assert observed.rho == 2 / 5
    before, after = probabilities(free, [3, 1])[0], probabilities(observed, [3, 1])[0]
    old = before[[1, 3]].sum()
    torch.testing.assert_close(after[[1, 3]], 2 / 5 * before[[1, 3]] / old, **EXACT)
    torch.testing.assert_close(after[[2, 4, 5]], 3 / 5 * before[[2, 4, 5]] / (1 - old), **EXACT)


def test_a_repeat_is_one_of_what_a_row_holds():
    users, items = np.array([1, 1, 1, 1, 2]), np.array([5, 6, 7, 5, 5])
    assert repeat_rate(users, items, 3) == 2 / 5
    assert repeat_rate(users, items, 2) == 1 / 5


def test_an_item_never_seen_is_what_its_intent_says():
    """Item 2 is in no sequence. From it the intent alone leads on, and it is reached as its intent is."""
    made = net([[1, 3], [1, 3], [3, 1]])
    from_seen, from_unseen = probabilities(made, [1], [2])
    assert from_unseen[3] == pytest.approx((2 / 3 + 1 / 3 * 4 / 9) * 4 / 5)  # n(c) + 1 is 4, 4, 1
    assert from_seen[3] > from_unseen[3] > from_unseen[4] > 0
    assert probabilities(made, [3])[0, 2] > 0


def test_a_user_of_one_item_leaves_no_transition():
    counts = transitions(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 1]), n=5, window=3, window_decay=0.5, backward=0)
    assert counts.nnz == 1 and counts[2, 3] == 1
    alone = net([[1], [4]])
    assert alone.items.start[-1] == 0
    torch.testing.assert_close(probabilities(alone, [1])[0, 1:].sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)


def test_the_successors_kept_are_those_seen_most():
    """After 1 come 3, 3, 2, 5, 4. Two are kept, 3 and of the equal ones the smallest, 2; the rest is backed off."""
    sequences = [[1, 5], [1, 3], [1, 3], [1, 4], [1, 2]]
    full, cut = net(sequences), net(sequences, max_successors=2)
    assert cut.items.successor.tolist() == [2, 3]
    assert cut.items.count.tolist() == [1.0, 2.0]
    assert (cut.items.total[1], cut.items.kept[1], full.items.kept[1]) == (5, 3, 5)
    torch.testing.assert_close(probabilities(cut, [1]).sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)


# A naive reference ---------------------------------------------------------------------------------------------------


def walk(rng, n_items, longest):
    return rng.integers(1, n_items, rng.integers(1, longest)).tolist()


def random_net(trial, **settings):
    """Twelve items, the last two in no sequence; four intents, one of them of no item, and items without one."""
    rng = np.random.default_rng(trial)
    item2intent = torch.tensor([0, *rng.choice([1, 2, 4, 5], 12)])
    item2intent[12] = 2
    chosen = {
        "window": int(rng.integers(1, 4)), "window_decay": 0.5, "discount": float(rng.choice([0.0, 0.3, 1.0])),
        "history_length": int(rng.integers(1, 6)), "history_decay": 0.7, "prior": 2.5, "intent_window": 2,
        "backward": float(rng.choice([0.0, 0.4])),
        "intent_window_decay": 0.25, "intent_history_decay": 0.9, "intent_discount": 0.6, "intent_prior": 4.0,
        "popularity_exponent": 0.3, "popularity_prior": 0.5, "repeats": "observed", **settings,
    }  # fmt: skip
    sequences = [walk(rng, 11, 9) for _ in range(15)]
    histories = [walk(rng, 13, 6) for _ in range(8)]
    return net(sequences, item2intent, 5, **chosen), sequences, histories, item2intent.tolist(), chosen


def follow(sequences, window, decay, backward=0.0):
    counts = defaultdict(float)
    for ids in sequences:
        for i, u in enumerate(ids):
            for w in range(1, window + 1):
                if i + w < len(ids):
                    counts[u, ids[i + w]] += decay ** (w - 1)
                    counts[ids[i + w], u] += backward * decay ** (w - 1)
    return counts


def smoothed(counts, history, ids, decay, discount, prior, coarser):
    """(1) and (2): a dictionary id -> probability."""
    evidence, total = dict.fromkeys(ids, 0.0), 0.0
    for i, u in enumerate(reversed(history)):
        for v in ids:
            c = counts.get((u, v), 0.0)
            evidence[v] += decay**i * (c - discount * min(c, 1))
            total += decay**i * c
    rest = prior + total - sum(evidence.values())
    return {v: (evidence[v] + rest * coarser[v]) / (prior + total) for v in ids}


def reference(sequences, history, item2intent, s):
    items = range(1, len(item2intent))
    intents = sorted({item2intent[v] for v in items})
    seen = defaultdict(int)
    for item in (item for items_ in sequences for item in items_):
        seen[item] += 1
    n = {c: 1 + sum(seen[v] for v in items if item2intent[v] == c) for c in intents}
    share = {c: n[c] / sum(n.values()) for c in intents}
    weight = {v: (seen[v] + s["popularity_prior"]) ** s["popularity_exponent"] for v in items}
    inside = {v: weight[v] / sum(weight[x] for x in items if item2intent[x] == item2intent[v]) for v in items}
    of_intents = [[item2intent[v] for v in ids] for ids in sequences]
    coarse = smoothed(
        follow(of_intents, s["intent_window"], s["intent_window_decay"]), [item2intent[v] for v in history], intents,
        s["intent_history_decay"], s["intent_discount"], s["intent_prior"], share,
    )  # fmt: skip
    fine = smoothed(
        follow(sequences, s["window"], s["window_decay"], s["backward"]), history[-s["history_length"] :], items,
        s["history_decay"], s["discount"], s["prior"], {v: coarse[item2intent[v]] * inside[v] for v in items},
    )  # fmt: skip
    again = [ids[i] in ids[max(0, i - 5) : i] for ids in sequences for i in range(1, len(ids))]  # rows hold five items
    rho = (sum(again) + 1) / (len(again) + 2)
    old = sum(fine[v] for v in set(history))
    return [0.0] + [rho * fine[v] / old if v in history else (1 - rho) * fine[v] / (1 - old) for v in items]


@pytest.mark.parametrize("trial", range(12))
def test_probabilities_are_those_of_naive_loops(trial):
    made, sequences, histories, item2intent, settings = random_net(trial)
    expected = torch.tensor([reference(sequences, h, item2intent, settings) for h in histories], dtype=torch.float64)
    torch.testing.assert_close(probabilities(made, *histories), expected, rtol=1e-6, atol=1e-9)  # counts are float32


@pytest.mark.parametrize("settings", [{}, ITEM_ONLY, {"repeats": "free"}, {"max_successors": 2}])
@pytest.mark.parametrize("trial", range(4))
def test_probabilities_sum_to_one(trial, settings):
    made, _, histories, _, _ = random_net(trial, **settings)
    got = probabilities(made, *histories)
    assert (got[:, 1:] > 0).all()
    torch.testing.assert_close(got.sum(1), torch.ones(len(got), dtype=torch.float64), **EXACT)
    assert torch.count_nonzero(got[:, 0]) == 0


def test_an_intents_items_share_its_probability():
    """From an item that nothing has followed there is no evidence of items: P(c | h) is the sum over the items of c."""
    made = net([[1, 2, 3, 4, 1], [2, 3, 5], [4, 2]], repeats="free")
    row = torch.tensor([[5]])
    made.items = net([[1], [2]], repeats="free").items  # no transition of items, those of intents stay
    scores = made.scores(made.query(row))
    summed = torch.zeros(1, made.n_intents + 1, dtype=torch.float64).index_add(1, made.item2intent, scores)
    direct = made.intent_probabilities(row)
    torch.testing.assert_close(direct, summed, **EXACT)
    assert direct.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("settings", [{}, ITEM_ONLY, {"repeats": "free"}])
@pytest.mark.parametrize("trial", range(6))
def test_streamed_ranks_are_those_of_all_scores(trial, settings):
    made, _, histories, _, _ = random_net(trial, popularity_exponent=0.0, **settings)  # alike in an intent: ties
    scores = probabilities(made, *histories)
    rows = torch.zeros(len(histories), 6, dtype=torch.long)
    for row, items in zip(rows, histories, strict=True):
        row[: len(items)] = torch.tensor(items)
    query, catalogue = made.query(rows), made.catalogue()
    tied = 0
    for target in range(1, 13):
        column = torch.full((len(rows),), target)
        valid = torch.arange(13) > 0
        expected, got = rank_of_target(scores, column, valid), catalogue.rank(query, column)
        assert torch.equal(got.above, expected.above)
        assert torch.equal(got.tied, expected.tied)
        tied += int(got.tied.sum())
    assert tied > 20
    best = torch.sort(scores[:, 1:], dim=1, descending=True, stable=True)
    items, values = catalogue.top(query, 12)
    assert torch.equal(items, best.indices + 1)
    assert torch.equal(values, best.values)


def test_another_intent_than_its_own_changes_a_score_unless_items_count_alone():
    made = net([[1, 3], [1, 3], [1, 4], [2, 5]])
    query = made.query(torch.tensor([[1]]))
    items = torch.tensor([[3, 4, 2]])
    own, other = made.scores(query, items), made.scores(query, items, torch.tensor([[2, 1, 2]]))
    assert torch.equal(own[0, 0], other[0, 0])
    assert other[0, 1] < own[0, 1] and other[0, 2] > own[0, 2]
    assert made.scores_intents and not net([[1, 3]], use_intents=False).scores_intents


# As a model of RecBole -----------------------------------------------------------------------------------------------


def test_counts_are_of_the_train_split_alone(toy_path):
    made = build("IntentBackoff", toy_path, window=1, backward=0.0, max_successors=0, discount=0.0)
    dataset, table = made.train._dataset, made.model.network.items
    expected = defaultdict(int)
    for tokens in toy.walks().values():
        kept = tokens[:-1] if len(tokens) == 3 else tokens[:-2]  # of three the last is for test, none for validation
        ids = dataset.token2id(dataset.iid_field, kept)
        for pair in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
            expected[pair] += 1
    which, successor, count = table.of(torch.arange(dataset.item_num))
    assert dict(zip(zip(which.tolist(), successor.tolist(), strict=True), count.tolist(), strict=True)) == expected


def test_ranks_of_the_trainer_are_those_of_all_scores(toy_path, tmp_path):
    """With the history masked and not, through the whole of a run."""
    for mask in (False, True):
        settings = {
            "data_path": str(toy_path), "MAX_ITEM_LIST_LENGTH": 8, "gpu_id": "", "show_progress": False,
            "mask_history": mask, "eval_mode": ["full", "pop10", "authors2"], "state": "WARNING",
            "metrics": ["NDCG", "MRR", "ItemCoverage"], "checkpoint_dir": str(tmp_path),
        }  # fmt: skip
        result = run("IntentBackoff", "toy", config_dict=settings)
        made = build("IntentBackoff", toy_path, mask_history=mask)
        batch = made.batch()
        scores, target = made.scores(batch).clone(), batch[made.model.ITEM_ID]
        valid = torch.ones_like(scores, dtype=torch.bool)
        valid[:, 0] = False
        if mask:
            for row, items in enumerate(made.test._dataset.history_items(np.arange(len(batch)))):
                valid[row, items] = False
        ranks = rank_of_target(scores, target, valid)
        places = 1 / np.arange(1, scores.shape[1])
        expected = expectation(places, ranks.above.numpy(), ranks.tied.numpy()).mean()
        assert result.test_result["full"]["mrr"] == pytest.approx(expected, abs=1e-12)
        assert result.epochs == 1


def test_a_state_dict_carries_the_counts():
    """Into a model of other data, whose tables have another size."""
    made, other = net([[1, 3, 4], [1, 3], [5, 2, 2]], repeats="observed"), net([[4, 5]], repeats="observed")
    assert not torch.equal(probabilities(other, [1, 3]), probabilities(made, [1, 3]))
    other.load_state_dict(made.state_dict())
    assert torch.equal(probabilities(other, [1, 3]), probabilities(made, [1, 3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"max_successors": -1}, "max_successors=-1 must be at least 0"),
        ({"discount": 1.5}, "discount=1.5 must be between 0 and 1"),
        ({"prior": 0.0}, "prior=0.0 must be above 0"),
        ({"repeats": "never"}, "repeats='never' is not one of observed, free"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        net([[1, 2]], **settings)


def test_scores_are_close_whatever_the_batch():
    made, _, histories, _, _ = random_net(3)
    together = probabilities(made, *histories)
    for row, history in enumerate(histories):
        torch.testing.assert_close(probabilities(made, history)[0], together[row], **CLOSE)
