//! What the documentation names exists, and what it lists is complete.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aspen::config::keys::KEYS;
use aspen::exit::Exit;
use aspen::telemetry::events;
use clap::CommandFactory as _;

/// Options of other programs that the documentation shows.
const FOREIGN: &[&str] = &[
    // aspen-rolling-restart and curl.
    "--restart",
    "--token-file",
    "--retry",
    "--allow-downgrades",
    "--bench",
    "--cacert",
    "--cold",
    "--configure",
    "--create",
    "--data-binary",
    "--example",
    "--force-confold",
    "--home-dir",
    "--manifest-path",
    "--no-install-recommends",
    "--nocapture",
    "--now",
    "--output-fields",
    "--pipe",
    "--release",
    "--rounds",
    "--rows",
    "--runs",
    "--scenario",
    "--shell",
    "--since",
    "--small",
    "--system",
    "--test",
    "--update-catalog",
    "--value-bytes",
    "--wait",
    "--without-plain",
];
/// Names in capitals that begin with `ASPEN_` and are no key: what stands for any, the file,
/// and what tests look at.
const VARIABLES: &[&str] = &[
    "ASPEN_CONFIG",
    "ASPEN_SECTION__KEY",
    "ASPEN_TEST_SEED",
    "ASPEN_TEST_SOAK_MINUTES",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page for people, and its text.
fn pages() -> Vec<(PathBuf, String)> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = ["README.md", "CHANGELOG.md"]
        .map(|name| root().join(name))
        .into();
    paths.extend(docs.filter(|path| path.extension().is_some_and(|e| e == "md")));
    assert!(paths.len() >= 4, "{paths:?}");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The longest runs of characters that `belongs` accepts.
fn words(text: &str, belongs: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !belongs(c))
        .filter(|word| !word.is_empty())
}

