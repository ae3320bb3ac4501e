"""Dense layers, and by which library they multiply."""

import pytest
import torch
from torch.nn.functional import linear

from asynclab import machine, nets, precision


@pytest.fixture
def onednn(monkeypatch):
    """Let large layers be multiplied by oneDNN, on any processor."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(precision, "is_onednn_faster", lambda: True)


def error(x, exact):
    return float((x.detach().double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("bias", [True, False])
def test_onednn_gives_what_float64_gives_to_the_rounding_of_float32(onednn, bias):
    torch.manual_seed(0)
    layer = nets.Linear(348, 256, bias)
    x, direction = torch.randn(256, 348, requires_grad=True), torch.randn(256, 256)
    y = layer(x)
    assert "OneDnn" in type(y.grad_fn).__name__
    y.backward(direction)
    weight = layer.weight.detach().double()
    assert error(y, x.detach().double() @ weight.T + (layer.bias.detach().double() if bias else 0)) < 2e-6
    assert error(x.grad, direction.double() @ weight) < 2e-6
    assert error(layer.weight.grad, direction.double().T @ x.detach().double()) < 2e-6
    if bias:
        assert error(layer.bias.grad, direction.double().sum(0)) < 2e-6


def test_onednn_takes_what_lies_in_memory_in_any_way(onednn):
    layer = nets.Linear(256, 256)
    x = torch.randn(256, 256).t().requires_grad_()
    layer(x).sum().backward()  # the gradient of a sum is one number, seen 256 x 256 times
    assert error(x.grad, layer.weight.detach().double().sum(0).expand(256, 256)) < 2e-6
    assert error(layer.weight.grad, x.detach().double().sum(0).expand(256, 256)) < 1e-5


def test_gradients_that_nobody_needs_are_not_computed(onednn):
    layer = nets.Linear(256, 256).requires_grad_(False)
    x = torch.randn(256, 256, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    with torch.no_grad():
        assert layer(x).grad_fn is None


@pytest.mark.parametrize("kind", ["acting", "small", "evaluation", "bf16"])
def test_all_else_is_torchs(onednn, kind):
    layer, x = nets.Linear(256, 256), torch.randn(256, 256)
    if kind == "acting":
        x = x[:8]
    elif kind == "small":
        layer, x = nets.Linear(64, 256), x[:, :64]
    elif kind == "evaluation":
        layer.eval()
    else:
        layer, x = layer.bfloat16(), x.bfloat16()
    y = layer(x)
    assert "OneDnn" not in type(y.grad_fn).__name__
    assert torch.equal(y, linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("vendor", "instructions", "faster"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("", "DEFAULT", False),
    ],
)
def test_onednn_multiplies_where_mkl_leaves_instructions_unused(monkeypatch, vendor, instructions, faster):
    monkeypatch.setattr(machine, "vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert precision.is_onednn_faster.__wrapped__() is (faster and torch.backends.mkldnn.is_available())


def test_a_processor_says_who_made_it(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.vendor() == ""
    machine.CPUINFO.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon: Gold\n")
    assert machine.vendor() == "GenuineIntel"
    assert machine.model() == "Xeon: Gold"
