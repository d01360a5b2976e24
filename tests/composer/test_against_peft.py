"""Where PEFT 0.21 is wrong about adapters it wrote itself; Inlay is held against the dense sum in float64.

Each test first shows PEFT's defect. A PEFT that has mended it skips the test, with a reason: then the case
may go.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from composer_fakes import edit_config, write_lora
from peft_cases import make_model, save_base
from safetensors.torch import load_file, save_file

from inlay import Registry
from inlay.composer import compose, read_adapter
from inlay.composer.bank import Bank
from inlay.errors import BaseMismatch, InputError
from inlay.evals.inference import Base

TARGETS = ["q_proj", "v_proj", "up_proj"]
Deltas = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT's own warnings are beside the point here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def saved(folder: Path, seed: int, **config: Any) -> Path:
    """A LoRA as PEFT saves it, every parameter random."""
    import peft

    settings = {"r": 2, "lora_alpha": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **config}
    model = peft.get_peft_model(make_model("llama"), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return folder


def deltas(folder: Path, scale: float) -> Deltas:
    """The oracle: scale * B @ A of the saved tensors, in float64, read without Inlay."""
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {
        module.removeprefix("base_model.model."): scale
        * (tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double())
        for module in modules
    }


def total(parts: Sequence[tuple[float, Deltas]]) -> Deltas:
    found: Deltas = {}
    for weight, part in parts:
        for module, delta in part.items():
            found[module] = found.get(module, 0) + weight * delta
    return found


def error(found: Deltas, expected: Deltas) -> float:
    """Relative Frobenius error over all modules."""
    assert found.keys() == expected.keys()
    off = sum(float((found[m].double() - expected[m]).square().sum()) for m in expected)
    return float((off / sum(float(d.square().sum()) for d in expected.values())) ** 0.5)


def pefts(names: dict[str, Path], **merge: Any) -> Deltas:
    """What PEFT's add_weighted_adapter makes of the adapters, as dense deltas."""
    from peft import PeftModel

    (first, folder), *others = names.items()
    model = PeftModel.from_pretrained(make_model("llama"), folder, adapter_name=first)
    for name, other in others:
        model.load_adapter(other, adapter_name=name)
    model.add_weighted_adapter(list(names), adapter_name="both", **merge)
    return {
        name: module.get_delta_weight("both").detach()
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "lora_A") and "both" in module.lora_A
    }


def stack(members: Sequence[tuple[Path, float]]) -> Deltas:
    """What Inlay's bank adds for a stack, its factors side by side under their gates, as dense deltas."""
    bank = Bank(make_model("llama"))
    bank.attach([read_adapter(folder) for folder, _ in members])
    bank.gate.set(torch.tensor([weight for _, weight in members]))
    return added(bank)


def added(bank: Bank) -> Deltas:
    """What the bank adds to each of its layers: the answer to the unit vectors, less the base's."""
    found: Deltas = {}
    with torch.no_grad():
        for name, layer in bank.layers.items():
            units = torch.eye(int(layer.inner.in_features)).unsqueeze(0)  # type: ignore[arg-type]
            found[name] = (layer(units) - layer.inner(units))[0].T
    return found


def skip_if_mended(wrong: float, what: str) -> None:
    """Skip where PEFT's relative error has gone."""
    if wrong < 1e-3:
        pytest.skip(f"PEFT has mended it: {what}")


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_a_sum_that_starts_with_an_rslora_keeps_its_strength(how: str, tmp_path: Path) -> None:
    """PEFT keeps use_rslora of the first and sets alpha = r: the sum is √r too strong."""
    one = saved(tmp_path / "one", 1, use_rslora=True)
    two = saved(tmp_path / "two", 2)
    expected = total([(0.7, deltas(one, 4 / 2**0.5)), (-0.4, deltas(two, 2.0))])
    assert error(stack([(one, 0.7), (two, -0.4)]), expected) < 1e-6
    weights = [0.7, 0.4] if how == "svd" else [0.7, -0.4]  # where a negative weight is refused, a positive
    wanted = total([(weights[0], deltas(one, 4 / 2**0.5)), (weights[1], deltas(two, 2.0))])
    more = {"svd_rank": 4} if how == "svd" else {}
    wrong = error(pefts({"one": one, "two": two}, weights=weights, combination_type=how, **more), wanted)
    skip_if_mended(wrong, "add_weighted_adapter scales by √r after an rsLoRA")
    assert wrong > 0.5


def test_linear_adds_products_not_factors(tmp_path: Path) -> None:
    """PEFT's "linear" adds the A's and the B's: (ΣB)(ΣA) is not ΣBA."""
    one, two = saved(tmp_path / "one", 1), saved(tmp_path / "two", 2)
    expected = total([(0.5, deltas(one, 2.0)), (0.5, deltas(two, 2.0))])
    assert error(stack([(one, 0.5), (two, 0.5)]), expected) < 1e-6
    wrong = error(pefts({"one": one, "two": two}, weights=[0.5, 0.5], combination_type="linear"), expected)
    skip_if_mended(wrong, "linear is the sum of the deltas")
    assert wrong > 0.5


