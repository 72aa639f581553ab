"""entropy.csv holds what the metrics say, and its figures are drawn from it alone."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from entropy_asr.errors import InputError
from entropy_asr.files import read_table, write_json
from entropy_asr.reporting import entropy


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Two pretraining parts and two arms, one layer beside the output."""
    root = tmp_path / "metrics"
    names = ["phoneme/seed-1/part-0", "phoneme/seed-1/part-1", "ours/seed-1/joint_sft", "no_ia_sft/seed-1/joint_sft"]
    for i, name in enumerate(names):
        nse = {"plain": 0.7, "bias": -0.01, "value": 0.71 + i / 100, "low": 0.7, "high": 0.75, "frames": 900, "dimensions": 3}
        probed = {"layer": 1, "family": "linear", "language": "all", "value": 0.5 + i / 10, "low": 0.4, "high": 0.9}
        probed |= {
            "seed_std": 0.01,
            "nats": 1.0,
            "entropy": 2.0,
            "control": 0.0,
            "control_low": -0.01,
            "control_high": 0.01,
            "samples": 800,
        }
        undefined = {**probed, "value": None, "low": None, "high": None, "language": "en"}
        write_json(
            root / f"encoder/{name}.json",
            {
                "corpus_kind": "synthetic",
                "nse": [{"layer": layer, **nse, "spectrum": [0.6, 0.4, 0.0]} for layer in (0, 1)],
                "pai": [probed],
                "csai": [probed, undefined],
            },
        )
    alone = {"nse": [{"layer": 0, **nse, "value": 0.9, "spectrum": [1.0]}], "pai": [{**probed, "layer": 0, "value": 0.55}]}
    write_json(root / "encoder/peers/whisper.json", {"corpus_kind": "synthetic", **alone, "csai": []})
    for arm, ler in (("ours", 0.3), ("no_ia_sft", -0.1)):
        item = {"eer": 0.4, "ler": ler, "ar": 0.6, "prior": 4.0, "probe": 2.4, "system": 1.2, "tokens": 70, "control_eer": 0.0}
        item["control_eer_interval"] = [-0.01, 0.01]
        item |= {"eer_interval": [0.3, 0.5], "ler_interval": [ler - 0.1, ler + 0.1], "ar_interval": None}
        write_json(root / f"system/{arm}/seed-1.json", {"corpus_kind": "synthetic", "allocation": {"all": item}})
    pairs = [("phoneme/part-0", "phoneme/part-1", 0.9), ("phoneme/part-1", "ours/joint_sft", 0.8)]
    pairs += [("phoneme/part-0", "ours/joint_sft", 0.7), ("phoneme/part-1", "no_ia_sft/joint_sft", 0.6)]
    rows = [
        {"first": a, "second": b, "layer": layer, "cka": c, "low": c - 0.05, "high": c + 0.05, "frames": 90}
        for a, b, c in pairs
        for layer in (0, 1)
    ]
    write_json(root / "drift/seed-1.json", rows)
    return root


