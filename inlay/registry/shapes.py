"""Which tensors each kind of adapter keeps for one module, and of which shape.

One function a kind: from a place in the base and the configuration to {name: shape} and the rank, as PEFT
0.21 creates and saves them (peft/tuners/<kind>/layer.py, `update_layer`; peft/tuners/<kind>/model.py,
`_get_adapter_state_dict`). What the configuration does not fix is taken from the tensors themselves, so that
the others must agree with it. I is what goes into the module, O what comes out, r the rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inlay.registry.peft_config import PeftConfig

Shape = tuple[int, ...]
Expected = tuple[dict[str, Shape], int]
"""(every tensor that must be there with its shape, the rank: 0 for kinds that have none)"""


@dataclass(frozen=True)
class Place:
    """One adapted module. `weight` is the base's tensor, `found` what the adapter holds for it by name.

    `tensor` gives the shape of another tensor of the same module in the base, None if there is none.
    """

    module: str
    weight: Shape
    inputs: int
    outputs: int
    found: Mapping[str, Shape]
    config: PeftConfig
    tensor: Callable[[str], Shape | None]

    def size(self, name: str, axis: int) -> int:
        """Length of a found tensor along an axis; 0 if there is no such tensor or axis."""
        shape = self.found.get(name, ())
        return shape[axis] if -len(shape) <= axis < len(shape) else 0

    def rank(self, seen: int = 0) -> int:
        """r of the configuration, or what rank_pattern says for this module."""
        return self.config.by_pattern("rank_pattern", self.module, self.config.count("r"), seen)


@dataclass(frozen=True)
class Shared:
    """What is kept once for the whole adapter (`base_model.<name>`), and the places that use it."""

    places: tuple[Place, ...]
    found: Mapping[str, Shape]
    config: PeftConfig

    @property
    def widest(self) -> tuple[int, int]:
        """(I, O) that hold every place's."""
        return max((p.inputs for p in self.places), default=0), max(
            (p.outputs for p in self.places), default=0
        )


