import torch
from torch import nn

from asynclab import flat
from asynclab.flat import Vector


def convnet():
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Conv2d(3, 5, 2), "b": nn.Sequential(nn.Flatten(), nn.Linear(20, 4))})


def forward(net, x):
    return net["b"](net["a"](x))


def test_bind_keeps_the_function():
    net, x = convnet(), torch.randn(6, 3, 3, 3)
    before = forward(net, x)
    weights = flat.flatten(net)
    flat.bind(net, Vector(weights), Vector(torch.zeros_like(weights)))
    torch.testing.assert_close(forward(net, x), before)
    assert flat.is_bound(net, Vector(weights), Vector(net["a"].weight.grad))
    net["a"].bias = nn.Parameter(torch.zeros(5))
    assert not flat.is_bound(net, Vector(weights), Vector(net["a"].weight.grad))


def test_matrices_are_weights_and_no_biases_gains_or_lone_numbers():
    net = nn.Sequential(nn.Conv2d(3, 5, 2), nn.LayerNorm(5), nn.Linear(5, 4, bias=False), nn.LSTMCell(4, 2))
    net.log_std = nn.Parameter(torch.zeros(4))
    net.log_alpha = nn.Parameter(torch.zeros(()))
    assert flat.matrices(net) == [(5, 65), (80, 100), (100, 132), (132, 148)]


def test_writing_the_vector_changes_the_network_and_back():
    net = convnet()
    weights = flat.flatten(net)
    flat.bind(net, Vector(weights))
    weights.zero_()
    assert forward(net, torch.randn(2, 3, 3, 3)).abs().max() == 0
    with torch.no_grad():
        net["a"].bias.fill_(7)
    assert (weights == 7).sum() == 5


def test_backward_fills_the_gradient_vector():
    net, x = convnet(), torch.randn(6, 3, 3, 3)
    reference = convnet()
    forward(reference, x).square().sum().backward()
    weights = flat.flatten(net)
    grad = torch.zeros_like(weights)
    flat.bind(net, Vector(weights), Vector(grad))
    forward(net, x).square().sum().backward()
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
        assert p.grad.untyped_storage().data_ptr() == grad.untyped_storage().data_ptr()


def test_convolution_weights_lie_channels_last():
    net = convnet()
    flat.bind(net, Vector(flat.flatten(net)))
    assert net["a"].weight.is_contiguous(memory_format=torch.channels_last)


def test_slices_cover_the_vector():
    net = convnet()
    assert flat.slices(net) == {"a": slice(0, 65), "b": slice(65, 149)}
    assert flat.size(net) == 149


def test_bfloat16_parameters_follow_the_float32_vector_and_their_gradient_is_gathered():
    net, x = convnet(), torch.randn(6, 3, 3, 3)
    net["a"].bfloat16()
    weights = Vector.make(flat.flatten(net), bf16=True)
    grad = Vector.make(torch.zeros_like(weights.full), bf16=True)
    flat.bind(net, weights, grad)
    assert flat.is_bound(net, weights, grad)

    def loss():
        return net["b"](net["a"](x.bfloat16()).float()).square().sum()

    weights.full.mul_(2)
    before = loss()
    weights.round_()
    assert not torch.equal(loss(), before)
    torch.testing.assert_close(net["a"].weight.float(), 2 * convnet()["a"].weight, rtol=1e-2, atol=0)
    loss().backward()
    assert grad.full[:65].abs().max() == 0 < grad.full[65:].abs().min()
    grad.gather_()
    assert torch.equal(grad.full[60:65], net["a"].bias.grad.float())
    grad.zero_()
    assert grad.full.abs().max() == grad.low.abs().max() == 0