def test_ranks_and_modules_may_differ(tmp_path: Path) -> None:
    """PEFT's "linear" refuses other ranks; a stack takes both, and modules that only one adapter has."""
    one = saved(tmp_path / "one", 1, r=3)
    two = saved(tmp_path / "two", 2, r=5, target_modules=["v_proj", "down_proj"])
    expected = total([(1.5, deltas(one, 4 / 3)), (-0.5, deltas(two, 4 / 5))])
    assert error(stack([(one, 1.5), (two, -0.5)]), expected) < 1e-6
    with pytest.raises(ValueError, match=r"same r|rank"):
        pefts({"one": one, "two": two}, weights=[1.5, 0.5], combination_type="linear")


def test_a_dora_is_refused_by_name(tmp_path: Path) -> None:
    """PEFT takes its factors for a LoRA's and drops the magnitudes without a word."""
    from peft import PeftModel

    dora, plain = saved(tmp_path / "dora", 1, use_dora=True), saved(tmp_path / "plain", 2)
    with pytest.raises(InputError, match="dora cannot be composed: it is a DoRA"):
        read_adapter(dora)
    ids = torch.randint(1, 32, (2, 8), generator=torch.Generator().manual_seed(0))
    model = PeftModel.from_pretrained(make_model("llama"), dora, adapter_name="dora").eval()
    model.load_adapter(plain, adapter_name="plain")
    with torch.no_grad():
        model.set_adapter("dora")
        alone = model(input_ids=ids).logits.double()
        try:
            model.add_weighted_adapter(["dora", "plain"], [1.0, 0.0], "both", combination_type="cat")
        except ValueError:
            pytest.skip("PEFT has mended it: a DoRA is refused")
        model.set_adapter("both")
        summed = model(input_ids=ids).logits.double()
    wrong = float((summed - alone).norm() / alone.norm())
    skip_if_mended(wrong, "the sum of a DoRA and nothing is the DoRA")
    assert wrong > 0.05


def test_biases_of_an_adapters_own_are_refused_by_name(tmp_path: Path) -> None:
    """PEFT's sum has biases at random: those of no adapter."""
    import peft

    folders = {}
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        model = make_model("gpt2")
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], lora_bias=True, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if key.endswith("lora_B.default.bias"):
                    parameter.fill_(seed)
        adapted.save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
        with pytest.raises(InputError, match="lora_bias"):
            read_adapter(folders[name])
    both = peft.PeftModel.from_pretrained(make_model("gpt2"), folders["one"], adapter_name="one")
    both.load_adapter(folders["two"], adapter_name="two")
    try:
        both.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="cat")
    except ValueError:
        pytest.skip("PEFT has mended it: adapters with biases are refused")
    found = [m.lora_B["both"].bias for m in both.modules() if hasattr(m, "lora_B") and "both" in m.lora_B]
    if all(bias is not None and bool((bias.abs() > 0.99).all()) for bias in found):
        pytest.skip("PEFT has mended it: biases are summed")


def test_a_module_replaced_by_one_adapter_is_refused_by_name(tmp_path: Path) -> None:
    """PEFT's sum drops the head that one of the two had trained."""
    from peft import PeftModel

    one, two = saved(tmp_path / "one", 1, modules_to_save=["lm_head"]), saved(tmp_path / "two", 2)
    with pytest.raises(InputError, match=r"it replaces whole modules \(lm_head\)"):
        read_adapter(one)
    ids = torch.randint(1, 32, (2, 8), generator=torch.Generator().manual_seed(0))
    model = PeftModel.from_pretrained(make_model("llama"), one, adapter_name="one").eval()
    model.load_adapter(two, adapter_name="two")
    with torch.no_grad():
        alone = model(input_ids=ids).logits.double()
        try:
            model.add_weighted_adapter(["one", "two"], [1.0, 0.0], "both", combination_type="cat")
        except ValueError:
            pytest.skip("PEFT has mended it: modules_to_save are refused")
        model.set_adapter("both")
        summed = model(input_ids=ids).logits.double()
    wrong = float((summed - alone).norm() / alone.norm())
    skip_if_mended(wrong, "modules_to_save take part in the sum")
    assert wrong > 0.05


def test_changing_one_adapter_leaves_another_of_a_like_name_alone(tmp_path: Path) -> None:
    """PEFT looks for "a0" in the keys, finds "a0_style" too, and fills it with zeros."""
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter

    old, style, new = (saved(tmp_path / name, seed) for seed, name in enumerate(("a0", "a0_style", "a1")))
    kept = deltas(style, 2.0)

    bank = Bank(make_model("llama"))
    bank.attach([read_adapter(old), read_adapter(style)])
    bank.unload(0)
    slot = bank.load(read_adapter(new))
    for gate, expected in (((0.0, 1.0), kept), ((1.0, 0.0), deltas(new, 2.0))):
        values = [0.0] * bank.slots
        values[1], values[slot] = gate[1], gate[0]
        bank.gate.set(torch.tensor(values))
        assert error(added(bank), expected) < 1e-6
    bank.detach()

    swapped = PeftModel.from_pretrained(make_model("llama"), old, adapter_name="a0")
    swapped.load_adapter(style, adapter_name="a0_style")
    hotswap_adapter(swapped, str(new), adapter_name="a0", torch_device="cpu")
    after = {
        name: module.get_delta_weight("a0_style").detach()
        for name, module in swapped.base_model.model.named_modules()
        if hasattr(module, "lora_A") and "a0_style" in module.lora_A
    }
    wrong = error(after, kept)
    skip_if_mended(wrong, "hot-swapping matches whole names")
    assert wrong == pytest.approx(1.0)


