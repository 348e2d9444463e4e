//! What the dependencies may be.
//!
//! `make deny` checks the same and more, but needs `cargo-deny`, which takes longer to build than the server.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

/// The parts of `deny.toml` that are checked here.
#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    name: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    license: Option<String>,
    source: Option<String>,
}

/// Every package in `Cargo.lock`, for any system, is from crates.io, has a license that `deny.toml` allows, and is not
/// one that it denies: one library encrypts, and none of them is OpenSSL.
///
/// Method: ask cargo for the packages, and evaluate the expression of each license.
#[test]
fn dependencies_are_permitted() {
    let rules: Rules = toml::from_str(include_str!("../deny.toml")).unwrap();
    let allowed: Vec<Licensee> = rules.licenses.allow.iter().map(|name| Licensee::parse(name).unwrap()).collect();
    let denied: BTreeSet<&str> = rules.bans.deny.iter().map(|ban| ban.name.as_str()).collect();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version=1", "--all-features"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    let mut wrong = Vec::new();
    let others = metadata.packages.iter().filter(|package| !metadata.workspace_members.contains(&package.id));
    for package in others {
        let name = package.name.as_str();
        if package.source.as_deref() != Some("registry+https://github.com/rust-lang/crates.io-index") {
            wrong.push(format!("{name} comes from {:?}", package.source));
        }
        if denied.contains(name) {
            wrong.push(format!("{name} is denied"));
        }
        let license = package.license.as_deref().unwrap_or_default();
        let is_allowed = Expression::parse_mode(license, ParseMode::LAX)
            .is_ok_and(|license| license.evaluate(|wanted| allowed.iter().any(|one| one.satisfies(wanted))));
        if !is_allowed {
            wrong.push(format!("{name} has the license {license:?}"));
        }
    }
    assert!(metadata.packages.len() > 100, "cargo lists only {} packages", metadata.packages.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
