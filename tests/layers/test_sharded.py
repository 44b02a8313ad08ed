"""Tables whose rows lie in several processes: the same numbers, lookups, gradients and ranks as in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed

from recbole_cafe.layers.embedding import PaddedEmbedding
from recbole_cafe.layers.sharded import Shard, ShardedEmbedding, item_table, sharded_tables, tables_in_shards
from recbole_cafe.processes import launch
from recbole_cafe.ranking.catalogue import Catalogue
from recbole_cafe.ranking.query import Query
from recbole_cafe.ranking.ranks import ScoreError
from recbole_cafe.ranking.sharded import ShardedCatalogue
from recbole_cafe.train.gradients import clip_grad_norm
from recbole_cafe.train.row_adam import RowWise
from recbole_cafe.train.shards import Shards

N, D, WORLD = 50, 6, 3


def test_each_row_is_held_by_one_process() -> None:
    shards = [Shard(rank, WORLD) for rank in range(WORLD)]
    assert [shard.rows(8).tolist() for shard in shards] == [[0, 1, 4, 7], [0, 2, 5], [0, 3, 6]]
    assert shards[0].most(8) == 4
    ids = torch.arange(1, N)
    for shard in shards:
        held = ids[shard.owner(ids) == shard.rank]
        assert shard.rows(N)[1:].tolist() == held.tolist()
        assert shard.rows(N)[shard.local(held)].tolist() == held.tolist()
        assert shard.ids(shard.local(held)).tolist() == held.tolist()
        assert shard.ids(torch.zeros(2, dtype=torch.long)).tolist() == [0, 0]
        assert shard.local(torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize(("n", "size"), [(7, 3), (2**18 + 5, 9), (2**17, 16), (2**17 + 1, 16)])
def test_the_first_numbers_are_those_of_the_whole_table(n: int, size: int) -> None:
    """Also where they are drawn in blocks, the last of which has a remainder."""
    torch.manual_seed(1)
    whole, after = PaddedEmbedding(n, size, std=0.3).weight.detach(), torch.rand(1)
    for rank in range(2):
        torch.manual_seed(1)
        shard = Shard(rank, 2)
        part = ShardedEmbedding(n, size, std=0.3, shard=shard).weight.detach()
        assert torch.equal(part, whole[shard.rows(n)])
        assert torch.equal(torch.rand(1), after), "what is drawn afterwards differs"


def test_a_table_is_whole_unless_it_is_to_be_parted_and_can_be() -> None:
    shard = Shard(0, 2)
    with tables_in_shards(shard):
        parted, dense = (item_table(N, D, std=1.0, sparse=sparse) for sparse in (True, False))
    assert sharded_tables(torch.nn.ModuleList([parted, dense])) == [parted]
    assert not sharded_tables(item_table(N, D, std=1.0, sparse=True))


def held_together(folder: str) -> None:
    """In one of WORLD processes: everything that is done with a table, beside the whole one."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    shard = Shard(rank, WORLD)
    torch.manual_seed(0)
    whole = PaddedEmbedding(N, D, std=1.0, sparse=True)
    torch.manual_seed(0)
    part = ShardedEmbedding(N, D, std=1.0, shard=shard)
    adam, adam_of_part = RowWise([whole.weight], lr=0.1), RowWise([part.weight], lr=0.1)
    part.catch_up = adam_of_part.catch_up
    draw = torch.Generator().manual_seed(3)
    for _ in range(4):
        # each process its own rows; of one whole step: those of all
        asked = torch.randint(N, (WORLD, 4, 5), generator=draw)
        wanted = torch.randn(WORLD, 4, 5, D, generator=draw)
        adam.catch_up(whole.weight, asked)
        found = part(asked[rank])
        assert torch.allclose(found, whole(asked[rank]), atol=1e-5)
        for optimizer in (adam, adam_of_part):
            optimizer.zero_grad(set_to_none=True)
        (found * wanted[rank]).sum().backward()
        (whole(asked) * wanted).sum().backward()
        norms = [clip_grad_norm([whole.weight], 2.0), clip_grad_norm([part.weight], 2.0, in_parts=[part.weight])]
        assert torch.allclose(norms[0], norms[1], rtol=1e-6)
        adam.step()
        adam_of_part.step()
    before = part.bytes_sent
    part(torch.arange(N))
    assert part.bytes_sent - before == 8 * WORLD + 8 * N + 4 * D * (WORLD - 1) * (
        len(part.weight) - 1 + (rank == WORLD - 1)
    )
    assert len(part(torch.zeros(0, dtype=torch.long))) == 0
    for optimizer in (adam, adam_of_part):
        optimizer.catch_up_all()
    assert torch.allclose(part.weight, whole.weight[shard.rows(N)], atol=1e-6)
    put_together(part, whole, adam, adam_of_part, folder)
    ranked(part, shard)
    torch.distributed.destroy_process_group()


