"""Which runs may be compared, and who wins by how much."""

import pytest

from benchmarks.records.summary import compare, counts_text, find_wins, summarise, tell


def test_runs_of_other_settings_are_another_comparison(make_row):
    rows = [
        make_row("lstm", 0.5),
        make_row("gla", 0.4, seed=1),
        make_row("lstm", 0.9, task="s4"),
        make_row("lstm", 0.8, steps="2400"),
        make_row("gla", 0.3, lr="0.01"),
    ]
    found = compare(rows)
    assert [(c.task, c.settings["steps"], len(c.lines)) for c in found] == [("s3", 1200, 2), ("s4", 1200, 1), ("s3", 2400, 1)]
    assert "1,200 steps of 64 sequences, width 64, 1 block, equal parameters" in found[0].description


def test_a_row_matched_in_two_ways_stands_in_both_comparisons(make_row):
    rows = [
        make_row("bdlru-m4", 0.9, matched="params 1234; state 64"),
        make_row("lstm", 0.8),
        make_row("lstm", 0.7, matched="state 64"),
    ]
    found = {c.matched: [(line.variant, line.tokens[0]) for line in c.lines] for c in compare(rows)}
    assert found == {"params 1234": [("bdlru-m4", [0.9]), ("lstm", [0.8])], "state 64": [("bdlru-m4", [0.9]), ("lstm", [0.7])]}


def test_comparisons_of_one_task_are_told_apart(make_row):
    rows = [
        make_row("lstm", 0.5),
        make_row("lstm", 0.5, width="128", matched="params 9999"),
        make_row("lstm", 0.5, lengths="4 8"),
        make_row("lstm", 0.5, matched="state 64"),
        make_row("lstm", 0.5, matched="state 99"),
        make_row("lstm", 0.5, task="s4"),
    ]
    assert [(c.name, c.title) for c in compare(rows)] == [
        ("s3-params-w64-t16_32", "s3, width 64, lengths 16 32"),
        ("s3-params-w128-t16_32", "s3, width 128, lengths 16 32"),
        ("s3-params-w64-t4_8", "s3, width 64, lengths 4 8"),
        ("s3-state-b64", "s3, a budget of 64"),
        ("s3-state-b99", "s3, a budget of 99"),
        ("s4-params", "s4"),
    ]


def test_a_mixer_matched_by_another_rule_stands_in_the_comparison_and_says_so(make_row):
    rows = [
        make_row("lstm", 0.8, matched="state 64"),
        make_row("attn", 0.7, matched="params 99; state 64; state 64 (by params 99)"),
    ]
    by_params, by_state = sorted(compare(rows), key=lambda c: c.matched)
    assert [(c.matched, {line.variant: line.rule for line in c.lines}) for c in (by_params, by_state)] == [
        ("params 99", {"attn": ""}),
        ("state 64", {"lstm": "", "attn": "params 99"}),
    ]


def wins_of(rows):
    (comparison,) = compare(rows)
    return find_wins(comparison)


def test_the_winner_at_each_length_may_differ(make_row):
    rows = [
        make_row("lstm", 1.0, token_accuracy_2x="0.6"),
        make_row("bdlru-m4", 0.9, token_accuracy_2x="0.7"),
        make_row("gla", 0.2, token_accuracy_2x="0.1"),
    ]
    first, second = wins_of(rows)
    assert [line.variant for line in first.winners] == ["lstm"]
    assert (first.runner_up.variant, first.length) == ("bdlru-m4", 32)
    assert first.margin == pytest.approx(0.1)
    assert first.behind == pytest.approx(0.1)
    assert [line.variant for line in second.winners] == ["bdlru-m4"]
    assert second.margin == pytest.approx(0.1)
    assert second.behind == 0
    assert first.verdict == "one seed: no claim"


