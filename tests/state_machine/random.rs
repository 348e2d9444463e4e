//! Any log.

use std::time::UNIX_EPOCH;

use proptest::collection::vec;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::harness::Replicas;
use crate::operations::{Step, former_set, step};

/// Cases unless PROPTEST_CASES says otherwise.
const CASES: u32 = 100;

fn check(steps: &[Step]) {
    let mut replicas = Replicas::default();
    for Step { entry, between } in steps {
        replicas.apply(entry.payload(&replicas.model));
        if replicas.model.items.len() < 50 {
            replicas.check_hash();
        }
        replicas.between(*between);
    }
    replicas.finish();
}

/// The state machine behaves like the model for every log. A state that passes through snapshots is equal to one that
/// does not. A copy does not change. The hash is that of everything in the state, and different states have different
/// hashes.
///
/// Method: 100 random logs (PROPTEST_CASES: another number) of up to 60 entries
/// with few keys, times that go forwards, backwards, to the moment of the next
/// expiry and just before it, requests that come again; all that can be seen is
/// compared after each entry. Seeded by the clock (PROPTEST_RNG_SEED: by that
/// number); a failure names the seed and the shortest log that was found.
#[test]
fn any_log() {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    config.rng_seed = RngSeed::Fixed(seed);
    // A log of the new kind, after some of the former one.
    let logs = (vec(former_set(), 0..4), vec(step(), 1..60));
    let result = TestRunner::new(config).run(&logs, |(former, steps)| {
        let between = crate::harness::Between::Nothing;
        let former = former.into_iter().map(|entry| Step { entry, between });
        check(&former.chain(steps).collect::<Vec<_>>());
        Ok(())
    });
    if let Err(failure) = result {
        panic!("again: PROPTEST_RNG_SEED={seed} cargo test --test state_machine any_log\n{failure}");
    }
}
