"""Maps kept token by token, and the convolution over them, against ordinary maps."""
import numpy as np
import paddle
import pytest

from ppssl.models.depthwise import DepthwiseConv
from ppssl.models.nested import Rows, TokenMap
from tests.models.dense import relative

GRIDS = [((3, 4), (2, 2), 5), ((3, 4), (2,), 12), ((4, 3), (3, 2), 5), ((5, 4), (1,), 9), ((2, 2), (2, 1), 3),
         ((3, 2), (2, 4), 3)]


def random_rows(grid, sides, kept: int, batch: int = 2) -> Rows:
    """A map of which `kept` random tokens of each sample are visible."""
    paddle.seed(0)
    order = paddle.rand([batch, grid[0] * grid[1]]).argsort(1)
    return Rows(TokenMap(grid, sides), order[:, :kept], order.argsort(1))


def test_the_positions_of_a_token_are_nested_groups():
    token_map = TokenMap((1, 2), (2, 2))
    assert token_map.order.tolist() == [[0, 1, 8, 9, 2, 3, 10, 11, 16, 17, 24, 25, 18, 19, 26, 27],
                                        [4, 5, 12, 13, 6, 7, 14, 15, 20, 21, 28, 29, 22, 23, 30, 31]]


@pytest.mark.parametrize("grid, sides, kept", GRIDS)
def test_every_place_of_a_map_belongs_to_one_position(grid, sides, kept):
    token_map = TokenMap(grid, sides)
    token, position = token_map.owners
    assert np.array_equal(token_map.order.numpy()[token.numpy(), position.numpy()], np.arange(np.prod(token_map.size)))


def test_views_of_the_same_image_find_its_pixels():
    rows = random_rows((2, 2), (2,), kept=2, batch=4)
    places = rows.places(maps=2).reshape([4, -1])
    assert (places[0] < 16).all() and (places[1] >= 16).all() and (places[2] < 16).all() and (places[3] < 32).all()


@pytest.mark.parametrize("grid, sides, kept", GRIDS)
def test_the_convolution_by_windows_is_the_one_on_maps_and_so_are_its_gradients(grid, sides, kept):
    rows, conv = random_rows(grid, sides, kept), DepthwiseConv(6)
    x = paddle.randn([rows.batch * kept * rows.map.positions, 6])
    x.stop_gradient, found = False, []
    direction = paddle.randn(x.shape)
    for convolve in (conv.on_windows, conv.on_maps):
        y = convolve(x, rows)
        (y * direction).sum().backward()
        found.append([v.numpy() for v in (y, x.grad, conv.weight.grad, conv.bias.grad)])
        x.clear_gradient()
        conv.clear_gradients()
    assert all(relative(ours, theirs) < 1e-6 for ours, theirs in zip(*found))


def test_both_ways_are_chosen_by_the_device(monkeypatch):
    rows, conv = random_rows((2, 2), (2,), kept=4), DepthwiseConv(3)
    monkeypatch.setattr(conv, "on_maps", lambda *_: pytest.fail("Paddle's slow kernel on CPU"))
    assert conv(paddle.randn([2, 16, 3]), rows).shape == [2, 16, 3]
