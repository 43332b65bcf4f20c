"""The command line, end to end on the embedded data with tiny settings, and the arithmetic of tables and figures."""

import json

import jax
import numpy as np
import pytest

from experiments import __main__ as cli
from experiments import adaptive_sparsity, figures, models, pruning, results, setup
from experiments.methods import Recipe

TINY = ["--epochs", "3", "--seeds", "2", "--sweep", "0.5", "--data-dir"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder for data sets that all tests of this file share."""
    return tmp_path_factory.mktemp("data")


pytestmark = pytest.mark.usefixtures("relaxed", "one_device")


def cells(printed, name):
    """The row of a table that begins with a name, by column."""
    split = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    (number,) = [number for number, row in enumerate(split) if row[0] == name]
    head = max(n for n in range(number) if split[n + 1][0].startswith(":--"))
    return dict(zip(split[head], split[number], strict=True))


@pytest.mark.slow
def test_quickstart_writes_table_picture_and_logs_and_resumes(prepared, tmp_path, capsys):
    arguments = ["quickstart", *TINY, str(prepared), "--results", str(tmp_path), "--sweep", "0.85", "--mus", "0.6"]
    arguments += ["--share", "0.156"]  # so both thin networks have the same widths, and are compiled once
    module, config = cli.parse(arguments)
    directory = module.main(config)
    printed = capsys.readouterr().out
    record = json.loads((directory / "results.json").read_text())
    names = {network["name"] for network in record["networks"]}
    assert names == {
        "dense",
        "dense, same epochs",
        "thin dense",
        "one-shot magnitude",
        "one-shot magnitude, as cut",
        "adaptive sparsity",
        "AutoPrune",
        "gradual magnitude",
        "RigL",
        "gRDA",
        "units replaced by zeros",
        "units replaced by means",
        "units replaced by means, fine-tuned",
        "thin dense, multiply-adds",
    }
    assert all(f"| {name}" in printed for name in names)
    assert (directory / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    for network in record["networks"]:
        if network["name"].startswith("one-shot"):
            np.testing.assert_allclose(network["sparsity_of_pruned_layers"], 85, atol=0.2)
    masked, cut = (cells(printed, f"units replaced by means, fine-tuned{end}") for end in ("", ", cut"))
    assert cut["test accuracy %"] == masked["test accuracy %"]
    assert 14 < float(cut["of dense %"].split(" ±")[0]) <= 15.6
    assert float(cut["largest difference of a logit"]) < 1e-4
    again = module.main(config)
    finished = json.loads((again / "results.json").read_text())
    assert [n["test_accuracy"] for n in finished["networks"]] == [n["test_accuracy"] for n in record["networks"]]
    assert {n["compile_seconds"] for n in finished["networks"]} == {0.0}, "a finished run was trained again"


@pytest.mark.slow
def test_adaptive_sparsity_draws_its_figures_and_checks_its_claims(prepared, tmp_path):
    arguments = ["adaptive_sparsity", *TINY, str(prepared), "--results", str(tmp_path), "--strengths", "0.1", "--sweep"]
    module, config = cli.parse(arguments)
    directory = module.main(config)
    drawn = {path.name[:7] for path in (directory / "figures").glob("*.png")}
    assert drawn == {f"figure{i}" for i in (1, 3, 4, 5, 6, 7)}
    record = json.loads((directory / "results.json").read_text())
    assert len(record["claims"]) >= 9
    assert {type(claim["holds"]) for claim in record["claims"]} == {bool}
    by_name = {network["name"]: network for network in record["networks"]}
    np.testing.assert_allclose(by_name["fixed-BS"]["sparsity_of_pruned_layers"], 85, atol=0.2)
    assert by_name["dense"]["sparsity_of_pruned_layers"] == [0, 0]


def test_paper_means_the_papers_setting(random_data, tmp_path):
    module, config = cli.parse(["adaptive_sparsity", "--paper", "--data-dir", str(tmp_path)])
    config = module.settle(config)
    dataset, model, recipe = setup.resolve(config)
    assert config.dataset == "cifar100"
    assert models.parameter_count(model, dataset.train.images.shape[1:]) == 11_012_036
    assert (recipe.epochs, recipe.cycles, recipe.batch_size, recipe.augment) == (120, 3, 128, True)
    assert (recipe.learning_rate, recipe.momentum, recipe.weight_decay) == (0.1, 0.9, 5e-4)


def test_every_variant_starts_where_it_says_and_is_a_network_of_its_own():
    config = adaptive_sparsity.Config()
    variants = adaptive_sparsity.variants(adaptive_sparsity.settle(config), models.LeNet300100(10), Recipe(), (8, 8, 1))
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names)
    params = models.LeNet300100(10).init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    zeros = {}
    for variant in variants:
        if not variant.name.startswith("thin"):
            trained = variant.method.init(jax.random.key(1), params)
            kernel = np.asarray(variant.method.finalize(trained)["Dense_0"]["kernel"])
            zeros[variant.name] = np.mean(kernel == 0)
    assert zeros["dense"] == 0
    # The initial weights are truncated Gaussians, nearly; learned bounds start at 0.6 of their target.
    for name, share in {
        "fixed-BS": 0.85,
        "fixed-GA": 0.85,
        "fixed-GA 0.5": 0.5,
        "budget-wavg": 0.51,
        "budget-avg": 0.51,
    }.items():
        np.testing.assert_allclose(zeros[name], share, atol=0.05, err_msg=name)


def test_masked_training_leaves_zeros_alone():
    params = {"kernel": np.array([[1.0, 0.0], [0.0, 2.0]], np.float32), "bias": np.zeros(2, np.float32)}
    method = pruning.masked(Recipe())
    trained = method.init(jax.random.key(0), jax.tree.map(jax.numpy.asarray, params))
    gradient = jax.grad(lambda t: sum(leaf.sum() for leaf in jax.tree.leaves(method.forward(t))))(trained)
    np.testing.assert_array_equal(gradient["params"]["kernel"], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(gradient["params"]["bias"], [1, 1])


def test_gaussian_distance_tells_a_bell_from_two_hills():
    rng = np.random.default_rng(0)
    bell = rng.standard_normal(20000)
    hills = np.concatenate([rng.normal(-2, 0.3, 10000), rng.normal(2, 0.3, 10000)])
    assert adaptive_sparsity.gaussian_distance(bell) < 0.02
    assert adaptive_sparsity.gaussian_distance(hills) > 0.2


def test_tables_are_markdown_and_spreads_are_sample_deviations():
    assert results.spread(np.array([1.0, 2.0, 3.0])) == "2.00 ± 1.00"
    assert results.spread(np.array([1.5])) == "1.50"
    lines = results.table(["name", "value"], [["a", "1"], ["longer", "10,000"]]).split("\n")
    assert lines == [
        "| name   |  value |",
        "|:-------|-------:|",
        "| a      |      1 |",
        "| longer | 10,000 |",
    ]


def test_figures_draw_without_a_display(tmp_path):
    rng = np.random.default_rng(0)
    drawn, axes = figures.figure("title", columns=2)
    figures.curves(axes[0], {str(i): rng.random((5, 3)) for i in range(10)}, "x", "y")
    figures.tradeoff(axes[1], {"one seed": [(np.array([10.0]), np.array([1.0]))]}, "x", "y")
    assert figures.save(drawn, tmp_path / "folder" / "picture.png").stat().st_size > 5000
    assert len(axes[0].lines) == 10
