#!/usr/bin/env bash
# Unit tests of the core under AddressSanitizer and UBSan, of pool and store under ThreadSanitizer too. (The stress
# run fuzzes the rest under it.)
set -euo pipefail
cd "$(dirname "$0")/.."

.ci/with_core.sh asan -m pytest -q -n 2 tests/test_core_codecs.py tests/test_core_libraries.py \
    tests/test_core_ring.py tests/test_batch.py tests/test_codecs.py tests/test_shuffled.py tests/test_verify.py \
    tests/test_shared_view.py tests/test_lying_owner.py tests/test_lying_workers.py \
    -k 'not largest_pages'
.ci/with_core.sh asan -m pytest -q -n 2 tests/test_pool.py tests/test_pool_faults.py tests/test_pool_model.py -k 'not 300000'
.ci/with_core.sh tsan -m pytest -q -n 2 tests/test_pool_faults.py -k 'threads or interrupt or forked'
.ci/with_core.sh asan -m pytest -q -n 2 tests/test_backends.py -k 'Thread or Sequential'
.ci/with_core.sh asan -m pytest -q -n 2 tests/test_store.py tests/test_bit_flips.py tests/faults/test_memory.py \
    tests/faults/test_reentry.py tests/test_records.py tests/test_slices.py tests/test_mapping_cache.py \
    -k 'not file'
.ci/with_core.sh tsan -m pytest -q -n 2 tests/test_store_threads.py tests/faults/test_memory.py tests/test_mapping_cache.py \
    tests/test_records.py tests/test_slices.py \
    -k 'linearizable or whole_or_not or wavers or at_random or whole_values or lanes or single_calls'
.ci/with_core.sh asan -m pytest -q -n 2 tests/test_pager.py tests/faults/test_paged_faults.py -k 'not limit'
.ci/with_core.sh tsan -m pytest -q -n 2 tests/test_pager.py -k 'threads_find or beside or come_and_go or at_once or prefetch or smaller'