@pytest.mark.parametrize(
    "best, other, verdict",
    [
        ((0.9, 0.8), (0.7, 0.6), "seeds do not overlap"),
        ((0.9, 0.6), (0.7, 0.6), "seeds overlap"),
        ((0.9, 0.8), (0.8, 0.7), "seeds overlap"),  # one of each side is as good
        ((1, 1), (1, 1), "tie"),
    ],
)
def test_the_verdict_looks_at_the_seeds(make_row, best, other, verdict):
    rows = [make_row(name, value, seed) for name, v in (("lstm", best), ("hlru-m2", other)) for seed, value in enumerate(v)]
    first = wins_of(rows)[0]
    assert first.verdict == verdict
    assert len(first.winners) == (2 if verdict == "tie" else 1)
    assert first.ours.variant == "hlru-m2"


def test_a_lone_mixer_wins_alone(make_row):
    first = wins_of([make_row("lstm", 0.4)])[0]
    assert (first.verdict, first.runner_up, first.margin, first.ours, first.behind) == ("alone", None, None, None, None)


def test_mixers_are_ranked_by_medians(make_row):
    """The mean would put the one that failed once last."""
    values = {"lstm": (1.0, 0.9, 0.1), "bdlru-m4": (0.8, 0.8, 0.8), "gla": (0.7, 0.7, 1.0)}
    rows = [make_row(name, value, seed) for name, seeds in values.items() for seed, value in enumerate(seeds)]
    (comparison,) = compare(rows)
    assert [line.variant for line in comparison.lines] == ["lstm", "bdlru-m4", "gla"]
    first = find_wins(comparison)[0]
    assert (first.best.variant, first.runner_up.variant) == ("lstm", "bdlru-m4")
    assert first.margin == pytest.approx(0.1)


def test_of_equal_medians_the_one_that_solved_more_seeds_is_first(make_row):
    values = {"gla": (1.0, 1.0, 0.5), "lstm": (1.0, 0.9999, 0.9999)}
    validation = {"gla": 1.0, "lstm": 0.5}  # which does not rank mixers
    runs = [(name, value, seed) for name, seeds in values.items() for seed, value in enumerate(seeds)]
    rows = [make_row(*run, validation=validation[run[0]]) for run in runs]
    assert [line.variant for line in summarise(rows)] == ["lstm", "gla"]


def test_mixers_are_compared_at_learning_rates_that_all_of_them_ran(make_row):
    """bdlru-m4 is 0.19 behind at the shared rate; at a rate of its own it would seem ahead."""
    rows = [make_row("lstm", 0.9, lr="0.003"), make_row("bdlru-m4", 0.71, lr="0.003"), make_row("bdlru-m4", 0.91, lr="0.01")]
    (win,) = wins_of(rows)[:1]
    assert [line.variant for line in win.winners] == ["lstm"]
    assert win.margin == pytest.approx(0.19)
    assert win.runner_up["lr"] == 0.003


def test_where_no_rate_is_shared_there_are_several_comparisons(make_row):
    ran = {"bdlru-m4": ("0.01", "0.003"), "bdlru-m1": ("0.01",), "lstm": ("0.003",)}
    rows = [make_row(name, 0.5, lr=lr) for name, rates in ran.items() for lr in rates]
    found = {c.title: {(line.variant, line["lr"]) for line in c.lines} for c in compare(rows)}
    assert found == {
        "s3, learning rate 0.01": {("bdlru-m4", 0.01), ("bdlru-m1", 0.01)},
        "s3, learning rate 0.003": {("bdlru-m4", 0.003), ("lstm", 0.003)},
    }


