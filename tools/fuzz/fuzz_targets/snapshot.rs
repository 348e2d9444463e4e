#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|bytes: &[u8]| raft_key_value::fuzzing::snapshot(bytes));

fuzz_mutator!(|bytes: &mut [u8], length: usize, length_max: usize, seed: u32| {
    raft_key_value_fuzz::mutate_snapshot(bytes, length, length_max, seed)
});
