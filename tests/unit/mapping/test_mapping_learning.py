"""When a mapping trains a dictionary, from which values, and when it does so again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import sample_values
from support.store_pages import noise

from batchzip import BadArgument, CompressedMapping, Engine, SwapStore, train_dictionary
from batchzip.mapping import dictionary as learning
from batchzip.mapping.dictionary import Trainer, innermost, with_dictionary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.codecs.codec import Codec


@pytest.fixture
def mapping() -> Iterator[CompressedMapping]:
    with (
        Engine("zstd", level=1, backend="sequential") as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, dictionary="auto") as mapping,
    ):
        yield mapping
        mapping.check_invariants()
        store.check_invariants()


@pytest.fixture
def trainer(mapping: CompressedMapping) -> Trainer:
    assert mapping._trainer is not None
    return mapping._trainer


def test_one_large_sample_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_MOST_BYTES", 50_000)
    with (
        Engine("zstd", level=1, backend="sequential") as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, dictionary="auto") as mapping,
    ):
        mapping["key"] = noise(1, 60_000)  # raised BadBatch
        assert mapping["key"] == noise(1, 60_000)


def learns(trainer: Trainer) -> bool:
    """Return whether it is collecting samples."""
    return trainer.takes_samples


def row(number: int) -> bytes:
    """Return a value that is long enough for a sample."""
    return sample_values.row(number + 10_000)


def entry(number: int) -> bytes:
    return b"<entry><key>%d</key><language>de</language><kind>article</kind></entry>" % number


def test_the_1024th_value_trains_and_short_values_do_not_count(
    mapping: CompressedMapping, trainer: Trainer
) -> None:
    for number in range(2000):
        mapping["short", number] = row(number)[:63]
    for number in range(1023):
        mapping[number] = row(number)
    assert learns(trainer)
    assert trainer.dictionary_bytes == mapping.memory_usage().dictionaries == 0
    mapping["last"] = row(1023)
    assert not learns(trainer)
    sampled = sum(len(row(number)) for number in range(1024))
    assert trainer.dictionary_bytes <= sampled // 16
    assert trainer.dictionary_bytes > sampled // 20
    assert mapping.memory_usage().dictionaries > 0


@pytest.mark.slow
def test_a_mebibyte_of_samples_trains_and_a_dictionary_has_16_kib_at_most(
    mapping: CompressedMapping, trainer: Trainer
) -> None:
    words = [noise(number, 9).hex().encode() for number in range(3000)]

    def value(number: int) -> bytes:
        picked = (words[(number * 31 + at * at) % 3000] for at in range(900))
        return b" ".join(picked)[: 1 << 14]

    for number in range(63):
        mapping[number] = value(number)
    assert learns(trainer)
    mapping[63] = value(63)
    assert not learns(trainer)
    assert 15 << 10 < trainer.dictionary_bytes <= 16 << 10


def test_values_in_batches_count_as_single_ones(
    mapping: CompressedMapping, trainer: Trainer
) -> None:
    mapping.set_many((number, row(number)) for number in range(1023))
    assert learns(trainer)
    mapping.set_many({"last": row(1023)})
    assert not learns(trainer)
    assert trainer.dictionary_bytes > 0


@pytest.mark.slow
def test_samples_that_teach_nothing_are_tried_again_after_16_windows(
    mapping: CompressedMapping, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_WINDOW", 100)
    for number in range(1024):
        mapping["noise", number] = noise(number, 100)
    assert not learns(trainer)
    for number in range(1599):
        mapping["seen", number % 50] = row(number)
    assert not learns(trainer)
    mapping["seen"] = row(1)
    assert learns(trainer)
    for number in range(1024):
        mapping["rows", number] = row(number)
    assert trainer.dictionary_bytes > 0


def test_it_trains_again_once_a_window_is_worse_than_the_first_by_a_fifth(
    mapping: CompressedMapping, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_WINDOW", 100)
    for number in range(1024):
        mapping[number] = row(number)
    first = trainer.coders
    assert first is not None
    for number in range(500):  # like those it was trained with: the first windows
        mapping["alike", number % 50] = row(number)
        assert not learns(trainer)
    for number in range(99):
        mapping["other", number] = entry(number)
        assert not learns(trainer)
    mapping["other", 99] = entry(99)
    assert learns(trainer)
    for number in range(1024):
        mapping["other", number] = entry(number)
    assert trainer.coders is not first
    assert mapping[5] == row(5)
    assert mapping["other", 7] == entry(7)
    size = mapping.cbytes
    mapping["one more"] = entry(5000)
    assert mapping.cbytes - size < len(entry(5000)) // 2
    for number in range(500):  # the first window after the training is the new measure
        mapping["other", number] = entry(number)
    assert not learns(trainer)


def test_a_dictionary_is_used_only_if_it_saves_a_twentieth_of_the_samples(
    mapping: CompressedMapping, trainer: Trainer
) -> None:
    alike = [row(number) for number in range(300)]
    unlike = [noise(number, 200) for number in range(300)]
    dictionary = train_dictionary(alike, size=1024, level=1)
    used = mapping._records.number
    assert not trainer.use(dictionary, unlike)
    assert mapping._records.number == used
    assert trainer.coders is None
    assert trainer.dictionary_bytes == 0
    assert trainer.use(dictionary, alike)
    assert mapping._records.number != used
    assert trainer.dictionary_bytes == len(dictionary)
    used = mapping._records.number
    assert not trainer.use(dictionary, alike)  # no better than the one in use
    assert mapping._records.number == used


def test_it_is_trained_with_three_of_four_samples_and_measured_with_the_fourth(
    mapping: CompressedMapping, trainer: Trainer
) -> None:
    """What it is measured with is noise: it looks worthless, though the rest resembles itself."""
    for number in range(1024):
        mapping[number] = row(number) if number % 4 else noise(number, 100)
    assert not learns(trainer)
    assert trainer.dictionary_bytes == 0


def test_the_level_of_the_codec_is_the_one_it_is_trained_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels: list[object] = []

    def note(samples: list[bytes], *, size: int, level: int) -> bytes:
        levels.append(level)
        return train_dictionary(samples, size=size, level=level)

    monkeypatch.setattr(learning, "train_dictionary", note)
    with (
        Engine("zstd", level=5, verify=True, backend="sequential") as engine,
        SwapStore(engine) as store,
        CompressedMapping(store, dictionary="auto") as mapping,
    ):
        mapping.update({number: row(number) for number in range(1024)})
        assert mapping[3] == row(3)
    assert levels == [5]


def test_wrapped_codecs_take_a_dictionary_and_keep_their_wrapping() -> None:
    with Engine("zstd", level=4, verify=True, shuffle=4, backend="sequential") as engine:
        codec: Codec = engine.codec
    dictionary = train_dictionary([row(number) for number in range(300)], size=1024)
    made = with_dictionary(codec, dictionary)
    assert type(made) is type(codec)
    assert innermost(made).dictionary == dictionary  # type: ignore[attr-defined]
    assert innermost(made).level == innermost(codec).level == 4  # type: ignore[attr-defined]
    with Engine("lz4", verify=True, backend="sequential") as other, pytest.raises(BadArgument):
        with_dictionary(other.codec, dictionary)
