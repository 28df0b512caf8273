//! What keeps the tree readable: imports point one way, one module changes
//! files, one names bincode, and nothing outgrows its reader.
//!
//! The order of the modules is the list at the top of `src/lib.rs`; this file
//! reads it there, so that list and code cannot disagree.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

/// Most lines of a file.
const MOST_LINES: usize = 500;
/// Most lines of a function: what fits a tall screen.
const MOST_FUNCTION_LINES: usize = 80;
/// Most lines of a program in `src/bin`.
const MOST_PROGRAM_LINES: usize = 60;

/// What changes files for good.
const CHANGES_FILES: [&str; 9] = [
    "fs::rename",
    "fs::remove_file",
    "fs::remove_dir",
    "fs::copy",
    "fs::hard_link",
    "fs::write",
    ".sync_all(",
    ".sync_data(",
    "renameat",
];
/// The same in a `use std::fs::{...}`.
const CHANGES_FILES_IMPORTED: [&str; 5] = ["rename", "remove_file", "copy", "hard_link", "write"];

/// A source file.
struct Source {
    /// From the root of the repository.
    path: PathBuf,
    text: String,
    /// The text without comments and without what only tests compile.
    code: String,
}

impl Source {
    /// The module right below the crate's root that it belongs to: `bin` for the
    /// programs, `lib` for the root itself.
    fn module(&self) -> String {
        let path = self.path.strip_prefix("src").unwrap();
        let first = path.components().next().unwrap().as_os_str();
        let first = first.to_str().unwrap();
        first.strip_suffix(".rs").unwrap_or(first).to_owned()
    }

    /// The modules of the crate that it names.
    fn imports(&self) -> Vec<String> {
        let from_outside = self.module() == "bin";
        imports(&self.code, if from_outside { "aspen::" } else { "crate::" })
    }

    /// How many modules lie between it and the crate's root, itself included.
    fn depth(&self) -> usize {
        let parts = self.path.strip_prefix("src").unwrap().components().count();
        let named_by_directory = self.path.ends_with("mod.rs");
        parts - usize::from(named_by_directory)
    }
}

/// Every Rust file below `dir`, fixtures and what only tests compile left out.
fn sources(dir: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut left) = (Vec::new(), vec![root.join(dir)]);
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests/fixtures") {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push(Source {
                    path: path.strip_prefix(root).unwrap().to_owned(),
                    code: code(&text),
                    text,
                });
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// The code of the library and the programs, without their tests.
fn code_of_src() -> Vec<Source> {
    let mut found = sources("src");
    let is_test = |path: &Path| {
        path.iter()
            .any(|part| part == "tests" || part == "tests.rs")
    };
    found.retain(|source| !is_test(&source.path));
    found
}

/// `text` without comments and without the tests at its end.
fn code(text: &str) -> String {
    let tests = text.find("#[cfg(test)]\nmod tests {");
    let lines = text[..tests.unwrap_or(text.len())].lines();
    let uncommented = lines.map(|line| line.split("//").next().unwrap());
    uncommented.collect::<Vec<_>>().join("\n")
}

/// The first names in the paths that begin with `root`, those in braces too.
fn imports(code: &str, root: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start().chars();
        text.take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        // `not_crate::x` is somebody else's.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + root.len()..];
        match rest.strip_prefix('{') {
            None => found.push(name(rest)),
            Some(group) => found.extend(in_braces(group).into_iter().map(name)),
        }
    }
    found
}

/// What stands between commas up to the brace that closes, inner braces skipped.
fn in_braces(group: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' => {
                parts.push(&group[start..at]);
                break;
            }
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// The modules in the order of the list in `src/lib.rs`, and then the programs.
fn order() -> Vec<String> {
    let text = std::fs::read_to_string("src/lib.rs").unwrap();
    let mut order = Vec::new();
    for line in text.lines() {
        let Some(item) = line.strip_prefix("//! ") else {
            continue;
        };
        let numbered = item
            .split_once(". ")
            .filter(|(n, _)| n.parse::<u8>().is_ok());
        let Some((_, item)) = numbered else { continue };
        let links = item.split("[`").skip(1);
        order.extend(links.map(|link| link.split('`').next().unwrap().to_owned()));
    }
    order.push("bin".to_owned());
    order
}

#[track_caller]
fn assert_none(found: &[String], what: &str) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn every_module_is_in_the_list_of_the_crate() {
    let (order, lib) = (order(), std::fs::read_to_string("src/lib.rs").unwrap());
    let mut declared: Vec<_> = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "))
        .map(|name| name.trim_end_matches(';'))
        .collect();
    declared.push("bin");
    let mut listed: Vec<_> = order.iter().map(String::as_str).collect();
    listed.sort_unstable();
    declared.sort_unstable();
    assert_eq!(listed, declared);
}