def test_mixers_at_different_decays_stand_together(make_row):
    """Each at its best pair of those that all of them ran; one that ran with more seeds comes before a better one."""
    told = {"lstm": {("0.01", "0"): 0.5, ("0.01", "0.1"): 0.9}, "gla": {("0.01", "0"): 0.8, ("0.01", "0.1"): 0.7}}
    rows = [make_row(v, x, lr=lr, weight_decay=d, key=f"{v}{d}") for v, of in told.items() for (lr, d), x in of.items()]
    (comparison,) = compare(rows)
    assert [(line.variant, line["weight_decay"], line.seeds) for line in comparison.lines] == [
        ("lstm", 0.1, 1),
        ("gla", 0.0, 1),
    ]
    assert (comparison.settings["lr"], comparison.settings["weight_decay"], comparison.decays) == ((0.01,), (0.0, 0.1), True)
    (comparison,) = compare([*rows, make_row("lstm", 0.4, 1, lr="0.01", weight_decay="0", key="second")])
    assert [(line["weight_decay"], line.missing) for line in comparison.lines] == [(0.0, 1), (0.0, 0)]
    own = make_row("lstm", 1.0, lr="0.01", weight_decay="0.5", key="own")  # which gla did not run
    assert [line["weight_decay"] for line in compare([*rows, own])[0].lines] == [0.1, 0.0]
    parts = compare([make_row("lstm", 0.5, weight_decay="0"), make_row("gla", 0.5, weight_decay="0.1")])
    assert [(c.name, c.decays) for c in parts] == [("s3-params-d0.0", False), ("s3-params-d0.1", False)]


def test_who_learned_nothing_wins_at_no_longer_length_either(make_row):
    rows = [
        make_row(name, first, token_accuracy_2x=longer) for name, first, longer in (("lstm", 0.04, 0.3), ("gla", 0.03, 0.1))
    ]
    assert [win.verdict for win in wins_of(rows)] == ["near guessing"] * 2
    learned = [{**row, "token_accuracy_1x": 0.5} for row in rows]
    assert [len(win.winners) for win in wins_of(learned)] == [2, 1]


def test_guessing_has_no_winner(make_row):
    (comparison,) = compare([make_row(name, value, task="s5") for name, value in (("lstm", 0.04), ("gla", 0.03))])
    first = find_wins(comparison, chance=1 / 120)[0]
    assert (first.verdict, first.winners, first.runner_up, first.margin, first.ours) == ("near guessing", [], None, None, None)
    assert first.best.variant == "lstm"


def test_solved_seeds_are_counted(make_row):
    (comparison,) = compare([make_row("lstm", value, seed) for seed, value in enumerate((1.0, 0.99, 0.98))])
    assert comparison.lines[0].solved == 2


def test_two_rows_of_one_seed_are_one_seed(make_row):
    """Of other arguments or an older recipe: the one that finished last counts."""
    rows = [
        make_row("lstm", 0.9, 0, key="new", finished="2"),
        make_row("lstm", 0.1, 0, key="old", finished="1"),
        make_row("lstm", 0.8, 1),
    ]
    ((line,),) = [c.lines for c in compare(rows)]
    assert (line.seeds, sorted(line.tokens[0])) == (2, [0.8, 0.9])
    assert "old" not in line.keys


@pytest.mark.parametrize("losses, chosen", [(("3e-4", "1e-4"), 0.01), (("1e-4", "3e-4"), 0.003), (("2e-4", "2e-4"), 0.003)])
def test_what_finished_first_chooses_no_rate(make_row, losses, chosen):
    """Of rates that all score 1 the one of the least training loss counts, then the smallest."""
    rows = [make_row("lstm", 1.0, lr=lr, train_loss=loss) for lr, loss in zip(("0.003", "0.01"), losses)]
    for first, second in (("1", "2"), ("2", "1")):
        rows[0]["finished"], rows[1]["finished"] = first, second
        assert summarise(rows)[0]["lr"] == chosen


def test_words_about_seeds_and_budgets(make_row):
    one, three = ([make_row(name, 0.5, seed) for seed in range(n)] for name, n in (("lstm", 1), ("gla", 3)))
    assert counts_text(summarise(one)) == "1 seed"
    assert counts_text(summarise(three)) == "3 seeds"
    assert counts_text(summarise(one + three)) == "1 to 3 seeds"
    assert tell({"budget": None, "lengths": (4, 8)}) == ["a budget of default", "lengths 4 8"]
