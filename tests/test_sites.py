"""Site names: what they mean, and how globs choose among them."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysem.errors import SpecError
from polysem.sites import DEFAULT_SITES, parse_site, select_sites

STREAM = ("image", "token", "d_model")
HEADS = ("image", "token", "head", "d_head")
PATTERN = ("image", "head", "query", "key")

# TransformerLens's names, with the axes that its documentation gives them.
BLOCK = {
    "hook_resid_pre": STREAM,
    "ln1.hook_normalized": STREAM,
    "attn.hook_q": HEADS,
    "attn.hook_k": HEADS,
    "attn.hook_v": HEADS,
    "attn.hook_attn_scores": PATTERN,
    "attn.hook_pattern": PATTERN,
    "attn.hook_z": HEADS,
    "hook_attn_out": STREAM,
    "hook_resid_mid": STREAM,
    "ln2.hook_normalized": STREAM,
    "mlp.hook_pre": ("image", "token", "d_mlp"),
    "mlp.hook_post": ("image", "token", "d_mlp"),
    "hook_mlp_out": STREAM,
    "hook_resid_post": STREAM,
}
NETWORK = {
    "hook_embed": STREAM,
    "ln_final.hook_normalized": STREAM,
    "hook_pooled": ("image", "d_model"),
}
CNN = ["layer3.5.hook_post", "stages.0.blocks.1.hook_post", "features.7.hook_post"]
AVAILABLE = [
    "hook_embed",
    *(f"blocks.{layer}.{part}" for layer in (0, 1, 10) for part in BLOCK),
    "hook_pooled",
]


@pytest.mark.parametrize(("part", "dims"), BLOCK.items())
@given(layer=st.integers(0, 10**6))
def test_sites_of_blocks(part: str, dims: tuple[str, ...], layer: int) -> None:
    site = parse_site(f"blocks.{layer}.{part}")
    assert (site.name, site.layer, site.part) == (f"blocks.{layer}.{part}", layer, part)
    assert site.dims == dims
    assert site.unit_dim == ("head" if "head" in dims else dims[-1])


@pytest.mark.parametrize(("name", "dims"), NETWORK.items())
def test_sites_of_networks(name: str, dims: tuple[str, ...]) -> None:
    site = parse_site(name)
    assert (site.layer, site.part, site.dims, site.unit_dim) == (None, name, dims, "d_model")


@pytest.mark.parametrize("name", CNN)
def test_sites_of_cnns(name: str) -> None:
    site = parse_site(name)
    assert site.dims == ("image", "channel", "y", "x") and site.unit_dim == "channel"
    assert (site.name, site.layer, site.part) == (name, None, "hook_post")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blocks.2.mlp.hook_pots", "did you mean 'blocks.2.mlp.hook_post'"),
        ("blocks.2.hook_post", ""),
        ("hook_poled", "did you mean 'hook_pooled'"),
        ("blocks.x.mlp.hook_post", ""),
        ("blocks.-1.mlp.hook_post", ""),
        ("encoder.attn.hook_post", ""),
        ("", ""),
    ],
)
def test_other_names_are_refused(name: str, hint: str) -> None:
    if name == "blocks.2.hook_post":  # a block of a CNN that keeps its blocks in a list
        assert parse_site(name).dims[1] == "channel"
        return
    with pytest.raises(SpecError, match="is not the name of a site") as caught:
        parse_site(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ("hook_pooled", ["hook_pooled"]),
        ("blocks.1.mlp.*", ["blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"]),
        ("*.hook_z , hook_embed", ["hook_embed", *(f"blocks.{i}.attn.hook_z" for i in (0, 1, 10))]),
        (["blocks.[01].hook_resid_post"], [f"blocks.{i}.hook_resid_post" for i in (0, 1)]),
        (("blocks.10.hook_mlp_out", "*"), AVAILABLE),
    ],
)
def test_globs_choose_in_network_order(patterns: str | list[str], chosen: list[str]) -> None:
    assert select_sites(AVAILABLE, patterns) == chosen


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        select_sites(AVAILABLE, "hook_pooled,blocks.1.mlp.hook_pots")
    assert str(caught.value) == (
        "no site of this model matches 'blocks.1.mlp.hook_pots'; it has 47 sites such as "
        "hook_embed, blocks.0.hook_resid_pre, blocks.0.ln1.hook_normalized; "
        "did you mean 'blocks.1.mlp.hook_post', 'blocks.10.mlp.hook_post', "
        "'blocks.0.mlp.hook_post'?"
    )


@given(st.permutations(AVAILABLE), st.sets(st.sampled_from(AVAILABLE), min_size=1))
def test_selection_is_a_filter(available: list[str], wanted: set[str]) -> None:
    chosen = select_sites(available, sorted(wanted))
    assert chosen == [name for name in available if name in wanted]
    assert select_sites(chosen, "*") == chosen


def test_the_default_sites_are_neurons_heads_and_what_is_classified() -> None:
    names = [*AVAILABLE, *CNN]
    default = [name for name in names if any(fnmatchcase(name, glob) for glob in DEFAULT_SITES)]
    neurons = [f"blocks.{i}.mlp.hook_post" for i in (0, 1, 10)]
    heads = [f"blocks.{i}.attn.hook_z" for i in (0, 1, 10)]
    assert sorted(default) == sorted([*neurons, *heads, "hook_pooled", *CNN])
