//! Random logs.

use std::time::UNIX_EPOCH;

use proptest::collection::vec;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::harness::Replicas;
use crate::operations::{Step, former_set, step};

/// The number of cases unless PROPTEST_CASES is set.
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
/// Method: apply 100 random logs (PROPTEST_CASES: another number) of up to 60 entries with few keys and repeated
/// requests. Their times go forwards, backwards, to the time of the next expiry and just before it. Compare the
/// observable state after each entry. The seed is from the clock (PROPTEST_RNG_SEED: another one); a failure names the
/// seed and the shortest failing log.
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
    // A log of the new format, after some entries of the old one.
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