def put_together(part: ShardedEmbedding, whole: PaddedEmbedding, adam: RowWise, adam_of_part: RowWise,
                 folder: str) -> None:  # fmt: skip
    """In a checkpoint the table and its moments are whole, and each process finds its rows there again."""
    shards = Shards(torch.nn.ModuleDict({"table": part}), folder)
    assert shards
    assert shards.n_parameters() == N * D
    weights = shards.whole_weights()
    state = shards.of_optimizer(adam_of_part, adam_of_part.state_dict(), whole=True)
    given = [weights["table.weight"], *(state["state"][0][name] for name in ("exp_avg", "exp_avg_sq", "last"))]
    if torch.distributed.get_rank() == 0:
        expected = [whole.weight, *(adam.state[whole.weight][name] for name in ("exp_avg", "exp_avg_sq", "last"))]
        for one, other in zip(given, expected, strict=True):
            assert torch.allclose(one.float(), other.float(), atol=1e-6)
        assert not list(Path(folder).iterdir())
    saved = {"table.weight": whole.weight.detach()}
    own = part.weight.detach().clone()
    shards.model.load_state_dict(saved)
    assert torch.allclose(part.weight, own, atol=1e-6)
    theirs = shards.of_optimizer(adam_of_part, adam.state_dict(), whole=False)
    adam_of_part.load_state_dict(theirs)
    rows = part.shard.rows(N)
    for name in ("exp_avg", "exp_avg_sq", "last"):
        assert torch.equal(adam_of_part.state[part.weight][name], adam.state[whole.weight][name][rows])


def ranked(part: ShardedEmbedding, shard: Shard) -> None:
    """Ranks and lists by parts of the catalogue, with ties, pruned or not, under every joint."""
    draw = torch.Generator().manual_seed(5)
    table = torch.randint(-2, 3, (N, D), generator=draw).float()
    table[0] = 0
    intents = torch.randint(1, 5, (N,), generator=draw)
    intents[0] = 0
    state, terms = (torch.randint(-2, 3, (8, n), generator=draw).float() for n in (D, 6))
    target = torch.randint(1, N, (8,), generator=draw)
    gone = [torch.randperm(N - 1, generator=draw)[:7] + 1 for _ in range(8)]
    rows = shard.rows(N)
    for joint in ("item", "product", "sum"):
        query = Query(state, None if joint == "item" else terms)
        catalogue = Catalogue(table, intents, joint, 5)
        parted = ShardedCatalogue(Catalogue(table[rows], intents[rows], joint, 5), shard, N)
        assert parted.n_items == catalogue.n_items
        for excluded in (None, gone):
            ranks, expected = (c.rank(query, target, excluded=excluded) for c in (parted, catalogue))
            for name in ("above", "tied", "n_candidates"):
                assert torch.equal(vars(ranks)[name], vars(expected)[name]), name
            few = parted.rank(query, target, excluded=excluded, at_most=3)
            assert torch.equal(few.above.clamp(max=3), expected.above.clamp(max=3))
            for k in (4, N + 3):
                for one, other in zip(parted.top(query, k, excluded), catalogue.top(query, k, excluded), strict=True):
                    assert torch.equal(one, other)
        row, item = torch.arange(8), target
        assert torch.equal(parted.scores_of(query, row, item), catalogue.scores_of(query, row, item))
    state[3, 2] = torch.nan
    with pytest.raises(ScoreError):
        parted.rank(Query(state, terms), target)


@pytest.mark.slow
def test_processes_hold_a_table_together(tmp_path: Path) -> None:
    launch(held_together, str(tmp_path), nproc=WORLD, world_size=WORLD, offset=0, ip="localhost", port="0",
           max_restarts=0)  # fmt: skip