def lora(p: Place) -> Expected:
    """arXiv:2106.09685: A (r, I), B (O, r); on an embedding of `rows` by `dim`, A (r, rows) and B (dim, r);
    on a convolution A spans the kernel; on a parameter of E experts (E, I, O), r for each of them.
    """
    config, inputs, outputs = p.config, p.inputs, p.outputs
    if any(name.startswith("lora_embedding_") for name in p.found):
        r = p.rank(p.size("lora_embedding_A", 0))
        parts: dict[str, Shape] = {"lora_embedding_A": (r, inputs), "lora_embedding_B": (outputs, r)}
        if config.flag("use_dora"):
            parts["lora_magnitude_vector"] = (outputs,)
        return parts, r
    kernel = p.weight[2:]
    experts = p.weight[0] if config.names("target_parameters") and len(p.weight) == 3 else 1
    r = p.rank(p.size("lora_A.weight", 0) // experts)
    if kernel and experts == 1:
        groups = max(1, p.size("lora_A.weight", 1) // max(1, p.weight[1]))
        ones = (1,) * len(kernel)
        parts = {
            "lora_A.weight": (r, p.weight[1] * groups, *kernel),
            "lora_B.weight": (outputs, r // groups, *ones),
        }
        magnitude: Shape = (1, outputs, *ones)
    else:
        parts = {"lora_A.weight": (r * experts, inputs), "lora_B.weight": (outputs, r * experts)}
        magnitude = (outputs,)
    if config.flag("use_qalora"):  # pools the input in groups, on modules whose base is quantised by GPTQ
        pooled = inputs // config.count("qalora_group_size")
        if p.size("lora_A.weight", 1) == pooled:
            parts["lora_A.weight"] = (r, pooled)
    if config.mapping("use_bdlora"):
        blocks = PeftConfig(config.mapping("use_bdlora"), {"nblocks": 1}).count("nblocks")
        if p.size("lora_A.weight", 1) * blocks == inputs:
            parts["lora_A.weight"] = (r, inputs // blocks)
        elif p.size("lora_B.weight", 1) * blocks == r:
            parts["lora_B.weight"] = (outputs, r // blocks)
    if config.flag("use_dora"):
        parts["lora_magnitude_vector"] = magnitude
    if config.flag("lora_bias"):
        parts["lora_B.bias"] = (outputs,)
    if config.mapping("kasa_config"):
        parts["lora_diag"] = (r,)
    if config.mapping("velora_config"):
        groups = PeftConfig(config.mapping("velora_config"), {"num_groups": 64}).count("num_groups")
        parts["lora_velora_embed"] = (math.ceil(inputs / groups),)
    if config.mapping("monteclora_config"):
        sampler = "lora_monteclora_sampler"
        k = PeftConfig(config.mapping("monteclora_config"), {"num_samples": 8}).count("num_samples")
        parts |= {f"{sampler}.expert_weights": (k,), f"{sampler}.expert_weights_prior": (k,)}
        parts |= {f"{sampler}.gaussian_var_prior": (r, r), f"{sampler}.std_prior": (r,)}
    return parts, r


def adalora(p: Place) -> Expected:
    """arXiv:2303.10512: B diag(E) A. What training pruned is gone; rank_pattern keeps it as a mask."""
    r = min(p.size("lora_E", 0), p.config.count("init_r"))
    masks = p.config.once(
        "masks",
        lambda: {
            key.removeprefix("base_model.model.").removesuffix(".lora_E"): mask
            for key, mask in p.config.mapping("rank_pattern").items()
        },
    )
    if p.module in masks:
        mask = masks[p.module]
        if not isinstance(mask, list):
            raise p.config.wrong("rank_pattern", "lists of true and false", mask)
        r = sum(value is True for value in mask)
    return {"lora_A": (r, p.inputs), "lora_B": (p.outputs, r), "lora_E": (r, 1)}, r


def loha(p: Place) -> Expected:
    """arXiv:2108.06098: (w1_a w1_b) * (w2_a w2_b), of rank up to r**2."""
    r = p.rank(p.size("hada_w1_b", 0))
    left: Shape = (p.outputs, r)
    right: Shape = (r, p.inputs)
    return {"hada_w1_a": left, "hada_w1_b": right, "hada_w2_a": left, "hada_w2_b": right}, r


def lokr(p: Place) -> Expected:
    """arXiv:2212.10650: kron(w1, w2), each whole or as a product of rank r. w1 is (a, c), w2 (b, d) with
    a * b = O and c * d = I.
    """
    r = p.rank(p.size("lokr_w1_b", 0) or p.size("lokr_w2_b", 0))
    whole = "lokr_w1" in p.found
    a, c = (
        (p.size("lokr_w1", 0), p.size("lokr_w1", 1))
        if whole
        else (p.size("lokr_w1_a", 0), p.size("lokr_w1_b", 1))
    )
    b, d = p.outputs // max(1, a), p.inputs // max(1, c)
    if (a * b, c * d) != (p.outputs, p.inputs):
        a, b, c, d = 0, 0, 0, 0  # no factorisation: nothing found can fit
    parts: dict[str, Shape] = {"lokr_w1": (a, c)} if whole else {"lokr_w1_a": (a, r), "lokr_w1_b": (r, c)}
    parts |= {"lokr_w2": (b, d)} if "lokr_w2" in p.found else {"lokr_w2_a": (b, r), "lokr_w2_b": (r, d)}
    return parts, r


def vera(p: Place) -> Expected:
    """arXiv:2310.11454: diag(b) B diag(d) A with A and B shared by all modules."""
    r = p.config.count("r")
    return {"vera_lambda_b": (p.outputs,), "vera_lambda_d": (r,)}, r


def vera_shared(s: Shared) -> dict[str, Shape]:
    (widest, tallest), r = s.widest, s.config.count("r")
    return {"vera_A": (r, widest), "vera_B": (tallest, r)} if s.config.flag("save_projection") else {}


def pvera(p: Place) -> Expected:
    """VeRA whose d is a distribution: mean and variance one after the other."""
    r = p.config.count("r")
    return {"pvera_lambda_b": (p.outputs,), "pvera_lambda_d": (2 * r,)}, r


def pvera_shared(s: Shared) -> dict[str, Shape]:
    (widest, tallest), r = s.widest, s.config.count("r")
    return {"pvera_A": (2 * r, widest), "pvera_B": (tallest, r)} if s.config.flag("save_projection") else {}


def randlora(p: Place) -> Expected:
    """arXiv:2502.00987: a sum of n random bases of rank r, n * r >= min(I, O). PEFT saves the shared bases
    beside each module too.
    """
    r, smaller = p.config.count("r"), min(p.inputs, p.outputs)
    n = math.ceil(smaller / r)
    parts: dict[str, Shape] = {"randlora_lambda": (r, n), "randlora_gamma": (n, smaller)}
    if p.config.flag("save_projection"):
        if "randlora_A" in p.found:
            parts["randlora_A"] = (r, 1, p.size("randlora_A", 2))
        if "randlora_B" in p.found:
            parts["randlora_B"] = (p.size("randlora_B", 0), p.size("randlora_B", 1), r)
    return parts, r


def randlora_shared(s: Shared) -> dict[str, Shape]:
    if not s.config.flag("save_projection"):
        return {}
    # PEFT takes the largest I and O over all places first, and then the lesser of the two.
    (widest, tallest), r = s.widest, s.config.count("r")
    small, large = min(widest, tallest), max(widest, tallest)
    return {"randlora_A": (r, 1, small), "randlora_B": (large, math.ceil(small / r), r)}


def vblora(p: Place) -> Expected:
    """arXiv:2405.15179: every piece of A and B is a mixture of vectors of a shared bank."""
    c = p.config
    r, length, vectors, top = c.count("r"), c.count("vector_length"), c.count("num_vectors"), c.count("topk")
    left, right = (r, p.inputs // length), (p.outputs // length, r)
    if not c.flag("save_only_topk_weights"):
        return {"vblora_logits_A": (*left, vectors), "vblora_logits_B": (*right, vectors)}, r
    return {
        "vblora_logits_A_topk_indices": (*left, top),
        "vblora_logits_A_topk_weights": (*left, top - 1),
        "vblora_logits_B_topk_indices": (*right, top),
        "vblora_logits_B_topk_weights": (*right, top - 1),
    }, r


def vblora_shared(s: Shared) -> dict[str, Shape]:
    return {"vblora_vector_bank": (s.config.count("num_vectors"), s.config.count("vector_length"))}


def unilora(p: Place) -> Expected:
    """arXiv:2506.00799: A and B are drawn from one shared vector; the places of each value may be kept."""
    r = p.config.count("r")
    left, right = (r, p.inputs), (p.outputs, r)
    return {
        "unilora_indices_A": left,
        "unilora_indices_B": right,
        "unilora_scales_A": left,
        "unilora_scales_B": right,
    }, r


def unilora_shared(s: Shared) -> dict[str, Shape]:
    return {"unilora_theta_d": (s.config.count("theta_d_length"),)}


def tinylora(p: Place) -> Expected:
    """B (sum of v_i P_i) A, where A and B are the base's own singular vectors and v is shared."""
    r, u = min(p.config.count("r"), p.inputs, p.outputs), p.config.count("u")
    parts: dict[str, Shape] = {"tinylora_A": (r, p.inputs), "tinylora_B": (p.outputs, r)}
    if p.config.flag("save_projection"):
        parts["tinylora_P"] = (u, r, r)
    return parts, r


def tinylora_shared(s: Shared) -> dict[str, Shape]:
    u = s.config.count("u")
    numbered = [name for name in s.found if name.removeprefix("tinylora_v.").isdecimal()]
    return dict.fromkeys(numbered or ["tinylora_v.0"], (u,))


def delora(p: Place) -> Expected:
    """arXiv:2503.18225: LoRA whose strength (lambda) and direction are apart."""
    r = p.rank(p.size("delora_A", 0))
    return {
        "delora_A": (r, p.inputs),
        "delora_B": (p.outputs, r),
        "delora_lambda": (1,),
        "delora_w_norm": (p.inputs,),
    }, r


def miss(p: Place) -> Expected:
    """arXiv:2409.15371: one block D repeated along the input; "bat" and "mini" are its other forms."""
    r, how = p.config.count("r"), p.config.get("init_weights")
    if how == "bat":
        return {"miss_block": (p.outputs // r, r, r)}, r
    return {"miss_block": (r, p.config.count("mini_r") if how == "mini" else p.outputs)}, r


def gralora(p: Place) -> Expected:
    """arXiv:2505.20355: k by k blocks, each a LoRA; `hybrid_r` more ranks over the whole."""
    r, k = p.config.count("r"), p.config.count("gralora_k")
    hybrid = p.config.count("hybrid_r", least=0)
    parts: dict[str, Shape] = {"gralora_A": (k, p.inputs // k, r), "gralora_B": (k, r, p.outputs // k)}
    if hybrid:
        parts["gralora_A_general.weight"] = (hybrid, p.inputs)
        parts["gralora_B_general.weight"] = (p.outputs, hybrid)
    return parts, r + hybrid


def hira(p: Place) -> Expected:
    """W * (B A), element by element."""
    if any(name.startswith("hira_embedding_") for name in p.found):
        r = p.rank(p.size("hira_embedding_A", 0))
        return {"hira_embedding_A": (r, p.inputs), "hira_embedding_B": (p.outputs, r)}, r
    r = p.rank(p.size("hira_A", 0))
    return {"hira_A": (r, p.inputs), "hira_B": (p.outputs, r)}, r


def fourierft(p: Place) -> Expected:
    """arXiv:2405.03003: n coefficients of the delta's spectrum, their places drawn from a seed."""
    n = p.config.count("n_frequency")
    seen = p.size("fourierft_spectrum", 0)
    return {"fourierft_spectrum": (p.config.by_pattern("n_frequency_pattern", p.module, n, seen),)}, 0


def waveft(p: Place) -> Expected:
    """arXiv:2505.12532: the same in a basis of wavelets; `proportional_parameters` shares n out by size."""
    seen = p.size("waveft_spectrum", 0)
    n = p.config.by_pattern("n_frequency_pattern", p.module, p.config.count("n_frequency"), seen)
    if p.config.flag("proportional_parameters") and 0 < seen <= p.inputs * p.outputs:
        n = seen
    return {"waveft_spectrum": (n,)}, 0


def c3a(p: Place) -> Expected:
    """arXiv:2407.19342: circulant blocks, each kept as its first column."""
    seen = p.size("c3a_kernel", 2)
    b = p.config.by_pattern("block_size_pattern", p.module, p.config.count("block_size"), seen)
    return {"c3a_kernel": (p.outputs // b, p.inputs // b, b)}, 0


def shira(p: Place) -> Expected:
    """arXiv:2406.13175: r (I + O) single weights and where they are."""
    n = p.config.count("r") * (p.inputs + p.outputs)
    return {"shira_weight": (n,), "shira_indices": (2, n)}, 0


def oft(p: Place) -> Expected:
    """arXiv:2306.07280: n rotations of b by b, each kept as the b (b - 1) / 2 numbers of a skew matrix."""
    elements = p.size("oft_R.weight", 1)
    b = (1 + math.isqrt(1 + 8 * elements)) // 2
    n = 1 if p.config.flag("block_share") else p.inputs // b
    fits = b * (b - 1) // 2 == elements and p.inputs % b == 0
    return {"oft_R.weight": (n, elements if fits else 0)}, 0


def boft(p: Place) -> Expected:
    """arXiv:2311.06243: up to boft_n_butterfly_factor layers of I / b rotations of b by b, and a scale."""
    factors = min(p.size("boft_R", 0), p.config.count("boft_n_butterfly_factor"))
    size, number = p.config.count("boft_block_size", least=0), p.config.count("boft_block_num", least=0)
    b = max(1, p.inputs // number if number else size)
    return {"boft_R": (max(1, factors), p.inputs // b, b, b), "boft_s": (p.outputs, 1)}, 0


def hra(p: Place) -> Expected:
    """arXiv:2405.17484: r Householder reflections of the input."""
    return {"hra_u": (p.inputs, p.config.count("r"))}, 0


def ia3(p: Place) -> Expected:
    """arXiv:2205.05638: one factor for each output, for feed-forward modules for each input."""
    forward = p.config.names_or_text("feedforward_modules")
    if isinstance(forward, str) or not forward:
        # By a regular expression, or by the model's type: the tensor itself says which of the two it is.
        inward = p.found.get("ia3_l") == (1, p.inputs)
    else:
        inward = p.module.endswith(forward)
    return {"ia3_l": (1, p.inputs) if inward else (p.outputs, 1)}, 0


def beft(p: Place) -> Expected:
    """A bias of its own."""
    return {"beft_bias": (1, p.outputs)}, 0


def road(p: Place) -> Expected:
    """arXiv:2409.00119: rotations of pairs of outputs; the variants share angles less and less."""
    variant = p.config.text("variant")
    sizes = {"road_1": p.outputs // 2, "road_2": p.outputs, "road_4": 2 * p.outputs}
    if variant not in sizes:
        raise p.config.wrong("variant", f"one of {', '.join(sizes)}", variant)
    return {"road_theta": (sizes[variant],), "road_alpha": (sizes[variant],)}, 0


def osf(p: Place) -> Expected:
    """arXiv:2504.07097: the k least singular directions of the weight, trained."""
    k = min(p.size("osf_svd_params.S_low", 0), p.inputs, p.outputs)
    return {
        "osf_svd_params.U_low": (p.outputs, k),
        "osf_svd_params.S_low": (k,),
        "osf_svd_params.V_low": (k, p.inputs),
    }, 0


def deft(p: Place) -> Expected:
    """A subspace P taken out of the weight and, unless `para`, an injection R put into it."""
    r = min(p.config.count("r"), p.outputs)
    parts: dict[str, Shape] = {"deft_P": (p.outputs, r)}
    return (parts if p.config.flag("para") else {**parts, "deft_R": (r, p.inputs)}), r


def lily(p: Place) -> Expected:
    """arXiv:2407.09946: an A shared by neighbours, `num_B` Bs mixed by a router."""
    r, n = p.config.count("r"), p.config.count("num_B")
    return {
        "lily_A.weight": (r, p.inputs),
        "lily_B.weight": (n * r, p.outputs),
        "lily_router.weight": (n, r),
    }, 0


def peanut(p: Place) -> Expected:
    """arXiv:2410.01870: a small network of the weight itself; `depth` pairs of layers between its ends."""
    r, depth = p.config.count("r"), min(p.config.count("depth", least=0), 1000)
    parts: dict[str, Shape] = {"peanut_A.weight": (r, p.outputs), "peanut_B.weight": (p.outputs, r)}
    for i in range(depth):
        parts |= {f"peanut_encoders.{i}.weight": (r, r), f"peanut_decoders.{i}.weight": (r, r)}
    return parts, 0


def psoft(p: Place) -> Expected:
    """arXiv:2505.11235: a rotation within the r principal directions of the weight."""
    r = p.config.count("r")
    weight: Shape = (r * (r - 1) // 2,) if p.config.flag("psoft_orth") else (r, r)
    parts: dict[str, Shape] = {"psoft_R.weight": weight}
    parts |= {f"psoft_R.vector_{x}": (r,) for x in "ab" if p.config.flag(f"psoft_mag_{x}")}
    return parts, 0


def glora(p: Place) -> Expected:
    """arXiv:2306.07967: W + W A + B, b + W C + D b + E; every path a product, a vector, one number, or
    zeros.
    """
    r = p.config.count("r")
    sizes: dict[str, Shape] = {
        "A": (p.outputs, p.inputs),
        "B": (p.outputs, p.inputs),
        "C": (p.inputs, 1),
        "D": (p.outputs,),
        "E": (p.outputs,),
    }
    parts: dict[str, Shape] = {}
    for path, size in sizes.items():
        name = f"glora_{path}"
        if not p.found.keys().isdisjoint((f"{name}.Xd", f"{name}.Xu")) and len(size) == 2:
            parts |= {f"{name}.Xd": (size[0], r), f"{name}.Xu": (r, size[1])}
        elif f"{name}.X" in p.found:
            vector = (size[0], 1) if len(size) == 2 else size
            parts[f"{name}.X"] = (1,) if p.found[f"{name}.X"] == (1,) else vector
        else:
            parts[f"{name}.zeros"] = size
    return parts, r


def poly(p: Place) -> Expected:
    """arXiv:2202.13914: skills mixed for each task; the request must say which task it is."""
    c = p.config
    r, tasks, skills, splits = c.count("r"), c.count("n_tasks"), c.count("n_skills"), c.count("n_splits")
    return {
        "poly_router.module_logits": (tasks, splits * skills),
        "poly_lora_A": (splits, skills, p.inputs // splits, r),
        "poly_lora_B": (splits, skills, r, p.outputs // splits),
    }, 0


def supertuning(p: Place) -> Expected:
    """The largest k weights trained where they are, with a LoRA beside them if `r` is given."""
    k = min(p.size("supertuning_values", 0), p.inputs * p.outputs)
    parts: dict[str, Shape] = {"supertuning_values": (k,)}
    if p.config.flag("save_precomputed_indices"):
        parts["supertuning_indices"] = (k,)
    if p.config.get("r") is not None:
        r = p.config.count("r")
        parts |= {"supertuning_lora_A.weight": (r, p.inputs), "supertuning_lora_B.weight": (p.outputs, r)}
    return parts, 0


def frod(p: Place) -> Expected:
    """Diagonal and a few further entries in a basis shared by all modules of a sort."""
    return {
        "frod_lambda_l": (p.inputs,),
        "frod_lambda_s_values": (p.size("frod_lambda_s_values", 0),),
    }, 0


def frod_shared(s: Shared) -> dict[str, Shape]:
    if not s.config.flag("save_projection"):
        return {}
    parts: dict[str, Shape] = {}
    for p in s.places:
        names = p.module.split(".")
        sort = names[-1] if names[-2:-1] == [] or names[-2].isdigit() else "_".join(names[-2:])
        if names[-3:] == ["attention", "output", "dense"]:
            sort = "attention_output"
        parts[f"frod_V.{sort}"] = (p.inputs, p.inputs)
        parts[f"frod_s_indices.{sort}"] = (2, p.size("frod_lambda_s_values", 0))
        parts[f"frod_s_size.{sort}"] = (2,)
    return parts


def ln_tuning(p: Place) -> Expected:
    """The module itself, whole (arXiv:2312.11420: its normalisations)."""
    parts: dict[str, Shape] = {"ln_tuning_layers.weight": p.weight}
    bias = p.tensor("bias")
    return ({**parts, "ln_tuning_layers.bias": bias} if bias is not None else parts), 0


def trainable_tokens(p: Place) -> Expected:
    """New rows for some tokens of an embedding, whose width is the weight's last size."""
    return {"trainable_tokens_delta": (len(p.config.indices("token_indices") or ()), p.weight[-1])}, 0
