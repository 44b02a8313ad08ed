"""recbole_cafe.model.peers.bsa_rec: the contract; the filter by hand and as loops; what mixing all positions means."""

import math

import pytest
import torch
from contract import ModelContract, build
from small import EXACT, NEXT, USERS, L, all_positions, from_yaml, histories, layer_norm, scores, share, small

from recbole_cafe.data.batch import Batch, next_items
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.encoder import EncoderBlock, FeedForward
from recbole_cafe.layers.packing import Packing, left_padded
from recbole_cafe.model.peers.bsa_rec import BSARecNet, FrequencyFilter, may_see

NEAR = {"rtol": 1e-5, "atol": 1e-6}  # the waves are held in float32


class TestBSARec(ModelContract):
    model = "BSARec"
    causal = False
    settings = {"hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
    layouts = {"last": 12}


class TestBSARecWithHeads(ModelContract):
    model = "BSARec"
    causal = False
    settings = {"hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2, "frequency_share": 0.3, "n_heads": 2,
                "kept_frequencies": 3}  # fmt: skip
    layouts = {"last": 12}


def net(**settings):
    return small(BSARecNet, "BSARec", **settings)


def made_filter(length, c, scale=None, size=1):
    made = FrequencyFilter(hidden_size=size, max_seq_length=length, kept_frequencies=c)
    if scale is not None:
        made.high_scale.data.fill_(scale)
    return made.double()


# The filter -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("c", "wanted"),
    [(1, [-3.5, 0.5, 4.5, 8.5]), (2, [-0.5, 3.5, 1.5, 5.5]), (3, [-0.5, 3.5, 1.5, 5.5]), (5, [1.0, 2.0, 3.0, 4.0])],
)
def test_the_filter_by_hand(c, wanted):
    """x = 1, 2, 3, 4 and s = 2: the mean is 2.5; with one period more, low is 1.5, 1.5, 3.5, 3.5."""
    x = torch.arange(1.0, 5.0, dtype=torch.float64).view(1, 4, 1)
    got = made_filter(4, c, 2.0)(x)
    torch.testing.assert_close(got.flatten(), torch.tensor(wanted, dtype=torch.float64), **NEAR)


@pytest.mark.parametrize("c", [1, 3, 5, 7])
def test_s_of_one_changes_nothing_and_its_sign_neither(c):
    x = torch.randn(3, L, 8, dtype=torch.float64)
    torch.testing.assert_close(made_filter(L, c, 1.0, 8)(x), x, **EXACT)
    torch.testing.assert_close(made_filter(L, c, 1.7, 8)(x), made_filter(L, c, -1.7, 8)(x), **EXACT)


@pytest.mark.parametrize(("length", "c"), [(50, 5), (50, 9), (7, 3), (6, 4), (5, 1)])
def test_low_is_a_circular_convolution_and_the_cut_transform(length, c):
    x = torch.randn(2, length, 3, dtype=torch.float64)
    low = made_filter(length, c, 0.0, 3)(x)
    bins = c // 2 + 1
    kernel = [
        (1 + 2 * sum(math.cos(2 * math.pi * t * m / length) for t in range(1, bins))) / length for m in range(length)
    ]
    loop = torch.zeros_like(x)
    for i in range(length):
        for j in range(length):
            loop[:, i] += kernel[(i - j) % length] * x[:, j]
    torch.testing.assert_close(low, loop, **NEAR)
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
    spectrum[:, bins:] = 0
    torch.testing.assert_close(low, torch.fft.irfft(spectrum, n=length, dim=1, norm="ortho"), **NEAR)


def test_the_newest_item_weighs_no_more_than_its_neighbours_round_the_corner():
    weight = made_filter(50, 5, 0.0)(torch.eye(50, dtype=torch.float64)[:, :, None])[:, -1, 0]
    for j, wanted in ((49, 0.1), (48, 0.0984), (0, 0.0984)):
        assert weight[j].item() == pytest.approx(wanted, abs=5e-5)
    assert weight[:44].sum().item() == pytest.approx(0.48, abs=5e-3)  # pads of a history of six


