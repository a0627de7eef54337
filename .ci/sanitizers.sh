#!/usr/bin/env bash
# Unit tests of the core under AddressSanitizer and UBSan, of pool and store under ThreadSanitizer too. (The stress
# run fuzzes the rest under it.)
set -euo pipefail
cd "$(dirname "$0")/.."

unit=tests/unit
asan() { .ci/with_core.sh asan -m pytest -q -n 2 "$@"; }
tsan() { .ci/with_core.sh tsan -m pytest -q -n 2 "$@"; }

asan $unit/core/test_core_codecs.py $unit/core/test_core_libraries.py $unit/core/test_core_ring.py \
    $unit/batch/test_batch.py $unit/codecs/test_codecs.py $unit/codecs/test_shuffled.py \
    $unit/codecs/test_verify.py $unit/store/remote/test_shared_view.py tests/faults/test_lying_owner.py \
    tests/faults/test_lying_workers.py \
    -k 'not largest_pages and not hold_more_than_a_page' # ASan keeps what is freed for a while
asan $unit/pool tests/model/test_pool_model.py -k 'not 300000'
tsan $unit/pool/test_pool_faults.py -k 'threads or interrupt or forked'
asan $unit/backends/test_backends.py -k 'Thread or Sequential'
asan $unit/store/test_store.py $unit/store/test_bit_flips.py tests/faults/test_memory.py \
    tests/faults/test_reentry.py $unit/core/records $unit/core/slices \
    tests/model/test_records_model.py tests/model/test_slices_model.py \
    $unit/mapping/test_{mapping_cache,mapping_keys,mapping_batches,mapping_dictionary,cached}.py -k 'not file'
tsan $unit/store/test_store_threads.py tests/faults/test_memory.py $unit/mapping/test_mapping_{cache,batches}.py \
    $unit/core/records $unit/core/slices \
    -k 'linearizable or whole_or_not or wavers or at_random or whole_values or lanes or single_calls'
asan $unit/paged/test_pager*.py tests/faults/test_paged_{without_memory,full,damage}.py -k 'not limit'
tsan $unit/paged/test_pager*.py -k 'threads_find or beside or come_and_go or at_once or prefetch or smaller'