/// What stands between backticks within a line.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|line| !line.starts_with("```"));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The cells of every row of the table whose header begins with `first`.
fn table<'a>(text: &'a str, first: &str) -> Vec<Vec<&'a str>> {
    let header = format!("| {first} |");
    let rows = text.lines().skip_while(|line| !line.starts_with(&header));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &'a str| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim_matches([' ', '`'])).collect()
    };
    let rows: Vec<_> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "no table begins with {header}");
    rows
}

/// The anchor that a heading gets: lower case, spaces to hyphens, punctuation gone.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_relative_link_leads_somewhere() {
    for (path, text) in pages() {
        for link in text
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap())
        {
            if link.starts_with("https://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|line| anchor(line) == heading),
                    "{}: {link}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_option_belongs_to_one_of_the_programs() {
    let commands = [
        aspen::supervisor::Arguments::command(),
        aspen::offline::Arguments::command(),
    ];
    let known: BTreeSet<_> = commands
        .into_iter()
        .flat_map(|mut command| {
            command.build();
            let options: Vec<_> = command
                .get_opts()
                .chain(command.get_arguments())
                .cloned()
                .collect();
            options
                .into_iter()
                .filter_map(|option| option.get_long().map(|long| format!("--{long}")))
        })
        .collect();
    for (path, text) in pages() {
        for word in words(&text, |c| c.is_ascii_lowercase() || c == '-') {
            let named = word.starts_with("--") && !word.trim_matches('-').is_empty();
            if named && !FOREIGN.contains(&word) {
                assert!(known.contains(word), "{}: {word}", path.display());
            }
        }
    }
    let readme = page("README.md") + &page("docs/operations.md") + &page("CHANGELOG.md");
    for option in known.iter().filter(|option| *option != "--version") {
        assert!(
            readme.contains(option.as_str()),
            "{option} is not explained"
        );
    }
}

#[test]
fn the_exit_codes_are_those_of_the_programs() {
    use Exit::{Config, Data, Io, Locked, NoInput, Ok, Permission, Software, TargetExists, Usage};
    let all = [
        Ok,
        Usage,
        Data,
        NoInput,
        Software,
        TargetExists,
        Io,
        Locked,
        Permission,
        Config,
    ];
    let all: BTreeSet<_> = all.map(|exit| exit.code().to_string()).into();
    let listed = |text: &str| -> BTreeSet<String> {
        table(text, "code")
            .iter()
            .map(|row| row[0].to_owned())
            .collect()
    };
    assert_eq!(listed(&page("README.md")), all);
    let failures: BTreeSet<_> = all.iter().filter(|code| *code != "0").cloned().collect();
    assert_eq!(listed(&page("docs/operations.md")), failures);
    for (path, text) in pages() {
        for rest in text.split("exit code ").skip(1) {
            let code = words(rest, |c| c.is_ascii_digit()).next().unwrap();
            assert!(
                !rest.starts_with(code) || all.contains(code),
                "{}: {code}",
                path.display()
            );
        }
    }
    let unit = page("systemd/aspen-node.service");
    let never = unit
        .lines()
        .find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
    let never: BTreeSet<_> = never.unwrap().split(' ').collect();
    for row in table(&page("docs/operations.md"), "code") {
        assert_eq!(
            row[2] == "no",
            never.contains(row[0]),
            "restarted after {}?",
            row[0]
        );
    }
}

#[test]
fn the_configuration_is_explained_key_by_key_with_its_defaults() {
    let text = page("docs/operations.md");
    let rows = table(&text, "key");
    let named: Vec<_> = rows.iter().map(|row| row[0]).collect();
    let keys: Vec<_> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(named, keys);
    for (row, key) in rows.iter().zip(KEYS) {
        if let Some(default) = key.default {
            assert_eq!(row[1], default, "{}", key.path);
        }
        assert_eq!(row[2], key.short.unwrap_or_default(), "{}", key.path);
    }
}

#[test]
fn every_key_and_variable_that_is_named_exists() {
    let sections: BTreeSet<_> = KEYS
        .iter()
        .filter_map(|key| key.path.split('.').next())
        .collect();
    let mut variables: BTreeSet<String> = VARIABLES.iter().map(|name| (*name).to_owned()).collect();
    variables.extend(KEYS.iter().map(|key| key.env_name()));
    variables.extend(KEYS.iter().filter_map(|key| key.short.map(str::to_owned)));
    let fields = events::ALL.iter().flat_map(|event| event.fields);
    variables.extend(fields.map(|field| (*field).to_owned()));
    for (path, text) in pages() {
        for word in code(&text).flat_map(|code| words(code, |c| !" []=,".contains(c))) {
            let section = word.split('.').next().unwrap_or_default();
            let dotted = word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
            if dotted && word.contains('.') && sections.contains(section) {
                assert!(
                    KEYS.iter().any(|key| key.path.starts_with(word)),
                    "{}: {word}",
                    path.display()
                );
            }
        }
        for word in words(&text, |c| {
            c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'
        }) {
            let named = word.starts_with("ASPEN_") && word != "ASPEN_";
            assert!(
                !named || variables.contains(word),
                "{}: {word}",
                path.display()
            );
        }
    }
}

#[test]
fn every_event_is_listed_and_every_message_id_is_one() {
    let text = page("docs/journal.md");
    let listed = table(&text, "event");
    let listed: Vec<_> = listed
        .iter()
        .map(|row| (row[0], row[1], row[2].replace('`', "")))
        .collect();
    let known = events::ALL
        .iter()
        .map(|event| (event.name, event.id, event.fields.join(", ")));
    assert_eq!(listed, known.collect::<Vec<_>>());
    for (path, text) in pages() {
        for id in text
            .split("MESSAGE_ID=")
            .skip(1)
            .filter(|rest| !rest.starts_with("ID"))
        {
            let id: String = id.chars().take_while(char::is_ascii_alphanumeric).collect();
            assert!(
                events::ALL.iter().any(|event| event.id == id),
                "{}: {id}",
                path.display()
            );
        }
    }
}

#[test]
fn every_file_that_is_named_is_in_the_tree_or_in_the_data_directory() {
    let in_tree = [
        "src/",
        "tests/",
        "docs/",
        "benches/",
        "examples/",
        "systemd/",
        "packaging/",
        ".ci/",
    ];
    let layout = include_str!("../src/layout.rs");
    for (path, text) in pages() {
        // The directory listing in the README is a block, not words between backticks.
        let first = text.lines().filter_map(|line| line.split(' ').next());
        for word in code(&text).chain(first) {
            let word = word.split(' ').next().unwrap();
            if in_tree.iter().any(|dir| word.starts_with(dir)) {
                assert!(root().join(word).exists(), "{}: {word}", path.display());
            }
            // state-machine.db-wal is named as state-machine.db is, with what SQLite adds.
            let stem = ["state-machine", "raft-log", "aspen.", "migrations."];
            if stem.iter().any(|stem| word.starts_with(stem)) {
                let name = strip(word);
                assert!(
                    layout.contains(&format!("\"{name}\"")),
                    "{}: {word}",
                    path.display()
                );
            }
        }
    }
}

/// The file that `name` lies beside: without what SQLite, a backup or a half-made file adds.
fn strip(name: &str) -> &str {
    let added = [".aspen-tmp", ".backup", ".set-aside", "-wal", "-shm"];
    let end = added.iter().filter_map(|added| name.find(added)).min();
    &name[..end.unwrap_or(name.len())]
}