#[test]
fn imports_point_up_the_list_of_the_crate() {
    let order = order();
    let place = |name: &str| order.iter().position(|module| module == name);
    let mut wrong = Vec::new();
    for source in code_of_src() {
        let module = source.module();
        if module == "lib" {
            continue;
        }
        let here = place(&module).expect(&module);
        for name in source.imports() {
            let there = place(&name);
            if there.is_none_or(|there| there > here) {
                wrong.push(format!("{} imports {name}", source.path.display()));
            }
        }
        // The root is called by its name, or the check above would miss it.
        let to_root = "super::".repeat(source.depth());
        if source.code.contains(&to_root) {
            wrong.push(format!("{} climbs to the root", source.path.display()));
        }
    }
    assert_none(&wrong, "against the order");
}

/// Laws beside the order: who may name what.
#[test]
fn what_is_to_stay_behind_one_module_stays_there() {
    let only = [
        ("bincode", ["format"].as_slice()),
        ("openraft", &["raft"]),
        ("rusqlite", &["format", "migration", "storage"]),
        ("redb", &["migration", "storage"]),
        ("redb2", &["migration", "storage"]),
        ("figment", &["config"]),
        ("toml_edit", &["config"]),
        ("sd_notify", &["notify"]),
        ("tracing_journald", &["telemetry"]),
    ];
    let mut wrong = Vec::new();
    for source in code_of_src() {
        for (name, allowed) in only {
            let named = source
                .code
                .match_indices(&format!("{name}::"))
                .any(|(at, _)| {
                    let before = &source.code[..at];
                    // `super::redb::` is a module of ours of the same name.
                    !before.ends_with("::")
                        && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                });
            if named && !allowed.contains(&source.module().as_str()) {
                wrong.push(format!("{} names {name}", source.path.display()));
            }
        }
    }
    assert_none(&wrong, "out of place");
}

#[test]
fn the_offline_tool_is_for_its_program_alone() {
    let mut users = code_of_src();
    users.retain(|source| source.imports().iter().any(|name| name == "offline"));
    let users: Vec<_> = users.iter().map(|source| source.path.clone()).collect();
    assert_eq!(users, [Path::new("src/bin/aspen-migrate.rs")]);
}

#[test]
fn deciding_does_no_input_or_output() {
    let text = std::fs::read_to_string("src/migration/plan.rs").unwrap();
    let code = code(&text);
    let mut uses: Vec<_> = code
        .lines()
        .filter(|line| line.starts_with("use "))
        .collect();
    uses.sort_unstable();
    let allowed = ["use crate::config::settings::", "use super::inspect::"];
    assert_eq!(uses.len(), allowed.len(), "{uses:?}");
    for (found, allowed) in uses.iter().zip(allowed) {
        let items = found.strip_prefix(allowed).expect(found);
        let items = items.trim_start_matches('{').split(',');
        // Types, not functions: `inspect` itself reads files.
        let mut items = items.map(str::trim_start);
        assert!(
            items.all(|item| item.starts_with(char::is_uppercase)),
            "{found}"
        );
    }
    for part in [
        "std::", "crate::", "super::", "fs::", "tracing", "unsafe", "static",
    ] {
        let beside = code.lines().filter(|line| !line.starts_with("use "));
        let found = beside.filter(|line| line.contains(part)).count();
        assert_eq!(found, 0, "{part}");
    }
}

#[test]
fn one_module_changes_files() {
    let mut wrong = Vec::new();
    for source in code_of_src() {
        if source.module() == "durable" {
            continue;
        }
        for call in changes(&source.code) {
            wrong.push(format!("{}: {call}", source.path.display()));
        }
    }
    assert_none(&wrong, "only durable.rs may");
}

/// What in `code` changes files.
fn changes(code: &str) -> Vec<String> {
    let called = CHANGES_FILES.iter().filter(|call| code.contains(**call));
    let mut found: Vec<_> = called.map(|call| (*call).to_owned()).collect();
    let imported = imports(code, "fs::");
    let imported = imported.into_iter();
    found.extend(imported.filter(|name| CHANGES_FILES_IMPORTED.contains(&name.as_str())));
    found
}

#[test]
fn nothing_is_left_to_be_done() {
    let marks = ["todo!(", "unimplemented!(", "dbg!(", "TODO", "FIXME", "XXX"];
    let mut wrong = Vec::new();
    for source in sources("src") {
        for (number, line) in source.text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| line.contains(**mark)) {
                wrong.push(format!("{}:{}: {mark}", source.path.display(), number + 1));
            }
        }
    }
    assert_none(&wrong, "unfinished");
}

