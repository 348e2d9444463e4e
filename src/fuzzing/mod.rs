//! Every decoder of a file or of what comes over the network, and what must hold for whatever it takes.
//!
//! `make fuzz` runs these on made-up bytes, and the unit test below on those in
//! `fuzz/seeds`. None may panic, nor take more memory or time than the bytes warrant.
//! Compiled only for these two; no program that users build has it.

mod files;
mod network;

pub use self::files::{clock, identity, log_entries, log_file, snapshot};
pub use self::network::{connection, events, request, rpc};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    type Target = fn(&[u8]);

    /// The targets, by the names of their directories below `fuzz/seeds`.
    const TARGETS: [(&str, Target); 9] = [
        ("clock", clock),
        ("connection", connection),
        ("events", events),
        ("identity", identity),
        ("log_entries", log_entries),
        ("log_file", log_file),
        ("request", request),
        ("rpc", rpc),
        ("snapshot", snapshot),
    ];

    /// What holds for made-up bytes holds for the seeds, and for all that was found and mended.
    ///
    /// Method: each file below `fuzz/seeds`, as the fuzzer runs it.
    #[test]
    fn seeds() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        let names = fs::read_dir(&seeds).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let targets = TARGETS.iter().map(|(name, _)| (*name).to_owned());
        assert_eq!(names.collect::<BTreeSet<_>>(), targets.collect::<BTreeSet<_>>());
        for (name, target) in TARGETS {
            let mut files = 0;
            for file in fs::read_dir(seeds.join(name)).unwrap() {
                let path = file.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                let run = std::panic::catch_unwind(|| target(&bytes));
                assert!(run.is_ok(), "`{}` fails; see above", path.display());
                files += 1;
            }
            assert!(files > 0, "{name} has no seed");
        }
    }
}
