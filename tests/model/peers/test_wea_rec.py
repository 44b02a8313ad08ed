"""recbole_cafe.model.peers.wea_rec: the contract; both filters by hand and as loops; why it mixes all positions."""

import pytest
import torch
from contract import ModelContract, build
from small import EXACT, NEXT, USERS, L, all_positions, from_yaml, histories, layer_norm, scores, share, small

from recbole_cafe.data.batch import Batch, next_items
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.packing import left_padded
from recbole_cafe.model.peers.wea_rec import AdaptiveFilter, HaarFilter, WEARecNet

NEAR = {"rtol": 1e-5, "atol": 1e-6}  # the waves are held in float32


class TestWEARec(ModelContract):
    model = "WEARec"
    causal = False
    settings = {"hidden_dropout_prob": 0.2}
    layouts = {"last": 12}


def net(**settings):
    return small(WEARecNet, "WEARec", n_heads=2, **settings)


def row(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1)


def fourier(length, size=1, n_heads=1, *, scale=None, shift=0.0):
    """A filter that does not read the row: a = e = 0."""
    made = AdaptiveFilter(hidden_size=size, n_heads=n_heads, max_seq_length=length).double()
    with torch.no_grad():
        for part in (made.context[0], made.context[2]):
            part.weight.zero_()
            part.bias.zero_()
        if scale is not None:
            made.scale.copy_(torch.tensor(scale, dtype=torch.float64))
        if shift is not None:
            made.shift.copy_(torch.as_tensor(shift, dtype=torch.float64).expand_as(made.shift))
    return made


# Wavelets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detail", "wanted"),
    [((1.0, 1.0), (1.0, 3.0, 2.0, 6.0)), ((0.0, 0.5), (2.0, 2.0, 3.0, 5.0)), ((-1.0, -1.0), (3.0, 1.0, 6.0, 2.0))],
)
def test_the_wavelets_by_hand(detail, wanted):
    """1, 3, 2, 6: means 2 and 4, half differences -1 and -2."""
    made = HaarFilter(hidden_size=1, max_seq_length=4).double()
    made.detail.data = torch.tensor(detail, dtype=torch.float64)[:, None]
    torch.testing.assert_close(made(row(1, 3, 2, 6)), row(*wanted), **EXACT)


def test_at_the_start_both_of_a_pair_are_about_their_mean():
    x = torch.randn(2, 6, 8)
    mean = x.view(2, 3, 2, 8).mean(2, keepdim=True).expand(-1, -1, 2, -1).reshape(2, 6, 8)
    torch.testing.assert_close(HaarFilter(hidden_size=8, max_seq_length=6)(x), mean, rtol=0.0, atol=0.3)


# Frequencies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "height"), [(4, -0.2), (50, -0.7071)])
def test_a_shift_of_all_frequencies_is_an_impulse_at_the_oldest_position(length, height):
    got = fourier(length, shift=-0.1)(torch.zeros(1, length, 1, dtype=torch.float64)).flatten()
    assert got[0].item() == pytest.approx(height, abs=1e-4)
    assert got[1:].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("scale", "wanted"), [((1.0, 0.0, 1.0), (2.0, 3.0, 2.0, 3.0)), ((1.0, 2.0, 1.0), (0.0, 1.0, 4.0, 5.0))]
)
def test_scaling_the_wave_of_one_period_by_hand(scale, wanted):
    """1, 2, 3, 4 is 5, -1 + i, -1 in frequencies."""
    torch.testing.assert_close(fourier(4, scale=[scale])(row(1, 2, 3, 4)), row(*wanted), **NEAR)


def test_a_shift_of_the_wave_of_one_period_by_hand():
    got = fourier(4, shift=[[0.0, 1.0, 0.0]])(row(0, 0, 0, 0))
    torch.testing.assert_close(got, row(1, 0, -1, 0), **NEAR)


def test_the_filter_is_the_fast_transform_head_by_head():
    made = AdaptiveFilter(hidden_size=8, n_heads=2, max_seq_length=L).double()
    x, n_bins = torch.randn(3, L, 8, dtype=torch.float64), L // 2 + 1
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    got = made(x)
    for b in range(3):
        adaptive = made.context(x[b].mean(0)).view(2, n_bins, 2)
        for c in range(8):
            head = c // 4
            spectrum = torch.fft.rfft(x[b, :, c], norm="ortho")
            for t in range(n_bins):
                a, e = adaptive[head, t]
                spectrum[t] = spectrum[t] * made.scale[head, t] * (1 + a) + made.shift[head, t] + e
            wanted = torch.fft.irfft(spectrum, n=L, norm="ortho")
            torch.testing.assert_close(got[b, :, c], wanted, **NEAR)