#[test]
fn files_and_functions_do_not_outgrow_their_reader() {
    let mut wrong = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let path = source.path.display();
        let lines = source.text.lines().count();
        let most = match source.path.starts_with("src/bin") {
            true => MOST_PROGRAM_LINES,
            false => MOST_LINES,
        };
        if lines > most {
            wrong.push(format!("{path}: {lines} lines"));
        }
        for (name, lines) in functions(&source.text) {
            if lines > MOST_FUNCTION_LINES {
                wrong.push(format!("{path}: {name}: {lines} lines"));
            }
        }
    }
    assert_none(&wrong, "too long");
}

/// Functions with their lines, told by the indentation that rustfmt gives.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<_> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<_> = line.split_whitespace().take(5).collect();
        let Some(at) = words.iter().position(|word| *word == "fn") else {
            continue;
        };
        if line.trim_start().starts_with("//") || line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|line| *line == end);
        let name = words.get(at + 1).unwrap_or(&"");
        found.push(((*name).to_owned(), length.map_or(1, |length| length + 1)));
    }
    found
}

/// Whoever is warned looks the warning up: `journalctl -x` explains what has a
/// `MESSAGE_ID`. The one exception says that there is no journal.
#[test]
fn every_warning_and_error_is_an_event_that_the_catalog_explains() {
    let mut wrong = Vec::new();
    for source in code_of_src() {
        for call in calls(&source.code, &["tracing::warn!(", "tracing::error!("]) {
            if !call.contains("MESSAGE_ID") && !call.contains("Cannot reach the journal") {
                wrong.push(format!("{}: {call}", source.path.display()));
            }
        }
    }
    assert_none(&wrong, "without a MESSAGE_ID (src/telemetry/events.rs)");
}

/// What stands between the parentheses of every call of one of these macros.
fn calls<'a>(code: &'a str, macros: &[&str]) -> Vec<&'a str> {
    let mut found = Vec::new();
    for name in macros {
        for (at, _) in code.match_indices(name) {
            let (inside, mut depth) = (&code[at + name.len()..], 1);
            let end = inside.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            found.push(&inside[..end.unwrap_or(inside.len())]);
        }
    }
    found
}

// The tests above are worth what they notice.

#[test]
fn the_scanner_sees_imports_in_every_form() {
    let code = "use crate::a::B;\nuse crate::{c, d::{e, f}, g};\nlet x = crate::h::i();";
    assert_eq!(imports(code, "crate::"), ["a", "c", "d", "g", "h"]);
    assert_eq!(imports("use not_crate::a;", "crate::"), [""; 0]);
}

#[test]
fn the_scanner_looks_at_code_and_not_at_comments_or_tests() {
    let text = "a(); // b\n//! c\n/// d\ne();\n#[cfg(test)]\nmod tests {\n f();\n}";
    assert_eq!(code(text), "a(); \n\n\ne();");
}

#[test]
fn the_scanner_notices_whoever_changes_files() {
    for text in [
        "std::fs::rename(a, b)",
        "use std::fs::{self, remove_file};",
        "use std::fs::{File, copy};",
        "file.sync_all()",
        "nix::fcntl::renameat2(",
    ] {
        assert_ne!(changes(text), [""; 0], "{text}");
    }
    assert_eq!(
        changes("use std::fs::File; fn sync_data(&self) {}"),
        [""; 0]
    );
}

#[test]
fn the_scanner_reads_a_call_to_its_end() {
    let code = "a!(b(c), \"(d)\"); a!(e)";
    assert_eq!(calls(code, &["a!("]), ["b(c), \"(d)\"", "e"]);
}

#[test]
fn the_scanner_measures_functions() {
    let text = "fn a() {\n}\nimpl B {\n    pub(crate) fn c(\n    ) {\n        d();\n    }\n}\n";
    let found = functions(text);
    let found: Vec<_> = found.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    assert_eq!(found, [("a()", 2), ("c(", 4)]);
}

/// Two types of one name in the API's description: one would silently stand for both.
#[test]
fn every_type_of_the_description_has_a_name_of_its_own() {
    let mut seen = std::collections::BTreeMap::new();
    for source in code_of_src() {
        for at in source.code.split("ToSchema)]").skip(1) {
            let declared = at.split('{').next().unwrap();
            let mut words = declared.split_whitespace();
            let name = match declared.split_once("as = ") {
                Some((_, renamed)) => renamed,
                None => {
                    words.find(|word| ["struct", "enum"].contains(word));
                    words.next().unwrap()
                }
            };
            let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
            assert!(!name.is_empty(), "{declared}");
            let earlier = seen.insert(name.clone(), source.path.clone());
            assert_eq!(earlier, None, "{name} stands in {:?} too", source.path);
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
}
