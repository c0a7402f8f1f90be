"""World 2 of `synth`: every key has an effect, effects drift from day to day, keys are born and die.

A row's logit is a bias, smooth functions of some dense features, an effect of each key, and the dot product of two sums of hidden
vectors, one over the keys of two features, one over those of two others. A key's hash chooses its course, one of 65,536: what
its effect and its hidden vector are on each day. So every key of however many has an effect, and memory stays the same.

Slot r of a feature is taken by one key after another: it has the frequency of rank r, and each of its keys lives for some days.
All of it is a function of what is written to the file and of the day, so a model can learn it.

The random stream is raw output of PCG64, which NumPy keeps as it is, and rows are made with integers: floating point only makes
the tables, rounded, and the probability of a label. So machines and versions of NumPy agree but where the last bits of a float64
decide a rounding: none was met.
"""

from collections.abc import Sequence

import numpy as np

from dlrm_tf.data.row_text import BAR, TAB, key_fields
from dlrm_tf.data.world import BLOCK, DENSE, POSITIVE_RATE, Block, bias_for_rate, scramble
from dlrm_tf.data.world_tables import FRACTION, IMMORTAL, KNOT_SHIFT, LOGIT_UNIT, UNIT, VECTOR, DayTables, random_bits
from dlrm_tf.probability import logit, sigmoid

_SPREAD = 1.4  # standard deviation of the logit, on every day of every world: the best AUC is about 0.80


class WorldTwo:
    """The rows of one day, one block after another.

    Args:
      seed: of the world, >= 0.
      day: >= 0.
      cardinalities: number of categories of each feature that live at a time.
      hot_sizes: most keys of each feature in a row.

    Attributes:
      keys: how many keys were made so far, '' not counted.
      new_keys: how many of them did not exist the day before.
    """

    def __init__(self, seed: int, day: int, cardinalities: Sequence[int], hot_sizes: Sequence[int]):
        self._tables = DayTables(seed, day, cardinalities, hot_sizes)
        self._cardinalities, self._hot_sizes = np.array(cardinalities, np.uint32), tuple(hot_sizes)
        self._separators = np.concatenate([[TAB] + [BAR] * (size - 1) for size in self._hot_sizes])
        self._scale, self._bias, self.keys, self.new_keys = 1.0, 0.0, 0, 0
        rate = float(sigmoid(logit(np.array(POSITIVE_RATE)) + self._tables.swing))
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(2, day, 1)))
        sample = self._rows(BLOCK)[0]
        # Rounded: a sum's last bits depend on its order.
        self._scale = round(_SPREAD / float(sample.std()) * UNIT) / UNIT
        self._bias = round(bias_for_rate(sample * self._scale, rate) * UNIT) / UNIT
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(2, day)))
        self.keys = self.new_keys = 0

    def draw(self, rows: int) -> Block:
        """The next `rows` rows."""
        logits, numbers, keys, shown = self._rows(rows)
        probability = sigmoid(logits)
        label = random_bits(self._bits, np.uint32, rows) < (probability * 2.0**32).astype(np.uint64)
        separators = np.where((self._separators == TAB) | shown, self._separators, 0)
        return Block(probability, label, numbers, key_fields(keys, shown, separators))

    def _rows(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`(logit float64 [rows], number fields, keys [rows, columns], which of them are shown)`."""
        tables, total = self._tables, np.zeros(rows, np.int64)
        numbers = np.empty((rows, DENSE), np.uint64)
        for f, place in enumerate(random_bits(self._bits, np.uint16, DENSE, rows)):
            numbers[:, f] = tables.number_fields[f][place]
            total += tables.number_effects[f][place]
        columns = sum(self._hot_sizes)
        keys, shown = np.empty((rows, columns), np.uint32), np.empty((rows, columns), bool)
        sides, column = np.zeros((2, rows, VECTOR), np.int32), 0
        for f, size in enumerate(self._hot_sizes):
            effects = np.zeros(rows, np.int32)
            # Squared, so that most bags are small.
            u = random_bits(self._bits, np.uint16, rows).astype(np.uint32) if size > 1 else np.uint32(0)
            count = 1 + ((u * u >> np.uint32(16)) * np.uint32(size) >> np.uint32(16))
            for place in range(size):
                slot = self._slots(f, rows)
                present = slot > 0
                if place > 0:  # an empty field has no other keys
                    present &= shown[:, column - place] & (place < count)
                used = present | (place == 0)  # '' has an effect, too
                keys[:, column], course = self._keys(f, slot, present)
                shown[:, column] = present
                effects += tables.effect[course] * used
                if tables.side[f] >= 0:
                    vector = tables.vector[course] * used
                    sides[tables.side[f]] += vector.view(np.int16).reshape(rows, VECTOR)
                column += 1
            total += effects * tables.strength[f]
        total += (sides[0] * sides[1]).sum(1, dtype=np.int64)
        logits = total * (self._scale / LOGIT_UNIT) + self._bias
        return logits, numbers.view(np.uint8).reshape(rows, DENSE, 8), keys, shown

    def _slots(self, f: int, rows: int) -> np.ndarray:
        """uint32 `[rows]`: slots of feature `f`, 0 for ''."""
        bits = random_bits(self._bits, np.uint32, rows)
        knot, behind = bits >> np.uint32(KNOT_SHIFT), bits & np.uint32((1 << KNOT_SHIFT) - 1)
        width = self._tables.slot_widths[f][knot] * behind
        slot = self._tables.slot_starts[f][knot] + (width >> np.uint64(KNOT_SHIFT))
        return (slot >> np.uint64(FRACTION)).astype(np.uint32)

    def _keys(self, f: int, slot: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(keys, their courses)`, uint32 `[rows]`, of the day's keys in these slots."""
        tables = self._tables
        life, mortal = slot * tables.life_hash[f] >> np.uint32(16), slot > IMMORTAL
        number = slot + tables.generation[life] * mortal * self._cardinalities[f]
        key = scramble(number, tables.multiplier[f], tables.offset[f])
        self.keys += int(np.count_nonzero(present))
        self.new_keys += int(np.count_nonzero(tables.newborn[life] & mortal & present))
        return key, key * tables.course_hash[f] >> np.uint32(16)
