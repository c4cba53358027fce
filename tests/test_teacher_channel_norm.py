"""LayerNorm over channels as one operator: the numbers of SAM 2's own, whose file it must keep opening."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

from teacher.sam2_model import ChannelNorm, build_sam2, join_channel_norms  # noqa: E402


class LayerNorm2d(torch.nn.Module):
    """Named as sam2's, with its parameters; the formula is the textbook's."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (
            torch.nn.Parameter(torch.rand(channels)),
            torch.nn.Parameter(torch.rand(channels)),
        )
        self.eps = 1e-3

    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        each = (None, slice(None), None, None)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight[each] + self.bias[each]


def test_the_numbers_and_the_parameters_stay():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Sequential(LayerNorm2d(8)))
    x, names = torch.randn(2, 3, 4, 5), list(network.state_dict())
    before = network(x)
    join_channel_norms(network)
    assert isinstance(network[1][0], ChannelNorm)
    assert list(network.state_dict()) == names
    assert torch.allclose(network(x), before, atol=1e-6)
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_sam2_has_none_left():
    sam2 = build_sam2("tiny", 64)
    kinds = [type(module).__name__ for module in sam2.modules()]
    assert "LayerNorm2d" not in kinds
    assert kinds.count("ChannelNorm") >= 3
