"""One pipeline as several runs: which runs `seeds` and `sweep` ask for, and what is refused."""

from __future__ import annotations

import pytest

from streamcvit.errors import UserError
from streamcvit.pipeline import load_config
from streamcvit.variants import parse_seeds, parse_sweep, variants


def asked(*settings: str, **top):
    def read(more):
        return load_config("pipelines/embedded.yaml", [*settings, *more], **top)

    return variants(read([]), read)


def test_each_value_and_each_seed_is_a_run_of_its_own():
    found = asked(name="grid", seeds=[3, 4], sweep={"learner.lr": ["1e-4", "3e-4"]})
    assert [variant.name for variant in found] == [f"lr-{lr}_seed-{s}" for lr in ("1e-4", "3e-4") for s in (3, 4)]
    assert [(v.config.learner.lr, v.config.seed) for v in found] == [(1e-4, 3), (1e-4, 4), (3e-4, 3), (3e-4, 4)]
    assert {v.config.methods["lora"].lr for v in found} == {None}  # the rate that is swept is the one that is used
    assert {str(v.config.folder().parent) for v in found} == {"runs/grid"}
    assert all(not v.config.seeds and not v.config.sweep for v in found)


def test_a_swept_setting_may_hold_commas_of_its_own():
    assert parse_sweep(["train.layers=[0,1],[2]", "learner.batch_size=4,8"]) == {
        "train.layers": ["[0,1]", "[2]"],
        "learner.batch_size": ["4", "8"],
    }
    found = asked(sweep={"methods.lora.strategy": ["ewc", "mas"]})
    assert [v.name for v in found] == ["strategy-ewc", "strategy-mas"]


def test_seeds_of_the_file_and_of_the_command_line_read_alike():
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    assert load_config(None, ["seeds=0-2"]).seeds == load_config(None, ["seeds=[0,1,2]"]).seeds == [0, 1, 2]
    assert load_config(None, ["sweep={learner.lr: [0.1, 1e-2]}"]).sweep == {"learner.lr": ["0.1", "1e-2"]}


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,1", "-2", "0-99999"])
def test_seeds_that_are_none_are_refused_in_one_line(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["learner.lr", "=1", "learner.lr=", "learner.lr=1,,2"])
def test_a_sweep_without_key_or_values_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="--sweep"):
        parse_sweep([text])


@pytest.mark.parametrize(
    ("sweep", "word"),
    [
        ({"learner.lr": ["1e-4", "0.0001"]}, "do not make 2 runs that differ"),
        ({"learner.lr": ["1e-4", "1e-4"]}, "1e-4"),
        ({"learner.lr": ["-1"]}, "learner.lr"),
        ({"learner.rate": ["1"]}, "learner.rate"),
        ({"seed": ["1", "2"]}, "--seeds"),
        ({"guard.action": ["none", "pause"]}, "stand still"),
    ],
)
def test_values_that_make_no_runs_of_their_own_are_refused(sweep, word):
    with pytest.raises(UserError, match=word):
        asked(sweep=sweep)


def test_too_many_runs_are_refused():
    with pytest.raises(UserError, match="1000 at most"):
        asked(seeds=list(range(600)), sweep={"learner.batch_size": ["4", "8"]})
