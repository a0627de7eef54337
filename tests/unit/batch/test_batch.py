"""The descriptors: what may be handed over, and what each refusal says."""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip import BadArgument, BadBatch, Codec, CompressBatch, DecompressBatch, Engine, PageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 4096


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="sequential") as engine:
        yield engine


def pages(count: int = 3, page_size: int = PAGE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.arange(count * page_size, dtype=np.uint64).astype(np.uint8).reshape(count, page_size)


def refused(make: Callable[[], object], *words: str) -> None:
    """Expect BadBatch whose message has all these words: what was wrong, what would be right."""
    with pytest.raises(BadBatch) as refusal:
        make()
    for word in words:
        assert word in str(refusal.value), word


# What compress takes


def test_a_batch_of_an_array_has_the_arrays_shape_and_room_for_twice_a_page() -> None:
    batch = CompressBatch(pages(5, 512))
    assert len(batch) == 5
    assert batch.page_size == 512
    assert batch.capacity == 1024
    assert batch.dsts.shape == (5, 1024)
    assert batch.dlens.dtype == np.dtype(np.uint32)
    assert batch.errors.dtype == np.dtype(np.int32)
    assert batch.dlens.shape == batch.errors.shape == (5,)


@pytest.mark.parametrize(
    "buffer",
    [
        pytest.param(pages(), id="array"),
        pytest.param(pages().view(np.int8), id="int8 array"),
        pytest.param(memoryview(pages().tobytes()).cast("B", (3, PAGE)), id="2-D memoryview"),
        pytest.param(pages().tobytes(), id="bytes"),
        pytest.param(bytearray(pages().tobytes()), id="bytearray"),
        pytest.param(array.array("d", pages().tobytes()), id="array.array of doubles"),
        pytest.param(pages().reshape(-1).view(np.float32), id="flat floats"),
        pytest.param(pages().reshape(-1).view(">u4"), id="flat, other byte order"),
        pytest.param(
            (ctypes.c_ubyte * (3 * PAGE)).from_buffer_copy(pages().tobytes()), id="ctypes array"
        ),
        pytest.param([bytes(page) for page in pages()], id="list of bytes"),
        pytest.param(tuple(bytearray(page) for page in pages()), id="tuple of bytearrays"),
        pytest.param(list(pages()), id="list of arrays"),
        pytest.param(list(pages().view(np.uint16)), id="list of uint16 arrays"),
        pytest.param([*pages(2), bytes(pages()[2])], id="list of all kinds"),
    ],
)
def test_pages_may_be_any_contiguous_buffers(engine: Engine, buffer: Any) -> None:
    batch = CompressBatch(buffer, page_size=PAGE)
    engine.compress(batch)
    expected = CompressBatch(pages())
    engine.compress(expected)
    assert batch.outputs() == expected.outputs()


def test_pages_are_read_from_the_callers_memory_when_they_are_compressed(engine: Engine) -> None:
    source = pages()
    batch = CompressBatch(source)
    source[1] = 7
    engine.compress(batch)
    assert engine.decompress_page(batch.output(1)) == b"\7" * PAGE


def test_pages_may_lie_in_a_mapping_that_closes_afterwards(engine: Engine) -> None:
    with mmap.mmap(-1, 2 * PAGE) as mapping:
        batch = CompressBatch(mapping, page_size=PAGE)
        engine.compress(batch)
        output = bytes(batch.output(1))
        del batch
    assert engine.decompress_page(output) == bytes(PAGE)


@pytest.mark.parametrize("nothing", [[], (), b"", np.empty((0, PAGE), np.uint8), bytearray()])
def test_zero_pages_are_refused(nothing: Any) -> None:
    with pytest.raises(BadBatch):
        CompressBatch(nothing, page_size=PAGE)
    with pytest.raises(BadBatch):
        DecompressBatch([] if isinstance(nothing, tuple) else nothing)
    refused(lambda: CompressBatch([]), "at least one page")
    refused(lambda: CompressBatch(np.empty((0, PAGE), np.uint8)), "at least one page")
    refused(lambda: DecompressBatch([]), "srcs", "at least one page")


def test_pages_that_are_not_contiguous_are_refused_by_name() -> None:
    refused(lambda: CompressBatch(pages(6)[::2]), "pages", "not contiguous", "contiguous copy")
    refused(lambda: CompressBatch(pages(3, 8192)[:, ::2]), "pages", "not contiguous")
    refused(lambda: CompressBatch(np.asfortranarray(pages())), "not contiguous")
    strided = np.zeros(2 * PAGE, np.uint8)[::2]
    refused(lambda: CompressBatch([bytes(PAGE), strided]), "pages[1]", "not contiguous")


def test_objects_without_a_buffer_are_refused_by_name() -> None:
    wrong: list[Any] = ["text", 3, None, iter([bytes(PAGE)]), {bytes(PAGE)}]
    for what in wrong:
        refused(partial(CompressBatch, what), "pages must be a buffer", type(what).__name__)
    refused(lambda: CompressBatch([bytes(PAGE), "text"]), "pages[1]", "str")  # type: ignore[list-item]
    refused(lambda: CompressBatch(np.zeros(PAGE, "M8[s]"), page_size=PAGE), "pages")


def test_arrays_of_another_shape_or_type_are_refused_with_the_right_one() -> None:
    refused(lambda: CompressBatch(np.zeros((3, PAGE), np.uint16)), "uint8", ".view(np.uint8)")
    refused(lambda: CompressBatch(np.zeros((3, 512), np.float64)), "uint8")
    refused(lambda: CompressBatch(pages().reshape(3, 8, 512)), "one or two dimensions, not 3")
    refused(lambda: CompressBatch(np.array(1, np.uint8)), "one or two dimensions, not 0")
    refused(lambda: CompressBatch(pages(), page_size=512), "(n, 512)", "(3, 4096)")


def test_a_flat_buffer_needs_a_page_size_that_divides_it() -> None:
    refused(lambda: CompressBatch(bytes(PAGE)), "flat", "page_size=")
    refused(lambda: CompressBatch(bytes(PAGE + 1), page_size=PAGE), "4097", "multiple of 4096")
    refused(lambda: CompressBatch(bytes(512), page_size=PAGE), "512 bytes", "multiple of 4096")


@pytest.mark.parametrize("size", [1, 256, 511, 513, 4095, 6144, 4 << 20])
def test_a_page_size_is_a_power_of_two_in_range(size: int) -> None:
    makes: list[Callable[[], object]] = [
        lambda: CompressBatch(np.zeros((2, size), np.uint8)),
        lambda: CompressBatch([bytes(size)] * 2),
        lambda: CompressBatch(bytes(2 * size), page_size=size),
        lambda: DecompressBatch([b"x"], page_size=size),
        lambda: DecompressBatch([b"x"], pages=[bytearray(size)]),
        lambda: DecompressBatch([b"x"], pages=np.zeros((1, size), np.uint8)),
    ]
    for make in makes:
        with pytest.raises(
            BadArgument, match=rf"power of two from 512 to 2097152 bytes, not {size}"
        ):
            make()


def test_empty_pages_are_refused() -> None:
    with pytest.raises(BadArgument, match="not 0"):
        CompressBatch([b"", b""])
    with pytest.raises(BadArgument, match="not 0"):
        DecompressBatch([b"x"], pages=[bytearray()])


def test_one_page_of_another_size_is_that_pages_error_not_the_batchs(engine: Engine) -> None:
    batch = CompressBatch([bytes(PAGE), bytes(PAGE - 1), bytes(PAGE)])
    engine.compress(batch)
    assert batch.errors.tolist() == [0, -errno.EINVAL, 0]
    with pytest.raises(PageError, match=r"page 1: Invalid argument \(-22\)") as failure:
        batch.output(1)
    assert (failure.value.index, failure.value.errno) == (1, -errno.EINVAL)
    assert [bool(output) for output in batch.outputs()] == [True, False, True]


def test_pages_of_a_wrong_size_do_not_travel() -> None:
    page, large = bytes(4096), bytes(1 << 20)
    batch = CompressBatch([page, large, b"odd", page], page_size=4096)
    assert [len(source) for source in batch.inputs(range(4))] == [4096, 0, 0, 4096]
    with Engine("lz4", backend="sequential") as engine:
        engine.compress(CompressBatch(batch.inputs([1, 0]), page_size=4096))
        engine.compress(batch)
    assert batch.errors.tolist() == [0, -errno.EINVAL, -errno.EINVAL, 0]


# Where compress writes


def test_destinations_of_ones_own_are_used_and_are_what_dsts_shows(engine: Engine) -> None:
    memory = np.zeros((3, 600), np.uint8)
    for dsts in (memory, memory.reshape(-1).data.cast("B", (3, 600))):
        batch = CompressBatch(pages(), dsts=dsts)
        engine.compress(batch)
        assert batch.capacity == 600
        assert np.shares_memory(batch.dsts, memory)
        assert engine.decompress_page(memory[2, : batch.dlens[2]].tobytes()) == bytes(pages()[2])
    assert CompressBatch(pages(), dsts=bytearray(1800), capacity=600).dsts.shape == (3, 600)


def test_destinations_of_another_shape_are_refused_with_the_right_one() -> None:
    refused(lambda: CompressBatch(pages(), dsts=np.zeros((2, PAGE), np.uint8)), "dsts", "(3, ")
    refused(
        lambda: CompressBatch(pages(), dsts=np.zeros((3, PAGE), np.uint8), capacity=512),
        *("dsts", "(3, 512)", "(3, 4096)"),
    )
    refused(lambda: CompressBatch(pages(), dsts=np.zeros((3, PAGE), np.uint16)), "dsts", "uint8")
    refused(lambda: CompressBatch(pages(), dsts=bytearray(1801), capacity=600), "dsts", "1801")
    refused(lambda: CompressBatch(pages(), dsts=bytearray(1200), capacity=600), "1200", "3 × 600")
    refused(lambda: CompressBatch(pages(), dsts=[bytearray(PAGE)] * 3), "dsts must be a buffer")  # type: ignore[arg-type]


def test_a_flat_destination_needs_a_capacity() -> None:
    refused(lambda: CompressBatch(pages(), dsts=bytearray(3 * PAGE)), "dsts", "capacity=")


def test_destinations_that_are_not_contiguous_or_read_only_are_refused() -> None:
    refused(lambda: CompressBatch(pages(), dsts=np.zeros((6, 99), np.uint8)[::2]), "not contiguous")
    refused(lambda: CompressBatch(pages(), dsts=bytes(1800), capacity=600), "dsts", "read-only")
    fixed = np.zeros((3, 600), np.uint8)
    fixed.flags.writeable = False
    refused(lambda: CompressBatch(pages(), dsts=fixed), "dsts", "read-only")


def test_destinations_over_the_pages_are_refused() -> None:
    memory = np.zeros((8, PAGE), np.uint8)
    refused(lambda: CompressBatch(memory[:4], dsts=memory[3:7]), "dsts overlaps pages")
    refused(lambda: CompressBatch(memory[:4], dsts=memory[:4]), "dsts overlaps pages")
    rows: list[Any] = [bytes(PAGE), memory[2]]
    refused(lambda: CompressBatch(rows, dsts=memory[2:4]), "dsts overlaps pages[1]")
    CompressBatch(memory[:4], dsts=memory[4:])  # side by side is right


def test_other_pages_over_the_destinations_are_refused() -> None:
    memory = np.zeros((8, PAGE), np.uint8)
    batch = CompressBatch(pages(4), dsts=memory[:4])
    refused(lambda: batch.refill(memory[3:7]), "overlap")


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_is_at_least_a_byte(capacity: int) -> None:
    with pytest.raises(
        BadArgument, match=f"capacity must be an integer in 1…4294967295, not {capacity}"
    ):
        CompressBatch(pages(), capacity=capacity)


def test_a_capacity_is_a_number() -> None:
    with pytest.raises((BadBatch, BadArgument), match="capacity"):
        CompressBatch(pages(), capacity=1.5)  # type: ignore[arg-type]


def test_a_refill_takes_up_to_what_the_descriptor_was_made_for() -> None:
    batch = CompressBatch(pages(3))
    refused(lambda: batch.refill(pages(4)), "holds up to 3 pages, not 4")
    refused(lambda: batch.refill(pages(3, 512)), "(n, 4096)", "(3, 512)")
    refused(lambda: batch.refill(pages(6)[::2]), "not contiguous")
    refused(lambda: batch.refill(np.empty((0, PAGE), np.uint8)), "at least one page")
    assert len(batch) == 3


@pytest.mark.parametrize("how", ["again", "refilled", "refilled with fewer"])
@pytest.mark.parametrize("dsts", [False, True])
def test_outputs_are_those_of_the_last_run(engine: Engine, how: str, dsts: bool) -> None:
    memory = pages(6)
    batch = CompressBatch(memory, dsts=np.empty((6, 2 * PAGE), np.uint8) if dsts else None)
    engine.compress(batch)
    first = [bytes(output) for output in batch.outputs()]
    other = np.random.default_rng(5).integers(0, 99, (6, PAGE), np.uint8)
    if how == "again":
        memory[:] = other
    else:
        batch.refill(other[: 6 if how == "refilled" else 2])
    engine.compress(batch)
    expected = [engine.compress_page(page) for page in other[: len(batch)]]
    assert [bytes(output) for output in batch.outputs()] == expected
    assert expected[0] != first[0]
    engine.submit(batch).wait(60)
    assert [bytes(output) for output in batch.outputs()] == expected


def test_a_page_of_another_size_is_forgotten_with_the_pages_it_was_among(engine: Engine) -> None:
    batch = CompressBatch([bytes(PAGE), b"odd", bytes(PAGE)])
    engine.compress(batch)
    assert batch.errors.tolist() == [0, -errno.EINVAL, 0]
    batch.refill(pages(3))
    engine.compress(batch)
    assert batch.errors.tolist() == [0, 0, 0]
    assert batch.outputs() == [engine.compress_page(page) for page in pages(3)]


def test_a_source_of_two_pages_is_tried_and_a_longer_one_is_not() -> None:
    class Padded(Codec):
        """A page and a byte, padded to what it is told."""

        name = "padded"

        def compressor(self, page_size: int) -> Any:  # noqa: ARG002
            return bytes

        def decompressor(self, page_size: int) -> Any:
            return lambda src: bytes(src)[:page_size]

    with Engine(Padded(), backend="sequential") as engine:
        back = DecompressBatch([bytes(2 * PAGE), bytes(2 * PAGE + 1), bytes(PAGE)])
        engine.decompress(back)
        assert back.errors.tolist() == [0, -errno.EBADMSG, 0]
        assert engine.decompress_page(bytes(2 * PAGE)) == bytes(PAGE)
        with pytest.raises(PageError):
            engine.decompress_page(bytes(2 * PAGE + 1))


def test_a_codec_that_gives_up_ends_the_batch_and_not_the_engine() -> None:
    class Leaves(Codec):
        name = "leaves"

        def compressor(self, page_size: int) -> Any:  # noqa: ARG002
            def compress(page: Any) -> bytes:
                if page[0] == 7:
                    raise KeyboardInterrupt
                return bytes(page)

            return compress

        def decompressor(self, page_size: int) -> Any:  # noqa: ARG002
            return bytes

    for backend in ("sequential", "workers"):
        with Engine(Leaves(), backend=backend) as leaving:
            bad = np.zeros((300, PAGE), np.uint8)
            bad[[100, 200], 0] = 7
            with pytest.raises(KeyboardInterrupt):
                leaving.compress(CompressBatch(bad))
            with pytest.raises(KeyboardInterrupt):
                leaving.compress_page(bad[100])
            good = CompressBatch(pages(300))
            leaving.compress(good)
            assert not good.errors.any()
            assert good.output(299) == pages(300)[299].tobytes()


def test_an_output_is_by_index_from_either_end(engine: Engine) -> None:
    batch = CompressBatch(pages(3))
    engine.compress(batch)
    assert batch.output(-1) == batch.output(2) == batch.outputs()[2]
    for index in (3, -4):
        with pytest.raises(IndexError):
            batch.output(index)


# What decompress takes


def compressed(engine: Engine, count: int = 3) -> CompressBatch:
    batch = CompressBatch(pages(count))
    engine.compress(batch)
    return batch


def test_sources_come_in_any_form(engine: Engine) -> None:
    batch = compressed(engine)
    outputs = [bytes(output) for output in batch.outputs()]
    contiguous = np.ascontiguousarray(batch.dsts)
    forms: list[Any] = [
        outputs,
        tuple(outputs),
        [bytearray(output) for output in outputs],
        [np.frombuffer(output, np.uint8) for output in outputs],
        batch.outputs(),
        (batch.dsts, batch.dlens),
        (contiguous, batch.dlens.tolist()),
        (contiguous, batch.dlens.astype(np.int16)),
        (memoryview(contiguous.tobytes()).cast("B", contiguous.shape), batch.dlens),
    ]
    for srcs in forms:
        back = DecompressBatch(srcs)
        assert back.slens.tolist() == batch.dlens.tolist()
        engine.decompress(back)
        np.testing.assert_array_equal(np.asarray(back.pages), pages())


def test_two_sources_in_a_tuple_are_two_sources(engine: Engine) -> None:
    outputs = compressed(engine, 2).outputs()
    back = DecompressBatch((bytes(outputs[0]), bytes(outputs[1])))
    engine.decompress(back)
    np.testing.assert_array_equal(np.asarray(back.pages), pages(2))


def test_sources_that_are_no_sequence_are_refused() -> None:
    wrong: list[Any] = [b"one source", np.zeros((3, 9), np.uint8), iter([b"x"]), None]
    for what in wrong:
        refused(partial(DecompressBatch, what), "srcs", "list of buffers", type(what).__name__)
    refused(lambda: DecompressBatch([b"x", 7]), "srcs[1]", "int")  # type: ignore[list-item]
    refused(lambda: DecompressBatch([np.zeros(8, np.uint8)[::2]]), "srcs[0]", "not contiguous")


def test_lengths_of_sources_lie_within_their_rows() -> None:
    dsts = np.zeros((3, 100), np.uint8)
    refused(lambda: DecompressBatch((dsts, [1, 2, 101])), "slens", "from 0 to 100")
    refused(lambda: DecompressBatch((dsts, [1, -1, 2])), "slens", "from 0 to 100")
    assert DecompressBatch((dsts, [0, 1, 100])).slens.tolist() == [0, 1, 100]


def test_lengths_are_as_many_integers_as_there_are_rows() -> None:
    dsts = np.zeros((3, 100), np.uint8)
    lengths: list[Any] = [
        [1, 2],
        [1, 2, 3, 4],
        [1.0, 2.0, 3.0],
        [[1, 2, 3]],
        3,
        [True, False, True],
    ]
    for slens in [*lengths, ["1", "2", "3"], [1, [2], 3], None]:
        refused(partial(DecompressBatch, (dsts, slens)), "(dsts, slens)", "n integers")
    refused(lambda: DecompressBatch((dsts.astype(np.uint16), [1, 2, 3])), "uint8", "uint16")  # type: ignore[arg-type]


# Where decompress writes


def test_pages_are_made_where_none_are_given() -> None:
    assert np.asarray(DecompressBatch([b"x"] * 3).pages).shape == (3, PAGE)
    assert np.asarray(DecompressBatch([b"x"] * 3, page_size=512).pages).shape == (3, 512)


def test_a_page_that_fails_is_left_as_it_was_and_the_others_come(engine: Engine) -> None:
    srcs = [bytes(output) for output in compressed(engine).outputs()]
    srcs[1] = b""
    for rows in (False, True):
        memory = np.full((3, PAGE), 9, np.uint8)
        back = DecompressBatch(srcs, pages=list(memory) if rows else memory)
        engine.decompress(back)
        assert back.errors.tolist() == [0, -errno.EBADMSG, 0]
        assert back.dlens.tolist() == [PAGE, 0, PAGE]
        assert (memory[1] == 9).all()
        np.testing.assert_array_equal(memory[::2], pages()[::2])


def test_restored_pages_need_memory_that_is_writable_contiguous_and_enough() -> None:
    srcs = [b"x"] * 3
    refused(lambda: DecompressBatch(srcs, pages=bytes(3 * PAGE)), "pages", "read-only")
    refused(
        lambda: DecompressBatch(srcs, pages=[bytearray(PAGE)] * 2 + [bytes(PAGE)]),
        "pages[2]",
        "read-only",
    )
    refused(lambda: DecompressBatch(srcs, pages=pages(6)[::2]), "pages", "not contiguous")
    refused(lambda: DecompressBatch(srcs, pages=pages(2)), "pages", "(3, ", "(2, 4096)")
    refused(lambda: DecompressBatch(srcs, pages=bytearray(2 * PAGE)), "8192", "3 × 4096")
    refused(lambda: DecompressBatch(srcs, pages=bytearray(3 * PAGE + 1)), "multiple of 4096")
    refused(
        lambda: DecompressBatch(srcs, pages=[bytearray(PAGE)]),
        "3 sources need as many pages, not 1",
    )
    refused(lambda: DecompressBatch(srcs, pages=np.zeros((3, PAGE), np.uint16)), "uint8")
    rows = [bytearray(PAGE), bytearray(512), bytearray(PAGE)]
    refused(lambda: DecompressBatch(srcs, pages=rows), "pages[1] must have 4096 bytes, not 512")


def test_restored_pages_that_overlap_are_refused_by_name() -> None:
    memory = memoryview(bytearray(3 * PAGE))
    refused(
        lambda: DecompressBatch([b"x"] * 2, pages=[memory[:PAGE], memory[PAGE - 1 : 2 * PAGE - 1]]),
        *("pages[1] overlaps pages[0]", "its own memory"),
    )
    twice = bytearray(PAGE)
    refused(lambda: DecompressBatch([b"x"] * 2, pages=[twice, twice]), "overlaps")
    backwards = [memory[2 * PAGE :], memory[PAGE : 2 * PAGE], memory[:PAGE]]
    DecompressBatch([b"x"] * 3, pages=backwards)  # side by side is right, in any order


def test_restored_pages_over_their_sources_are_refused() -> None:
    memory = np.zeros((4, PAGE), np.uint8)
    wanted = memory.reshape(2, 2 * PAGE)
    sources: list[list[Any]] = [[b"x", memory[1, :10]], [memory[3, -1:], b"x"]]
    for srcs in sources:
        refused(partial(DecompressBatch, srcs, pages=wanted), "pages overlaps srcs[")
    refused(lambda: DecompressBatch((memory, [1] * 4), pages=memory), "pages overlaps srcs")
    rows = [memory[0], memory[1]]
    refused(lambda: DecompressBatch([b"x", memory[1, 5:6]], pages=rows), "overlaps srcs[1]")
    DecompressBatch([memory[2], memory[3]], pages=rows)


@pytest.mark.parametrize("size", [0, -1, 4095, np.zeros(2), "4096", 10**400], ids=repr)
def test_a_page_size_that_cannot_be_is_refused_by_name(size: Any) -> None:
    for make in (
        lambda: CompressBatch(bytes(8192), page_size=size),
        lambda: DecompressBatch([b"x"], page_size=size),
    ):
        with pytest.raises((BadArgument, TypeError), match=r"page_size|index"):
            make()


@pytest.mark.parametrize("index", [2, -3, 2**63, 10**400])
def test_a_page_that_the_batch_does_not_have_is_an_index_error(index: int) -> None:
    batch = CompressBatch(bytes(8192), page_size=4096)
    with pytest.raises(IndexError, match="the batch has 2 pages"):
        batch.output(index)
