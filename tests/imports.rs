//! Imports in `src` point one way.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules, lowest first, and the modules that each may name in its code and its unit tests. A row covers all modules
/// below its own that have no row.
const MAY_NAME: [(&str, &str); 44] = [
    ("seeded_bug", ""),
    ("hash", ""),
    ("level", ""),
    ("headers", ""),
    ("access", ""),
    ("secret", ""),
    ("body", "access"),
    ("node_status", "body"),
    ("operation", "access body hash level"),
    ("types", "body level operation"),
    ("config", "types"),
    ("tls", "config types"),
    ("duration", "config"),
    ("telemetry", "config tls"),
    ("clock", "config seeded_bug"),
    ("disk", "config"),
    ("connection", "config tls types"),
    ("error", "body config types"),
    ("agreement", "config types"),
    ("proofs", "config connection headers secret types"),
    ("peers", "config error proofs secret telemetry types"),
    ("confirmations", "config error"),
    ("store::error", "agreement hash types"),
    ("store::ownership", "store::error"),
    ("store::durable", "seeded_bug store::ownership"),
    ("store::identity", "level types store::error store::ownership store::durable"),
    ("store::clock_file", "config clock store::error store::ownership store::durable"),
    ("store::log", "access config hash level operation seeded_bug telemetry types store::error"),
    ("store::state_machine", "access body clock config hash level operation seeded_bug types"),
    (
        "store::snapshot",
        "access config hash level operation types store::error store::ownership store::durable store::log \
         store::state_machine",
    ),
    ("store::watch", "config operation store::state_machine"),
    ("store::self_check", "config hash operation types store::error store::state_machine"),
    ("store::applied", "config types store::state_machine store::self_check"),
    (
        "store::state_machine_store",
        "clock config seeded_bug telemetry types store::error store::log store::state_machine store::snapshot \
         store::watch store::self_check store::applied",
    ),
    (
        "store",
        "clock config hash level types store::error store::ownership store::durable store::identity \
         store::clock_file store::log store::state_machine store::snapshot store::watch store::self_check \
         store::applied store::state_machine_store",
    ),
    (
        "store::rebuild",
        "config level operation types store::error store::ownership store::durable store::identity store::clock_file \
         store::log store::state_machine store::snapshot store",
    ),
    (
        "store::examine",
        "access operation types store::error store::identity store::clock_file store::log store::state_machine \
         store::snapshot store",
    ),
    ("client", "access body secret config connection duration error headers node_status tls types"),
    ("auth", "access clock operation secret store store::state_machine"),
    ("app", "agreement auth config confirmations connection disk peers store telemetry tls types"),
    (
        "network",
        "access agreement app auth body clock config confirmations connection disk duration error headers level node_status operation peers \
         proofs secret seeded_bug store \
         telemetry tls types \
         store::error store::durable store::log store::state_machine store::snapshot",
    ),
    ("compaction", "app config disk store types store::durable store::snapshot"),
    (
        "server",
        "access auth secret store::state_machine app compaction config connection level network operation peers proofs \
         store telemetry tls types",
    ),
    (
        "fuzzing",
        "access app body client config error headers level network node_status operation proofs secret store tls types \
         store::clock_file store::identity store::log store::snapshot",
    ),
];

/// Circles that are left: modules that name one of a later row.
const EXCEPTIONS: [(&str, &str); 2] = [
    // The memory that clients may use, and the places for long work, are part of what all handlers share.
    ("app", "network"),
    // A unit test of the listener sends what the fuzz target sends.
    ("network", "fuzzing"),
];

