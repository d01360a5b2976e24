"""Every kind that is read, against PEFT's own forward: base + B @ A is what PEFT computes.

Built and saved by PEFT on tiny random models; all trainable parameters are random, because a start at zero
would hide every error.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import dense_sum_logits, some_ids
from peft import PeftModel
from peft_cases import CASES, Case, make_model, save_base
from safetensors.torch import load_file, save_file

from inlay import Registry
from inlay.composer import compose
from inlay.composer.bank import Bank
from inlay.composer.factors import Adapter, read_adapter, shapes_of, sizes_of
from inlay.errors import InputError
from inlay.evals.inference import Base
from inlay.registry.kinds import EXACT

_EMBED = ("embed_tokens", "q_proj")
_ALL = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")

READ: dict[str, Case] = {
    **{name: case for name, case in CASES.items() if case.exactness == EXACT and case.base != "vit"},
    "lora on embeddings": CASES["lora on embeddings"],
    "rslora on embeddings": Case("LoraConfig", "rslora", EXACT, 3, {"r": 3, "use_rslora": True}, _EMBED),
    "lora on gpt2's embeddings": Case("LoraConfig", "lora", EXACT, 2, {"r": 2}, ("wte", "c_attn"), "gpt2"),
    "lora on the head": CASES["lora on the head"],
    "lora on a tied head": CASES["lora on conv1d and a head"],
    "lora on both ends of tied weights": Case(
        "LoraConfig", "lora", EXACT, 2, {"r": 2}, ("wte", "lm_head"), "gpt2"
    ),
    "lora by alpha_pattern": Case(
        "LoraConfig",
        "lora",
        EXACT,
        2,
        {"r": 2, "lora_alpha": 5, "alpha_pattern": {r"layers\.1\..*q_proj": 3, "v_proj": 16}},
    ),
    "rslora by both patterns": Case(
        "LoraConfig",
        "rslora",
        EXACT,
        5,
        {"r": 2, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True},
    ),
    "lora of a negative alpha": Case("LoraConfig", "lora", EXACT, 2, {"r": 2, "lora_alpha": -3}),
    "lora with exclusions": Case(
        "LoraConfig", "lora", EXACT, 2, {"r": 2, "exclude_modules": [r"layers.0.self_attn.q_proj"]}, _ALL
    ),
    "lora in layers by pattern": Case(
        "LoraConfig", "lora", EXACT, 2, {"r": 2, "layers_to_transform": [0], "layers_pattern": "layers"}, _ALL
    ),
    "lora gaussian": Case("LoraConfig", "lora", EXACT, 2, {"r": 2, "init_lora_weights": "gaussian"}),
    "lora eva": Case(
        "LoraConfig",
        "lora",
        EXACT,
        2,
        {"r": 2, "init_lora_weights": "eva", "eva_config": lambda peft: peft.EvaConfig()},
    ),
    "loha by alpha_pattern": Case(
        "LoHaConfig", "loha", EXACT, 2, {"r": 2, "alpha": 5, "alpha_pattern": {"v_proj": 3}}, _ALL
    ),
    "loha beyond dense": Case("LoHaConfig", "loha", EXACT, 6, {"r": 6}, ("q_proj", "v_proj")),
    "lokr of a pattern": Case(
        "LoKrConfig",
        "lokr",
        EXACT,
        2,
        {"r": 1, "alpha": 3, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"up_proj": 6}},
        (*_ALL,),
    ),
    "lokr of a whole w2": Case("LoKrConfig", "lokr", EXACT, 8, {"r": 8, "alpha": 3, "decompose_factor": 4}),
    "adalora without alpha": Case(
        "AdaLoraConfig", "adalora", EXACT, 4, {"init_r": 4, "lora_alpha": 0, "total_step": 10}
    ),
    "delora by rank_pattern": Case(
        "DeloraConfig", "delora", EXACT, 5, {"r": 3, "rank_pattern": {"v_proj": 5}}, _ALL
    ),
    "miss of a rank that leaves a rest": Case("MissConfig", "miss", EXACT, 5, {"r": 5}, _ALL),
    "gralora of four blocks": Case(
        "GraloraConfig", "gralora", EXACT, 8, {"r": 8, "gralora_k": 4, "alpha": 5, "hybrid_r": 3}, _ALL
    ),
}


@dataclasses.dataclass(frozen=True)
class Seen:
    folder: Path
    base: Path
    case: Case
    logits: torch.Tensor
    ids: torch.Tensor


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By the name of a case: its folder as saved, and what PEFT computed with it."""
    root = tmp_path_factory.mktemp("kinds")

    @functools.cache
    def base(name: str) -> Path:
        return save_base(name, root / f"base-{name}")

    @functools.cache
    def made(name: str) -> Seen:
        case, folder = READ[name], root / name.replace(" ", "-")
        ids = torch.randint(1, 32, (3, 9), generator=torch.Generator().manual_seed(5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = case.build(make_model(case.base)).eval()
            randomise(model, seed=7)
            model.save_pretrained(folder, save_embedding_layers=False)
            with torch.inference_mode():
                logits = model(input_ids=ids).logits.clone()
        return Seen(folder, base(case.base), case, logits, ids)

    return made


def randomise(model: Any, seed: int) -> None:
    """Every trainable parameter drawn anew, large enough that each part of the delta counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def with_deltas(model: Any, adapter: Adapter, weight: float = 1.0) -> None:
    """The naive oracle: W + weight * B @ A in float64, turned where the base keeps its weight (in, out)."""
    from transformers.pytorch_utils import Conv1D

    with torch.no_grad():
        for name, (a, b) in adapter.factors.items():
            module = model.get_submodule(name)
            delta = weight * (b.double() @ a.double())
            turned = isinstance(module, Conv1D | torch.nn.Embedding)
            assert turned == (name in adapter.embeddings or isinstance(module, Conv1D))
            fresh = (module.weight.double() + (delta.T if turned else delta)).float()
            module.weight = torch.nn.Parameter(fresh)  # a tied head keeps the old one, as in PEFT


@pytest.mark.parametrize("name", READ)
def test_base_plus_delta_is_pefts_forward(name: str, seen: Any) -> None:
    made = seen(name)
    adapter = read_adapter(made.folder, base=made.base)
    assert adapter.exactness == "exact"
    model = make_model(made.case.base).eval()
    with torch.inference_mode():
        bare = model(input_ids=made.ids).logits.clone()
    with_deltas(model, adapter)
    with torch.inference_mode():
        found = model(input_ids=made.ids).logits
    assert (found - made.logits).abs().max() < 1e-5
    assert (bare - made.logits).abs().max() > 1e-3, "the adapter must change something to prove anything"


@pytest.mark.parametrize("name", READ)
def test_the_bank_is_pefts_forward(name: str, seen: Any) -> None:
    made = seen(name)
    model = make_model(made.case.base).eval()
    bank = Bank(model)
    bank.attach([read_adapter(made.folder, base=made.base)])
    bank.gate.set(torch.ones(1))
    with torch.inference_mode():
        found = model(input_ids=made.ids).logits
    bank.detach()
    assert (found - made.logits).abs().max() < 1e-5


@pytest.mark.parametrize("name", READ)
def test_sizes_are_known_without_a_tensor(name: str, seen: Any) -> None:
    import json

    made = seen(name)
    adapter = read_adapter(made.folder, base=made.base)
    shapes = shapes_of((made.folder / "adapter_model.safetensors").read_bytes())
    config = json.loads((made.folder / "adapter_config.json").read_text())
    weights = {n: tuple(p.shape) for n, p in make_model(made.case.base).state_dict().items()}
    sizes = sizes_of(config, shapes, name, weight=lambda module: weights.get(f"{module}.weight"))
    assert {m: (s.rank, s.inputs, s.outputs) for m, s in sizes.items()} == {
        m: (a.shape[0], a.shape[1], b.shape[0]) for m, (a, b) in adapter.factors.items()
    }


@pytest.mark.parametrize("name", READ)
def test_exported_and_read_back_it_is_the_same_and_peft_agrees(name: str, seen: Any, tmp_path: Path) -> None:
    import inlay

    made = seen(name)
    adapter = read_adapter(made.folder, base=made.base)
    inlay.export(adapter, tmp_path / "out")
    back = read_adapter(tmp_path / "out", base=made.base)
    assert back.embeddings == adapter.embeddings
    for module in adapter.factors:
        assert torch.allclose(back.delta(module), adapter.delta(module), rtol=1e-6, atol=1e-7)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(make_model(made.case.base), tmp_path / "out").eval()
        assert (model(input_ids=made.ids).logits - made.logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("loha", {"down_proj": 4, "up_proj": 9}),
        ("loha beyond dense", {"q_proj": 16, "v_proj": 8}),
        ("gralora of four blocks", {"q_proj": 16, "v_proj": 8}),
        ("gralora hybrid", {"q_proj": 10, "v_proj": 8}),
        ("adalora", {"q_proj": 4, "v_proj": 4}),
        ("vera", {"down_proj": 8, "up_proj": 8}),
    ],
)
def test_the_rank_is_the_one_the_structure_has(name: str, ranks: Mapping[str, int], seen: Any) -> None:
    made = seen(name)
    adapter = read_adapter(made.folder, base=made.base)
    for module, rank in adapter.ranks.items():
        leaf = module.rpartition(".")[2]
        if leaf in ranks:
            assert rank == ranks[leaf]
            numeric = int(torch.linalg.matrix_rank(adapter.delta(module).double(), rtol=1e-5))
            assert numeric <= rank
            if not name.startswith("vera"):
                assert numeric == min(rank, *adapter.delta(module).shape)


@pytest.mark.parametrize("empty", [False, True])
def test_a_pruned_adalora_keeps_the_scale_it_started_with(empty: bool, tmp_path: Path) -> None:
    """Masks as training leaves them: what is pruned has no singular value and is not saved."""
    base = save_base("llama", tmp_path / "base")
    ids = torch.randint(1, 32, (3, 9), generator=torch.Generator().manual_seed(5))
    masks = {
        "model.layers.0.self_attn.q_proj": [True, False, True, False],
        "model.layers.0.self_attn.v_proj": [False, False, False, not empty],
        "model.layers.1.self_attn.q_proj": [True, True, True, True],
        "model.layers.1.self_attn.v_proj": [False, True, True, True],
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = CASES["adalora"].build(make_model("llama")).eval()
        randomise(model, seed=7)
        for module, mask in masks.items():
            model.base_model.model.get_submodule(module).lora_E["default"][~torch.tensor(mask)] = 0.0
        model.peft_config["default"].rank_pattern = {f"{m}.lora_E": mask for m, mask in masks.items()}
        expected = model(input_ids=ids).logits.clone()
        model.save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter", base=base)
    assert adapter.ranks == {module: sum(mask) for module, mask in masks.items() if any(mask)}
    plain = make_model("llama").eval()
    with_deltas(plain, adapter)
    with torch.inference_mode():
        assert (plain(input_ids=ids).logits - expected).abs().max() < 1e-5


def test_what_lora_fa_trained_is_read_like_any_lora(tmp_path: Path) -> None:
    """LoRA-FA (arXiv:2308.03303) is an optimiser: A stays as it was drawn."""
    from peft.optimizers import create_lorafa_optimizer

    base = save_base("llama", tmp_path / "base")
    ids = torch.randint(1, 32, (3, 9), generator=torch.Generator().manual_seed(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CASES["lora"].build(make_model("llama"))
        optimiser = create_lorafa_optimizer(model=model, r=2, lora_alpha=8, lr=0.05)
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        model.eval().save_pretrained(tmp_path / "adapter")
        with torch.inference_mode():
            expected = model(input_ids=ids).logits.clone()
    plain = make_model("llama").eval()
    with torch.inference_mode():
        assert (plain(input_ids=ids).logits - expected).abs().max() > 1e-3
    with_deltas(plain, read_adapter(tmp_path / "adapter", base=base))
    with torch.inference_mode():
        assert (plain(input_ids=ids).logits - expected).abs().max() < 1e-5


def test_half_precision_is_scaled_in_float32(seen: Any, tmp_path: Path) -> None:
    made = seen("rslora by both patterns")
    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes((made.folder / "adapter_config.json").read_bytes())
        half = {k: v.to(dtype) for k, v in load_file(made.folder / "adapter_model.safetensors").items()}
        save_file(half, folder / "adapter_model.safetensors")
        adapter = read_adapter(folder, base=made.base)
        for module, (a, b) in adapter.factors.items():
            alpha, rank = (3, 2) if module.endswith("q_proj") else (8, 5)
            down, up = (half[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
            oracle = (alpha / rank**0.5) * (up.double() @ down.double())
            assert a.dtype == b.dtype == torch.float32
            assert torch.allclose(b.double() @ a.double(), oracle, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tinylora", "its kind is TINYLORA"),
        ("vera without projection", "save_projection"),
        ("unilora", "save_indices"),
        ("miss bat", "multiplies the base's own weights"),
        ("dora", "DoRA"),
        ("hira", "its kind is HIRA"),
        ("randlora", "its kind is RANDLORA"),
        ("oft", "its kind is OFT"),
        ("ia3", "its kind is IA3"),
        ("prompt_tuning", "its kind is PROMPT_TUNING"),
        ("lora with biases", "lora_bias"),
        ("lora with saved modules", "lm_head"),
        ("lora with replicated layers", "layer_replication"),
        ("lora on parameters", "target_parameters"),
        ("qalora", "use_qalora"),
        ("lora on a convolution", "must have 2 axes"),
        ("lora on embeddings", "save_embedding_layers=False"),
    ],
)
def test_what_has_no_factors_is_refused_by_name(name: str, says: str, tmp_path: Path) -> None:
    from peft_cases import save_adapter

    save_adapter(CASES[name], tmp_path / "adapter")
    with pytest.raises(InputError) as caught:
        read_adapter(tmp_path / "adapter")
    assert says in f"{caught.value}"


@pytest.mark.parametrize("name", ["miss", "vera"])
def test_what_only_the_base_tells_is_asked_for(name: str, seen: Any) -> None:
    with pytest.raises(InputError, match="only in its base") as caught:
        read_adapter(seen(name).folder)
    assert "base=" in str(caught.value)


@pytest.mark.parametrize("name", [n for n in READ if n in CASES])
def test_another_base_is_refused_before_a_tensor_is_loaded(
    name: str, seen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    made = seen(name)
    other = save_base("gpt2" if made.case.base == "llama" else "llama", tmp_path / "other")
    monkeypatch.setattr(safetensors.torch, "load", lambda _: pytest.fail("a tensor was loaded"))
    with pytest.raises(InputError):
        read_adapter(made.folder, base=other)


@pytest.mark.parametrize(
    "name", ["lora", "adalora", "loha", "lokr", "delora", "miss", "gralora", "vera", "vblora"]
)
def test_each_missing_and_each_misshapen_tensor_is_refused(name: str, seen: Any, tmp_path: Path) -> None:
    """A delta that is too tall is plausible by itself: there the base is asked."""
    made = seen(name)
    tensors = load_file(made.folder / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((made.folder / "adapter_config.json").read_bytes())
    for key in tensors if name != "miss" else ():
        save_file({k: v for k, v in tensors.items() if k != key}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(InputError, match="is not there"):
            read_adapter(tmp_path, base=made.base)
    for key, tensor in tensors.items():
        for axis in range(tensor.ndim):
            longer = torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)
            save_file({**tensors, key: longer}, tmp_path / "adapter_model.safetensors")
            with pytest.raises(InputError, match=r"must|do not fit"):
                read_adapter(tmp_path, base=made.base)


def test_kinds_stacked_out_of_a_registry_are_the_sum_of_pefts_deltas(
    base: Base, store: Registry, tmp_path: Path
) -> None:
    """PEFT cannot mix kinds; its layers' answers to the unit vectors, added up in float64, are the oracle."""
    import peft

    configs: dict[str, tuple[float, Any]] = {
        "loha": (1.0, peft.LoHaConfig(r=3, alpha=5, target_modules=["q_proj", "down_proj"])),
        "lokr": (0.5, peft.LoKrConfig(r=2, alpha=3, target_modules=["v_proj", "up_proj"])),
        "miss": (-0.5, peft.MissConfig(r=5, target_modules=["q_proj", "up_proj"])),
        "vera": (0.7, peft.VeraConfig(r=16, target_modules=["v_proj", "down_proj"])),
        "gralora": (-1.5, peft.GraloraConfig(r=4, target_modules=["o_proj"])),
        "delora": (0.3, peft.DeloraConfig(r=4, target_modules=["gate_proj", "v_proj"])),
    }
    parts = []
    for seed, (name, (weight, config)) in enumerate(configs.items()):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(base.model, config)
            randomise(model, seed)
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.mul_(0.05 if name == "gralora" or "miss" in key else 0.3)
            model.eval().save_pretrained(tmp_path / name)
            deltas = {}
            for module, layer in model.base_model.model.named_modules():
                if hasattr(layer, "base_layer"):
                    units = torch.eye(layer.base_layer.in_features)[None]
                    deltas[module] = (layer(units).double() - layer.base_layer(units).double())[0].T.float()
            model.unload()
        parts.append((weight, deltas))
        store.add(name, tmp_path / name, base=base.fingerprint)
        assert store.resolve(f"{name}@v1").exactness == "exact"  # type: ignore[union-attr]
    recipe = {"stack": [{"use": f"{name}@v1", "weight": weight} for name, (weight, _) in configs.items()]}
    ids = some_ids(base)
    with torch.inference_mode():
        bare = base.model(input_ids=ids).logits.clone()
    expected = dense_sum_logits(base, parts, ids)
    composed = compose({"compose": recipe}, store=store, base=base)
    try:
        with torch.inference_mode():
            found = composed.model(input_ids=ids).logits.clone()
    finally:
        composed.detach()
    scale = float(expected.abs().max())
    assert (found - expected).abs().max() < 1e-5 * max(1.0, scale)
    assert (bare - expected).abs().max() > 1e-2


ODD = (
    None,
    [],
    {},
    {"q_proj": None},
    {"(": 2},
    "x",
    -1,
    0,
    1.5,
    True,
    [None],
    10**400,
    float("nan"),
    float("inf"),
)


@pytest.mark.parametrize(
    "name", ["lora", "adalora", "loha", "lokr", "delora", "miss", "gralora", "vera", "vblora"]
)
def test_whatever_a_configuration_says_it_is_read_or_refused_in_a_sentence(
    name: str, seen: Any, tmp_path: Path
) -> None:
    import json

    made = seen(name)
    weights = "adapter_model.safetensors"
    (tmp_path / weights).write_bytes((made.folder / weights).read_bytes())
    config = json.loads((made.folder / "adapter_config.json").read_text())
    for odd in ([], 3, "x", None):
        (tmp_path / "adapter_config.json").write_text(json.dumps(odd))
        with pytest.raises(InputError, match="is no readable adapter"):
            read_adapter(tmp_path, base=made.base)
    fields = {*config, "r", "rank_pattern", "alpha_pattern", "lora_alpha", "alpha", "init_weights", "bias"}
    for field in sorted(fields):
        for odd in ODD:
            (tmp_path / "adapter_config.json").write_text(json.dumps({**config, field: odd}))
            try:
                adapter = read_adapter(tmp_path, base=made.base)
            except InputError as refused:
                assert len(str(refused)) < 600
            else:
                assert all(torch.isfinite(b @ a).all() for a, b in adapter.factors.values()), (field, odd)


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 7, b"\xff" * 64, b"\x02" + b"\x00" * 7 + b"[]", b"\x10" + b"\x00" * 7 + b"{"]
)
def test_bytes_that_are_no_safetensors_are_refused_in_a_sentence(
    data: bytes, seen: Any, tmp_path: Path
) -> None:
    made = seen("lora")
    (tmp_path / "adapter_config.json").write_bytes((made.folder / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="is no readable adapter"):
        read_adapter(tmp_path)
