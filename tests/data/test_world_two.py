"""World 2 of synth: what rows are made of, rare keys, drift, births, late labels, several keys."""

import hashlib
import json

import numpy as np
import pytest

from dlrm_tf import synth
from dlrm_tf.config import CRITEO_KAGGLE_SIZES
from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.data.synthetic import _CARDINALITIES
from dlrm_tf.data.world_tables import IMMORTAL, LOGIT_UNIT, UNIT, DayTables, _generations
from dlrm_tf.data.world_two import WorldTwo
from dlrm_tf.probability import logit, sigmoid
from dlrm_tf.train.metrics import ClickMetrics, exact_auc

SMALL, ONE_KEY = _CARDINALITIES["small"], (1,) * 26
ROWS = 65536


class Truth(WorldTwo):
    """World 2 that also remembers the slot and the course of every key of the last rows."""

    def _rows(self, rows):
        self.slots, self.courses = [], []
        result = super()._rows(rows)
        self.feature_of = np.repeat(np.arange(26), self._hot_sizes)
        # '' has an effect, a place behind a bag's last key has none.
        self.used = result[-1] | (np.diff(self.feature_of, prepend=-1) > 0)
        return result

    def _keys(self, f, slot, present):
        key, course = super()._keys(f, slot, present)
        self.slots.append(slot)
        self.courses.append(course)
        return key, course

    def effects(self):
        """What each key adds to the logit, `[rows, columns]`, without the vectors."""
        strength = self._tables.strength[self.feature_of]
        return self._tables.effect[np.stack(self.courses, 1)] * strength * self.used * (self._scale / LOGIT_UNIT)


@pytest.fixture(scope="module")
def world():
    """`(world, its first rows)` of day 0."""
    made = Truth(1, 0, SMALL, ONE_KEY)
    return made, made.draw(ROWS)


def parsed(path):
    block = parse_block(path.read_bytes(), CRITEO)
    assert (len(block.bad), sum(map(len, block.odd))) == (0, 0)
    return block


def test_files_come_again_on_every_machine(tmp_path):
    synth(tmp_path / "rows.tsv", 3000, seed=4, world=2, day=2)
    text = (tmp_path / "rows.tsv").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "f5ae822ff46bfd51648eb89de9a4679c0b4256310398a246e5d346be20ecd701"
    synth(tmp_path / "fewer.tsv", 100, seed=4, world=2, day=2)
    assert text.startswith((tmp_path / "fewer.tsv").read_bytes())
    block = parsed(tmp_path / "rows.tsv")
    assert 0.05 < block.dense_missing.mean() < 0.4
    assert 0.02 < block.empty.mean() < 0.4


# Features 4 and 7 are two of those that act together.
@pytest.mark.parametrize("hot_sizes", [ONE_KEY, (1, 1, 1, 1, 2, 1, 1, 3, 1, 1, 1, 6, *[1] * 14)])
def test_a_logit_is_the_sum_of_its_parts(hot_sizes):
    """Of some rows, from the tables, in floating point."""
    made = Truth(1, 0, SMALL, hot_sizes)
    tables = made._tables
    block = made.draw(1000)
    vectors = tables.vector.view(np.int16).reshape(len(tables.vector), -1) / UNIT
    effects, columns = made.effects(), range(sum(hot_sizes))
    for row in range(0, 1000, 20):
        sides = [
            sum(vectors[made.courses[c][row]] * made.used[row, c] for c in columns if tables.side[made.feature_of[c]] == side)
            for side in (0, 1)
        ]
        dense = 0.0
        for f in range(13):
            effect = tables.number_effects[f][tables.number_fields[f] == block.numbers[row, f].view(np.uint64)[0]]
            assert len(set(effect)) == 1  # equal numbers, equal effects
            dense += effect[0] / LOGIT_UNIT
        expected = made._bias + effects[row].sum() + made._scale * (dense + sides[0] @ sides[1])
        assert logit(block.probability[row]) == pytest.approx(expected, abs=1e-6)