/// Each module of `src` names only modules that its row allows, and no row allows a circle.
///
/// Method: read every `crate::`, `super::` and `self::` path in the text of every file, of imports and of
/// expressions, and resolve it to the module that it names.
#[test]
fn imports_point_one_way() {
    for (position, (module, named)) in MAY_NAME.iter().enumerate() {
        let is_lower = |name: &&str| MAY_NAME[..position].iter().any(|(lower, _)| lower == name);
        let wrong: Vec<_> = named.split(' ').filter(|name| !name.is_empty() && !is_lower(name)).collect();
        assert!(wrong.is_empty(), "`{module}` may name {wrong:?}, of which no row is before its own");
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut checked, mut wrong) = (0, BTreeSet::new());
    for file in files_below(&source) {
        let path = file.strip_prefix(&source).unwrap();
        // The program and the crate's own module are above all others.
        if path.starts_with("bin") || path == Path::new("lib.rs") {
            continue;
        }
        let module = module_of(path);
        let from = row_of(&module);
        let row = MAY_NAME.iter().find(|(module, _)| *module == from);
        let (_, allowed) = row.unwrap_or_else(|| panic!("`{}` has no row in the table", path.display()));
        for named in named_modules(&fs::read_to_string(&file).unwrap(), &module) {
            checked += 1;
            let to = row_of(&named);
            let is_allowed = from == to || allowed.split(' ').any(|name| name == to);
            if !is_allowed && !EXCEPTIONS.contains(&(from, to)) {
                wrong.insert(format!("{}: `{from}` names `{to}` ({})", path.display(), named.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that the table does not allow:\n{}", Vec::from_iter(wrong).join("\n"));
    assert!(checked > 1000, "only {checked} paths were found");
}

/// Every form of a path is found, and resolved from where it is.
#[test]
fn paths_are_found() {
    let text = "
//! See [`crate::comment`].
use std::io; // use crate::comment;
pub(crate) use crate::a::{self, b::{C as B, D}, e};
pub(in crate::visible) fn f(x: super::Sibling) -> crate::a::G<crate::h::I> {}
mod tests {
    use super::*;
    use super::super::Parent;
    use self::own::Thing;
}
fn last() { super::last() }
";
    let module = ["p".to_owned(), "q".to_owned()];
    let found: Vec<String> = named_modules(text, &module).iter().map(|path| path.join("::")).collect();
    let expected = [
        "a",
        "a::b::C",
        "a::b::D",
        "a::e",
        "p::Sibling",
        "a::G",
        "h::I",
        "p::q",
        "p::Parent",
        "p::q::tests::own::Thing",
        "p::last",
    ];
    assert_eq!(found, expected);
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The module that a file holds, by its path below `src`.
fn module_of(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let names = path.iter().map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| name != "mod").collect()
}

/// The row of a path: that of the longest module which is a part of it; empty for an item of the crate itself.
fn row_of(path: &[String]) -> &'static str {
    let is_part = |module: &&str| {
        let names: Vec<&str> = module.split("::").collect();
        path.len() >= names.len() && path.iter().zip(names).all(|(one, other)| one == other)
    };
    MAY_NAME.iter().map(|(module, _)| *module).filter(is_part).max_by_key(|module| module.len()).unwrap_or_default()
}

/// All paths in the text of a module that begin with `crate`, `super` or `self`, from the root of the crate.
fn named_modules(text: &str, module: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut inner = module.to_vec();
    let mut code = String::new();
    for line in text.lines().map(|line| line.split("//").next().unwrap()) {
        // Formatted code has the modules of a file, and nothing else that is longer than a line, between such lines.
        let begun = line.strip_suffix(" {").and_then(|line| line.split_once("mod ")).filter(|_| !line.starts_with(' '));
        if begun.is_some() || line == "}" {
            read_paths(&code, &inner, &mut found);
            code.clear();
            inner.truncate(module.len());
            inner.extend(begun.map(|(_, name)| name.to_owned()));
        }
        code.push_str(line);
        code.push('\n');
    }
    read_paths(&code, &inner, &mut found);
    found
}

fn read_paths(code: &str, module: &[String], found: &mut Vec<Vec<String>>) {
    let mut rest = code;
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    while let Some(start) = rest.find(is_name) {
        let before = &code[..code.len() - rest.len() + start];
        let end = rest[start..].find(|it| !is_name(it)).map_or(rest.len(), |length| start + length);
        let (name, after) = (&rest[start..end], &rest[end..]);
        rest = after;
        let is_inside = ["::", "$", "(in "].iter().any(|it| before.ends_with(it));
        let Some(after) = after.strip_prefix("::").filter(|_| !is_inside) else { continue };
        let root = match name {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => module[..module.len() - 1].to_vec(),
            _ => continue,
        };
        rest = read_tree(after, root, found);
    }
}

/// Reads what follows `::` in a path or a list of imports, and returns the text after it.
fn read_tree<'a>(text: &'a str, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let mut rest = text.trim_start();
    if let Some(list) = rest.strip_prefix('{') {
        rest = list.trim_start();
        while !rest.starts_with('}') {
            rest = read_tree(rest, path.clone(), found);
            // Behind an alias.
            rest = &rest[rest.find([',', '}']).unwrap()..];
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        return &rest[1..];
    }
    let end = rest.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    match name {
        "super" => drop(path.pop()),
        "self" | "" => {}
        _ => path.push(name.to_owned()),
    }
    if let Some(after) = after.strip_prefix("::") {
        return read_tree(after, path, found);
    }
    found.push(path);
    after.strip_prefix('*').unwrap_or(after)
}