@pytest.fixture
def table(measured: Path) -> Path:
    arguments = ["table", f"--out={measured / 'entropy.csv'}", f"--spectrum={measured / 'spectrum.csv'}"]
    arguments += [f"--encoders={path}" for path in sorted(measured.glob("encoder/**/*.json"))]
    arguments += [f"--systems={path}" for path in sorted(measured.glob("system/*/*.json"))]
    done = CliRunner().invoke(entropy.app, [*arguments, f"--drift={measured / 'drift/seed-1.json'}"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return measured / "entropy.csv"


def test_a_row_says_whose_it_is_and_in_what_unit(table: Path) -> None:
    rows = read_table(table)
    (row,) = [r for r in rows if r["metric"] == "pai" and r["arm"] == "ours"]
    assert {k: row[k] for k in ("seed", "stage", "part", "layer", "value", "low", "n", "n_unit", "unit", "corpus_kind")} == {
        "seed": "1", "stage": "joint_sft", "part": "", "layer": "1", "value": "0.7", "low": "0.4", "n": "800", "n_unit": "frames",
        "unit": "ratio", "corpus_kind": "synthetic",
    }  # fmt: skip
    assert {r["unit"] for r in rows} == {"ratio", "nats/frame", "nats/unit", "nats/token"}
    assert {r["compared_with"] for r in rows if r["metric"] == "cka"} >= {"phoneme/part-1", "ours/joint_sft"}
    assert [r["value"] for r in rows if r["metric"] == "ler"] == ["-0.1", "0.3"]  # nothing is clamped
    assert [r["value"] for r in rows if r["metric"] == "csai" and r["language"] == "en"] == [""] * 4  # undefined stays empty
    spectrum = read_table(table.with_name("spectrum.csv"))
    assert [float(r["cumulative_share"]) for r in spectrum if r["arm"] == "ours"] == pytest.approx([0.6, 1.0, 1.0])


def test_a_peer_stands_beside_ours_and_is_no_arm(table: Path) -> None:
    rows = read_table(table)
    (row,) = [r for r in rows if r["metric"] == "pai" and r["stage"] == "peer"]
    said = {"arm": "whisper", "encoder": "whisper", "seed": "", "part": "", "layer": "", "value": "0.55", "low": "0.4"}
    assert {name: row[name] for name in said} == said
    assert {(item["seed"], item["arm"]) for item in entropy.shifts(rows)} == {("1", "ours"), ("1", "no_ia_sft")}
    nse, pai, _ = entropy.draw_shift(rows).axes
    levels = [[line.get_ydata()[0] for line in ax.get_lines() if line.get_label() == "whisper"] for ax in (nse, pai)]
    assert levels == [[0.9], [0.55]]


def test_before_is_the_last_part_and_after_is_each_arm(table: Path) -> None:
    for arm, value in (("ours", "0.7"), ("no_ia_sft", "0.8")):
        before, after = entropy.before_and_after(read_table(table), "pai", "1", arm)
        assert before is not None and before["part"] == "1" and before["value"] == "0.6"
        assert after is not None and after["value"] == value


def test_a_change_is_claimed_only_where_intervals_are_apart(table: Path) -> None:
    rows = read_table(table)
    ours = next(item for item in entropy.shifts(rows) if item["arm"] == "ours")
    assert ours["pai"]["said"] == "no change is shown" and ours["pai"]["change"] == pytest.approx(0.1)
    assert ours["cka"] == 0.8 and ours["eer"]["value"] == "0.4" and ours["ar"]["value"] == "0.6"
    for row in rows:
        if row["metric"] == "pai" and row["arm"] == "ours":
            row |= {"value": "0.2", "low": "0.1", "high": "0.3"}
    found = entropy.shifts(rows)
    assert next(item for item in found if item["arm"] == "ours")["pai"]["said"] == "falls"
    assert [("not met" in sentence) for sentence in entropy.expectation(found)] == [True, False]
    drifts = entropy.expectation(found)[1]
    assert "no_ia_sft: met (CKA 0.800, 95% interval 0.750 to 0.850, against 0.600, 95% interval 0.550 to 0.650)" in drifts


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [("0.550", "0.760", "no difference is shown"), ("", "", "no difference is shown"), ("0.900", "0.950", "not met")],
)
def test_no_verdict_without_intervals_that_are_apart(table: Path, low: str, high: str, said: str) -> None:
    rows = read_table(table)
    for row in rows:
        if row["metric"] == "cka" and row["compared_with"] == "no_ia_sft/joint_sft":
            row |= {"value": low or "0.6", "low": low, "high": high}
    kept, less = entropy.expectation(entropy.shifts(rows))
    assert f"no_ia_sft: {said} (" in less and ("no interval can be given" in less) == (not low)
    assert "keeps PAI high in joint SFT: no change is shown (" in kept


def test_figures_are_the_same_bytes_twice_and_say_what_speech_it_is(table: Path, tmp_path: Path) -> None:
    from matplotlib.text import Text

    for folder in ("first", "second"):
        arguments = [
            "figures",
            f"--entropy={table}",
            f"--spectrum={table.with_name('spectrum.csv')}",
            f"--out={tmp_path / folder}",
        ]
        assert CliRunner().invoke(entropy.app, arguments, catch_exceptions=False).exit_code == 0
    for name in entropy.FIGURES:
        for kind in ("svg", "png"):
            assert (tmp_path / f"first/{name}.{kind}").read_bytes() == (tmp_path / f"second/{name}.{kind}").read_bytes()
    rows, shares = read_table(table), read_table(table.with_name("spectrum.csv"))
    for figure in (
        entropy.draw_shift(rows),
        *(draw(entropy.without_peers(rows)) for draw in (entropy.draw_drift, entropy.draw_allocation)),
        entropy.draw_spectrum(entropy.without_peers(shares)),
    ):
        assert any("synthetic speech" in text.get_text() for text in figure.findobj(Text))
    heat = [text.get_text() for text in entropy.draw_drift(entropy.without_peers(rows)).axes[0].findobj(Text)]
    assert "0.90" in heat and "0.80" in heat and "part 1" in heat


def test_a_file_of_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="part-i or joint_sft"):
        entropy.encoder_rows(tmp_path / "some.json")