def test_it_looks_as_far_ahead_as_back():
    """With a and e held, j does to i what i does to j, and only their distance on the ring counts."""
    made = fourier(6, scale=[[0.3, 2.0, -1.5, 0.9]])
    weight = made(torch.eye(6, dtype=torch.float64)[:, :, None])[:, :, 0]
    torch.testing.assert_close(weight, weight.T, **NEAR)
    for i in range(6):
        torch.testing.assert_close(weight[i].roll(-i), weight[0], **NEAR)
    assert weight[0].abs().min() > 1e-3


def test_the_filter_works_in_float32_under_autocast():
    made, x = fourier(L, 8, 2, shift=-0.1).float(), torch.randn(2, L, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = made(x)
    torch.testing.assert_close(got, made(x))


# The net --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_neutral_filters_change_nothing(alpha):
    block = net(fourier_share=alpha).blocks[0]
    with torch.no_grad():
        block.wavelet.detail.fill_(1.0)
    block.fourier = fourier(L, 8, 2)
    x = torch.randn(2, L, 8, dtype=torch.float64)
    torch.testing.assert_close(block.filtered(x), x, **NEAR)


def test_the_net_is_its_equations():
    made, seq = net(), histories()
    x = layer_norm(made.item_embedding.weight[left_padded(seq, L)] + made.position.weight, made.norm)
    for block in made.blocks:
        ffn = block.feed_forward
        x = layer_norm(x + 0.2 * block.fourier(x) + 0.8 * block.wavelet(x), block.norm)
        inner = torch.nn.functional.gelu(x @ ffn.layers[0].weight.T + ffn.layers[0].bias)
        x = layer_norm(x + inner @ ffn.layers[2].weight.T + ffn.layers[2].bias, ffn.norm)
    torch.testing.assert_close(made(seq), x[:, -1], **EXACT)


@pytest.mark.parametrize(("alpha", "silent"), [(1.0, ("detail",)), (0.0, ("scale", "shift", "context.0.weight"))])
def test_a_filter_without_a_share_learns_nothing(alpha, silent):
    made, seq = net(fourier_share=alpha), histories()
    made.loss(Batch(seq, next_items(seq, (seq > 0).sum(1), NEXT, "last"), USERS)).backward()
    ends = ("detail", "scale", "shift", "context.0.weight")
    for name, parameter in made.blocks.named_parameters():
        if name.endswith(ends):
            assert (parameter.grad.abs().max() == 0.0) == name.endswith(silent), name


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_a_later_item_changes_earlier_states(alpha):
    """Why it must not learn at every position. Without the frequencies, of its own pair in the first block."""
    made, seq = net(fourier_share=alpha), histories()[:1]
    other = seq.clone()
    other[0, 5] = 15
    difference = (all_positions(made, other) - all_positions(made, seq)).abs().amax(2)[0]
    assert ((difference > 1e-6).tolist()) == ([True] * L if alpha else [False] * 4 + [True] * 2)


def test_a_loss_at_every_position_is_refused(toy_path):
    with pytest.raises(ConfigError, match="train_layout=all does not suit WEARec, which trains under last"):
        build("WEARec", toy_path, train_layout="all")


def test_all_blocks_start_with_the_same_filters_and_other_matrices():
    first, second = from_yaml(WEARecNet, "WEARec", n_layers=2).blocks
    assert torch.equal(first.wavelet.detail, second.wavelet.detail)
    assert torch.equal(first.fourier.shift, torch.full_like(first.fourier.shift, -0.1))
    assert torch.equal(first.fourier.scale, torch.ones_like(first.fourier.scale))
    assert not torch.equal(first.fourier.context[0].weight, second.fourier.context[0].weight)


@pytest.mark.parametrize(("n_items", "n_heads", "wanted"), [(12_102, 8, 910_978 - 2), (18_358, 4, 1_283_906 - 2)])
def test_it_has_the_parameters_of_the_authors_log_but_two_that_are_never_used(n_items, n_heads, wanted):
    made = from_yaml(WEARecNet, "WEARec", n_items=n_items, max_seq_length=50, n_heads=n_heads)
    assert sum(p.numel() for p in made.parameters()) == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fourier_share": -0.1}, "fourier_share=-0.1 is not between 0 and 1"),
        ({"hidden_size": 9}, "hidden_size=9 is not a multiple of n_heads=2"),
        ({"max_seq_length": 7}, "MAX_ITEM_LIST_LENGTH=7 should be even: WEARec's wavelets take positions in pairs"),
    ],
)
def test_options_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        net(**settings)


def test_every_option_of_the_net_changes_its_scores():
    """No key dies unread. Same weights throughout."""
    base = net()
    for key, value in (("fourier_share", 0.5), ("hidden_act", "relu")):
        made = net(**{key: value})
        share(base, made)
        assert (scores(made) - scores(base)).abs().max() > 1e-4, key
