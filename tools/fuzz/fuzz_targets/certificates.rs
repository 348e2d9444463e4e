#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| raft_key_value::fuzzing::certificates(bytes));