def test_report_is_of_the_true_probabilities(tmp_path, world):
    _, block = world
    report = synth(tmp_path / "rows.tsv", ROWS, seed=1, world=2)
    metrics = ClickMetrics()
    metrics.update(block.label, logit(block.probability))
    assert report.best_auc == pytest.approx(metrics.result()["auc"], abs=1e-5)
    assert report.best_logloss == pytest.approx(metrics.result()["logloss"], abs=1e-9)
    tail = slice(ROWS - ROWS // 7, ROWS)
    p, y = block.probability[tail], block.label[tail]
    assert report.best_auc_test == pytest.approx(exact_auc(y, p), abs=1e-5)
    assert report.best_logloss_test == pytest.approx(-np.log(np.where(y, p, 1 - p)).mean(), abs=1e-9)
    assert json.loads((tmp_path / "rows.tsv.json").read_text())["best_logloss"] == report.best_logloss
    # Labels are as frequent as the probabilities say, and as in Criteo's log.
    deviation = np.sqrt((block.probability * (1 - block.probability)).sum())
    assert abs(block.label.sum() - block.probability.sum()) < 4 * deviation
    assert report.positive_rate == pytest.approx(0.256, abs=0.01)


def test_rare_keys_matter(world):
    """An oracle that knows every effect but those of keys seen fewer than ten times loses AUC."""
    made, block = world
    effects = made.effects()
    seen = np.stack([np.bincount(slots)[slots] for slots in made.slots], 1)
    whole = logit(block.probability)
    losses = [
        exact_auc(block.label, whole) - exact_auc(block.label, whole - np.where(seen < least, effects, 0).sum(1))
        for least in (2, 10, 100)
    ]
    assert 0.002 < losses[0] < losses[1] - 0.005 < losses[2] - 0.015


def test_keys_of_a_feature_have_different_effects(world):
    made, _ = world
    wide = np.argmax(np.where(np.array(SMALL) == 20_000, made._tables.strength, 0))
    slots, first = np.unique(made.slots[wide], return_index=True)
    effect = made.effects()[first, wide]
    rare = effect[slots > 1000]
    assert len(rare) > 3000
    assert np.std(rare) == pytest.approx(made._scale * made._tables.strength[wide] / UNIT, rel=0.05)
    assert len(np.unique(rare)) > 0.7 * len(rare)  # not a few effects that many keys share


def test_effects_drift_smoothly():
    """The correlation of two days falls with their distance, exp(-0.02 d); the effects' spread stays."""
    effect = [DayTables(1, day, SMALL, ONE_KEY).effect.astype(float) for day in (0, 1, 5, 20, 400)]
    measured = [np.corrcoef(effect[0], later)[0, 1] for later in effect[1:]]
    np.testing.assert_allclose(measured, np.exp(-0.02 * np.array([1, 5, 20, 400])), atol=0.02)
    assert np.std(effect[-1]) == pytest.approx(np.std(effect[0]), rel=0.02)


def test_yesterdays_truth_is_worse_and_miscalibrated_later():
    """Rows of day 5 scored with day 0's probabilities of the same keys."""
    day0 = DayTables(1, 0, SMALL, ONE_KEY)
    made = Truth(1, 5, SMALL, ONE_KEY)
    block = made.draw(ROWS)
    now = made.effects()
    courses = np.stack(made.courses, 1)
    then = day0.effect[courses] * day0.strength * (made._scale / LOGIT_UNIT)
    whole = logit(block.probability)
    stale = whole - now.sum(1) + then.sum(1) - made._bias + Truth(1, 0, SMALL, ONE_KEY)._bias
    assert exact_auc(block.label, whole) - exact_auc(block.label, stale) > 0.005
    assert abs(sigmoid(stale).mean() / block.label.mean() - 1) > 0.1


def test_keys_are_born_and_die(tmp_path):
    days = {day: synth(tmp_path / f"{day}.tsv", 20_000, seed=1, world=2, day=day) for day in (0, 1, 2, 40)}
    assert days[0].new_key_share is None
    assert all(0.01 < days[day].new_key_share < 0.05 for day in (1, 2, 40))
    blocks = {day: parsed(tmp_path / f"{day}.tsv") for day in days}
    wide = SMALL.index(20_000)

    def frequent(day):
        keys, counts = np.unique(blocks[day].keys[wide][~blocks[day].empty[wide]], return_counts=True)
        return set(keys[np.argsort(-counts)[:300]].tolist())

    staying = [len(frequent(0) & frequent(day)) / 300 for day in (1, 40)]
    assert staying[0] > 0.75
    assert staying[1] < staying[0] - 0.3


def test_a_slots_keys_live_one_after_another():
    """Generations go up by one, at least ten days apart, and '' and the most frequent keys stay."""
    days = [_generations(np.random.PCG64(4), day) for day in range(30)]
    steps = np.diff([generation.astype(int) for generation, _ in days], axis=0)
    assert set(np.unique(steps)) == {0, 1}
    assert (steps.sum(0) <= 3).all()
    assert steps.mean() == pytest.approx(np.mean([1 / 10, 1 / 20, 1 / 40, 1 / 80, 1 / 160]), rel=0.1)
    np.testing.assert_array_equal(days[29][1], steps[28] == 1)
    slots = np.arange(IMMORTAL + 1, dtype=np.uint32)
    early, late = (WorldTwo(4, day, SMALL, ONE_KEY)._keys(2, slots, slots >= 0)[0] for day in (0, 500))
    np.testing.assert_array_equal(early, late)


def test_days_differ_and_seeds_are_other_worlds(tmp_path):
    for name, options in {"a": {}, "b": {"day": 1}, "c": {"seed": 2}}.items():
        synth(tmp_path / name, 5000, **{"seed": 1, "world": 2, **options})
    a, b, c = (parsed(tmp_path / name) for name in "abc")
    keys = [set(block.keys[5][~block.empty[5]].tolist()) for block in (a, b, c)]  # 24 categories
    assert len(keys[0] & keys[1]) >= 15 > 3 > len(keys[0] & keys[2])
    assert not np.array_equal(a.label, b.label)


def test_late_labels(tmp_path):
    options = {"seed": 1, "world": 2, "day": 3}
    whole = synth(tmp_path / "whole.tsv", ROWS, **options)
    report = synth(tmp_path / "early.tsv", ROWS, label_delay=0.05, **options)
    assert report.positive_rate == whole.positive_rate and report.best_auc == whole.best_auc
    true, early = ((tmp_path / name).read_bytes().splitlines() for name in ("whole.tsv", "early.tsv"))
    header, *late = (tmp_path / "early.tsv.late").read_text().splitlines()
    assert header == "line\tday" and len(late) == report.late_positives
    late_lines = np.array([int(line.split("\t")[0]) for line in late])
    arrival = np.array([float(line.split("\t")[1]) for line in late])
    # Exactly the listed lines are 0 in place of 1.
    for line in late_lines:
        assert true[line - 1][:1] == b"1" and early[line - 1][:1] == b"0"
        early[line - 1] = true[line - 1]
    assert early == true
    # Of the clicks of time t of the day, exp(-(1 - t) / 0.05) come after its end: 5 % of a day's clicks in all.
    assert len(late) == pytest.approx(0.05 * report.positive_rate * ROWS, rel=0.15)
    assert np.median(late_lines) > 0.9 * ROWS
    assert (arrival >= 4).all() and (arrival - 4).mean() == pytest.approx(0.05, rel=0.2)


def test_rows_of_several_keys(tmp_path):
    """The spec beside the rows reads them; bags are within their sizes, and never hold the key of an empty field."""
    report = synth(tmp_path / "hot.tsv", 20_000, seed=1, world=2, hot_sizes="some")
    spec = FeatureSpec.load(tmp_path / "hot.tsv.spec.json")
    assert spec.hot_sizes == report.hot_sizes == tuple({2: 5, 11: 3, 15: 8, 20: 4}.get(f, 1) for f in range(26))
    fields = [line.split(b"\t")[14:] for line in (tmp_path / "hot.tsv").read_bytes().splitlines()]
    for f, size in enumerate(report.hot_sizes):
        bags = [row[f].split(b"|") for row in fields]
        assert max(map(len, bags)) == size
        assert all(bag == [b""] or b"" not in bag for bag in bags)
    block = parse_block((tmp_path / "hot.tsv").read_bytes(), spec)
    assert (block.lines, len(block.bad)) == (20_000, 0)
    assert 0.7 < report.best_auc < 0.9


def test_memory_is_that_of_the_tables_whatever_the_cardinalities():
    tables = DayTables(1, 0, CRITEO_KAGGLE_SIZES, ONE_KEY)
    assert sum(value.nbytes for value in vars(tables).values() if isinstance(value, np.ndarray)) < 20e6


def test_few_categories(tmp_path):
    report = synth(tmp_path / "rows.tsv", 2000, seed=1, world=2, cardinalities=[2] * 26)
    block = parsed(tmp_path / "rows.tsv")
    assert report.cardinalities == (2,) * 26
    assert all(len(np.unique(keys[~empty])) == 2 for keys, empty in zip(block.keys, block.empty))


def test_command_line_writes_days(tmp_path, capsys):
    from dlrm_tf.cli.main import main

    call = ["synth", "-o", str(tmp_path / "log.tsv"), "--rows", "300", "--world", "2"]
    assert main([*call, "--days", "2", "--day", "4", "--label-delay", "0.5"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.tsv")) == ["log.4.tsv", "log.5.tsv"]
    assert "did not exist the day before" in capsys.readouterr().out
    synth(tmp_path / "same", 300, seed=1, world=2, day=5, label_delay=0.5)
    assert (tmp_path / "same").read_bytes() == (tmp_path / "log.5.tsv").read_bytes()
    assert main([*call, "--days", "0"]) == 2
    assert main([*call[:-2], "--day", "1"]) == 2