def test_the_filter_works_in_float32_under_autocast():
    made = FrequencyFilter(hidden_size=8, max_seq_length=L, kept_frequencies=3)
    x = torch.randn(2, L, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = made(x)
    assert torch.equal(got, made(x))


def test_all_blocks_start_with_the_same_s():
    made = from_yaml(BSARecNet, "BSARec", hidden_size=8, inner_size=12, n_layers=3)
    first, *others = (block.filter.high_scale for block in made.blocks)
    assert all(torch.equal(first, s) and first is not s for s in others)
    assert first.std() > 0.3
    queries = [block.attention.query.weight for block in made.blocks]
    assert not torch.equal(queries[0], queries[1])
    assert queries[0].std().item() == pytest.approx(0.02, rel=0.5)


# The net --------------------------------------------------------------------------------------------------------------


def test_the_net_is_its_equations_position_by_position():
    made = net(n_heads=2)
    for seq in histories():
        row = [0] * (L - int((seq > 0).sum())) + seq[seq > 0].tolist()
        x = layer_norm(made.item_embedding.weight[row] + made.position.weight, made.norm)
        for block in made.blocks:
            a, ffn, f = block.attention, block.feed_forward, block.filter
            spectrum = torch.fft.rfft(x, dim=0, norm="ortho")
            spectrum[3:] = 0
            low = torch.fft.irfft(spectrum, n=L, dim=0, norm="ortho")
            slow = layer_norm(x + low + f.high_scale**2 * (x - low), block.filter_norm)
            q, k, v = a.query(x), a.key(x), a.value(x)
            heads = []
            for h in (slice(0, 4), slice(4, 8)):
                score = q[:, h] @ k[:, h].T / 2.0
                for i in range(L):
                    for j in range(L):
                        if not (row[j] > 0 and j <= i):
                            score[i, j] -= 10_000.0  # the code's mask: without a real key all are alike
                heads.append(score.softmax(1) @ v[:, h])
            attended = layer_norm(x + a.output(torch.cat(heads, 1)), block.attention_norm)
            mixed = 0.7 * slow + 0.3 * attended
            inner = torch.nn.functional.gelu(mixed @ ffn.layers[0].weight.T + ffn.layers[0].bias)
            x = layer_norm(mixed + inner @ ffn.layers[2].weight.T + ffn.layers[2].bias, ffn.norm)
        torch.testing.assert_close(made(seq[None])[0], x[-1], **NEAR)


def test_the_last_block_gives_at_the_last_position_what_it_gives_at_all():
    made = net()
    torch.testing.assert_close(made(histories()), all_positions(made, histories())[:, -1], **EXACT)


def test_attention_alone_is_a_transformer_and_the_filter_has_no_gradient():
    made, seq = net(frequency_share=0.0, n_layers=1), histories()
    packing = Packing(seq > 0)
    block = made.blocks[0]
    theirs = EncoderBlock(
        attention=Attention(block.attention), hidden_size=8, inner_size=12, dropout=0.0, hidden_act="gelu",
        arrangement="post",
    ).double()  # fmt: skip
    theirs.attention_norm, theirs.feed_forward_norm = block.attention_norm, block.feed_forward.norm
    theirs.feed_forward = FeedForward(*block.feed_forward.layers)
    x = made.norm(made.item_embedding(packing.pack(seq)) + made.position.weight[L - 1 - packing.from_end])
    torch.testing.assert_close(made(seq), packing.last(theirs(x, packing)), **EXACT)
    gradients(made)
    assert block.filter.high_scale.grad.abs().max() == block.filter_norm.weight.grad.abs().max() == 0.0
    assert block.attention.value.weight.grad.abs().max() > 1e-4


def test_the_filter_alone_leaves_attention_without_a_gradient():
    made = net(frequency_share=1.0)
    gradients(made)
    for block in made.blocks:
        assert block.attention.value.weight.grad.abs().max() == block.attention_norm.weight.grad.abs().max() == 0.0
        assert block.filter.high_scale.grad.abs().max() > 1e-4


class Attention(torch.nn.Module):
    """Causal attention of packed rows, row by row, with the weights of one head."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x, packing, source):
        rows = []
        for row in x.split(packing.length.tolist()):
            score = self.of.query(row) @ self.of.key(row).T / math.sqrt(8)
            future = torch.ones(len(row), len(row), dtype=torch.bool).triu(1)
            rows.append(self.of.output(score.masked_fill(future, -math.inf).softmax(1) @ self.of.value(row)))
        return torch.cat(rows)


def gradients(made):
    seq = histories()
    made.loss(Batch(seq, next_items(seq, (seq > 0).sum(1), NEXT, "last"), USERS)).backward()


@pytest.mark.parametrize("share_of_filter", [0.0, 0.7])
def test_a_later_item_changes_earlier_states_if_and_only_if_there_is_a_filter(share_of_filter):
    """Why it must not learn at every position: the state before an item already knows it."""
    made, seq = net(frequency_share=share_of_filter), histories()[:1]
    other = seq.clone()
    other[0, 4] = 15
    difference = (all_positions(made, other) - all_positions(made, seq)).abs().amax(2)[0]
    assert (difference[4:] > 1e-3).all()
    assert ((difference[:4] > 1e-6) == (share_of_filter > 0)).all()


def test_a_loss_at_every_position_is_refused(toy_path):
    with pytest.raises(ConfigError, match="train_layout=all does not suit BSARec, which trains under last"):
        build("BSARec", toy_path, train_layout="all")


@pytest.mark.parametrize("share_of_filter", [0.0, 0.7])
def test_the_number_of_positions_matters_if_and_only_if_there_is_a_filter(share_of_filter):
    """The same weights and history in rows of 6 and of 9 positions, counted from the right."""
    short, long = (net(frequency_share=share_of_filter, max_seq_length=length) for length in (L, 9))
    of_long = long.state_dict()
    short.load_state_dict(of_long | {"position.weight": of_long["position.weight"][-L:]})
    same = torch.allclose(short(histories()), long(histories()), atol=1e-9)
    assert same == (share_of_filter == 0.0)


def test_rows_are_moved_to_the_right_end():
    moved = left_padded(torch.tensor([[3, 5, 0], [7, 0, 0], [1, 2, 4]]), 4)
    assert moved.tolist() == [[0, 0, 3, 5], [0, 0, 0, 7], [0, 1, 2, 4]]
    made, narrow = net(), histories()[1:, :4]
    torch.testing.assert_close(made(narrow), made(histories()[1:]), **EXACT)


def test_queries_of_padding_see_everything_and_nobody_sees_padding():
    real = torch.tensor([[False, True, True]])
    assert may_see(real)[0].tolist() == [[True, True, True], [False, True, False], [False, True, True]]


def test_it_has_the_parameters_of_the_authors_log():
    made = from_yaml(BSARecNet, "BSARec", n_items=12_102, max_seq_length=50)
    assert sum(p.numel() for p in made.parameters()) == 878_208


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frequency_share": 1.5}, "frequency_share=1.5 is not between 0 and 1"),
        ({"kept_frequencies": 0}, r"kept_frequencies=0 is not in 1\.\.7, which MAX_ITEM_LIST_LENGTH=6"),
        ({"kept_frequencies": 8}, r"kept_frequencies=8 is not in 1\.\.7, which MAX_ITEM_LIST_LENGTH=6"),
        ({"n_heads": 3}, "hidden_size=8 is not a multiple of n_heads=3"),
        ({"hidden_act": "tanh"}, "hidden_act='tanh' is not one of relu, gelu"),
        ({"n_layers": 0}, "n_layers=0 should be at least 1"),
        ({"loss_type": "BPR"}, "loss_type='BPR' is not one of BCE, gBCE, SSM, CE"),
    ],
)
def test_options_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        net(**settings)


def test_every_option_of_the_net_changes_its_scores():
    """No key dies unread. Same weights throughout."""
    base = net()
    for key, value in (("frequency_share", 0.3), ("kept_frequencies", 3), ("hidden_act", "relu"), ("n_heads", 2)):
        made = net(**{key: value})
        share(base, made)
        assert (scores(made) - scores(base)).abs().max() > 1e-4, key