def test_an_adapter_saved_after_a_swap_is_refused(tmp_path: Path) -> None:
    """PEFT leaves the configuration of before the swap beside tensors of another rank; it scales wrongly."""
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter

    old, new = saved(tmp_path / "old", 1, r=2, lora_alpha=4), saved(tmp_path / "new", 2, r=4, lora_alpha=4)
    model = PeftModel.from_pretrained(make_model("llama"), old)
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    prepare_model_for_compiled_hotswap(model, target_rank=4)
    hotswap_adapter(model, str(new), adapter_name="default", torch_device="cpu")
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    if config["r"] == 4:
        pytest.skip("PEFT has mended it: a swap changes the configuration")
    with pytest.raises(InputError, match=r"rank its configuration says \(2\), and has 4"):
        read_adapter(tmp_path / "again")


def test_a_missing_factor_is_refused(tmp_path: Path) -> None:
    """PEFT warns, and puts a fresh one in its place."""
    from peft import PeftModel

    folder = saved(tmp_path / "a", 1)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({k: v for k, v in tensors.items() if k != gone}, file)
    with pytest.raises(InputError, match=r"q_proj, and lora_A\.weight is not there"):
        read_adapter(folder)
    try:
        model = PeftModel.from_pretrained(make_model("llama"), folder)
    except (RuntimeError, ValueError, KeyError):
        pytest.skip("PEFT has mended it: a missing key is an error")
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    assert not torch.equal(module.lora_A["default"].weight, tensors[gone])


def test_another_base_of_the_same_shapes_is_refused(tmp_path: Path, base: Base, store: Registry) -> None:
    """PEFT never compares the base that an adapter names with the model it is put on."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = write_lora(tmp_path / "a", base, seed=1)
    shutil.copytree(base.fingerprint.path, tmp_path / "wrong")
    file = tmp_path / "wrong" / "model.safetensors"
    save_file({k: v * 1.5 for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    edit_config(folder, base_model_name_or_path=str(base.fingerprint.path))
    version = store.add("a", folder, base=base.fingerprint)
    with pytest.raises(BaseMismatch, match="was made for the base"):
        compose(version, store=store, base=str(tmp_path / "wrong"))
    with pytest.raises(BaseMismatch, match="was made for the base"):
        read_adapter(version, store=store, base=tmp_path / "wrong")
    assert read_adapter(version, store=store, base=base.fingerprint.path).factors
    try:
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "wrong"), folder)
    except (RuntimeError, ValueError):
        pytest.skip("PEFT has mended it: another base is refused")


def test_a_factor_of_another_base_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes are compared with the base by the files' headers alone."""
    import safetensors.torch

    folder = saved(tmp_path / "a", 1)
    base = save_base("llama", tmp_path / "base")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    narrow = {k: (v[:, :-1].contiguous() if "lora_A" in k else v) for k, v in tensors.items()}
    stray = {k.replace("layers.1.", "layers.7."): v for k, v in tensors.items()}
    for changed, says in ((narrow, "must be"), (stray, r"layers\.7\.")):
        save_file(changed, file)
        with monkeypatch.context() as patched:
            patched.setattr(safetensors.torch, "load", lambda _: pytest.fail("a tensor was loaded"))
            with pytest.raises(InputError, match=says):
                read_adapter(folder, base=base)


def test_the_order_of_target_modules_means_nothing(tmp_path: Path) -> None:
    """PEFT saves a set: what it wrote twice need not be the same bytes."""
    import inlay

    folder = saved(tmp_path / "a", 1)
    config = json.loads((folder / "adapter_config.json").read_text())
    written = []
    for number, targets in enumerate((TARGETS, TARGETS[::-1])):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
        out = tmp_path / f"out{number}"
        inlay.export(read_adapter(folder), out)
        written.append(
            [(out / file).read_bytes() for file in ("adapter_config.json", "adapter_model.safetensors")]
        )
    assert written[0] == written[1]
    said = json.loads(written[0][0])["target_modules"]
    assert said == sorted(said)


@pytest.mark.slow
def test_peft_saves_target_modules_in_no_order(tmp_path: Path) -> None:
    """What the test above is for: two processes, two orders."""
    code = (
        "import sys, peft; peft.LoraConfig(target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'])"
        ".save_pretrained(sys.argv[1])"
    )
    orders = set()
    for seed in ("1", "2", "3"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        orders.add(tuple(json.loads((folder / "adapter_config.json").read_text())["target_modules"]))
    if len(orders) == 1:
        pytest.skip("PEFT has mended it: target_modules are saved in one order")
    assert len({tuple(sorted(order)) for order in orders}) == 1
