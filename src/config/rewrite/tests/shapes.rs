//! Every way of writing the same configuration, before and after.

use proptest::prelude::*;

use super::super::edit::edit;
use super::*;
use crate::config::fragments::Source;

fn edited(text: &str) -> String {
    let new = edit(text, &migrated()).unwrap();
    assert_eq!(
        edit(&new, &migrated()).unwrap(),
        new,
        "a second edit changes nothing"
    );
    new
}

/// The table in line, as it stands in a table that is itself in line.
const IN_LINE: &str = r#"migrated = { from = "redb", to = "sqlite", at = "2026-11-22T18:37:34Z", fingerprint = "v2:12:0011", keys = 1234, last_applied = 1300, backup = "/srv/state-machine.redb.backup-20261122-183734", version = "0.1.0" }"#;

#[test]
fn a_file_that_says_nothing_of_the_cluster_gets_both_tables() {
    let both = format!("[cluster]\nstorage_backend = \"sqlite\"\n\n{TABLE}");
    assert_eq!(edited(""), both);
    assert_eq!(edited("\u{feff}"), format!("\u{feff}{both}"));
    assert_eq!(
        edited("[node]\nid = 3\n"),
        format!("[node]\nid = 3\n\n{both}")
    );
    assert_eq!(edited("# no line end"), format!("# no line end\n\n{both}"));
    assert_eq!(edited("a = 1\n\n"), format!("a = 1\n\n{both}"));
}

#[test]
fn only_the_value_of_the_backend_changes_in_its_line() {
    for (old, new) in [
        ("\"redb\"", "\"sqlite\""),
        ("'redb'", "\"sqlite\""),
        ("\"\"\"redb\"\"\"", "\"sqlite\""),
        ("'sqlite'", "'sqlite'"),
    ] {
        let text = |value| {
            format!("[ 'cluster' ]  # c\n\t storage_backend\t=  {value}\t# \"redb\"\n# end\n")
        };
        assert_eq!(edited(&text(old)), format!("{}\n{TABLE}", text(new)));
    }
}

#[test]
fn a_table_without_the_backend_gets_it_below_its_header() {
    let rest = "[cluster.sqlite]\npool_size = 3\n";
    assert_eq!(
        edited(&format!("[\"cluster\"] # ours\n# more\n{rest}")),
        format!("[\"cluster\"] # ours\nstorage_backend = \"sqlite\"\n# more\n{rest}\n{TABLE}")
    );
    // Where only a table inside it has a header, it gets its own.
    assert_eq!(
        edited(rest),
        format!("{rest}\n[cluster]\nstorage_backend = \"sqlite\"\n\n{TABLE}")
    );
    // A header that ends the file, with no line end.
    assert_eq!(
        edited("[cluster]"),
        format!("[cluster]\nstorage_backend = \"sqlite\"\n\n{TABLE}")
    );
}

#[test]
fn dotted_keys_stay_dotted_and_where_they_are() {
    let text = "cluster.storage_backend = \"redb\"\nnode.id = 3\ncluster.sqlite.pool_size = 3\n";
    assert_eq!(
        edited(text),
        format!("{}\n{TABLE}", text.replace("redb", "sqlite"))
    );
    let text = "\u{feff}node.id = 3\n  cluster . sqlite.pool_size = 3 # c\n[log]\n";
    assert_eq!(
        edited(text),
        format!(
            "{}\n{TABLE}",
            text.replace(
                "  cluster",
                "  cluster . storage_backend = \"sqlite\"\n  cluster"
            )
        )
    );
}

#[test]
fn an_inline_table_stays_in_its_line() {
    assert_eq!(
        edited(
            "cluster = { storage_backend = \"redb\", sqlite = { pool_size = 3 } } # c\n[node]\nid = 1"
        ),
        format!(
            "cluster = {{ {IN_LINE}, storage_backend = \"sqlite\", sqlite = {{ pool_size = 3 }} }} # c\n[node]\nid = 1"
        )
    );
    assert_eq!(
        edited("cluster = {}\n"),
        format!("cluster = {{ storage_backend = \"sqlite\", {IN_LINE} }}\n")
    );
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_stay() {
    let text = "\u{feff}# c\r\n[cluster]\r\nstorage_backend = \"redb\"\r\n[node]\r\nid = 3";
    let table = TABLE.replace('\n', "\r\n");
    assert_eq!(
        edited(text),
        format!("{}\r\n\r\n{table}", text.replace("redb", "sqlite"))
    );
}

/// An earlier record, of a file that an operator has edited since.
const EARLIER: &str = "[cluster]\nstorage_backend = \"redb\"\n[cluster.migrated] # note\nfrom = \"redb\" # x\nto = \"sqlite\"\n# kept\nat = \"2025-01-01T00:00:00Z\"\nkeys = 7\nlast_applied = 8\nfingerprint = 'f'\nticket = 42\n[log]\n";

#[test]
fn an_earlier_record_is_brought_up_to_date_in_place() {
    assert_eq!(
        edited(EARLIER),
        "[cluster]\nstorage_backend = \"sqlite\"\n[cluster.migrated] # note\n\
         backup = \"/srv/state-machine.redb.backup-20261122-183734\"\nversion = \"0.1.0\"\n\
         from = \"redb\" # x\nto = \"sqlite\"\n# kept\nat = \"2026-11-22T18:37:34Z\"\nkeys = 1234\n\
         last_applied = 1300\nfingerprint = \"v2:12:0011\"\nticket = 42\n[log]\n"
    );
    let nothing_applied = Migrated {
        last_applied: None,
        ..migrated()
    };
    let new = edit(EARLIER, &nothing_applied).unwrap();
    assert!(!new.contains("last_applied"), "{new}");
    assert!(
        new.contains("keys = 1234\nfingerprint = \"v2:12:0011\"\n"),
        "{new}"
    );

    let dotted = "[cluster]\nmigrated.from = \"redb\"\nmigrated.keys = 7\n";
    let new = edited(dotted);
    assert!(
        new.starts_with("[cluster]\nstorage_backend = \"sqlite\"\nmigrated.to = \"sqlite\"\n"),
        "{new}"
    );
    assert!(
        new.ends_with("migrated.from = \"redb\"\nmigrated.keys = 1234\n"),
        "{new}"
    );

    let in_line = "[cluster]\nmigrated = { keys = 7, last_applied = 9 } # c\n";
    assert_eq!(
        edited(in_line),
        format!("[cluster]\nstorage_backend = \"sqlite\"\n{IN_LINE} # c\n")
    );
}

#[test]
fn forms_that_only_a_person_should_change_are_refused() {
    for text in [
        "cluster = 5\n",
        "[[cluster]]\n",
        "[cluster.storage_backend]\n",
        "[cluster]\nmigrated = 1\n",
        "[[cluster.migrated]]\n",
        "[cluster.migrated.from]\n",
        "cluster = { migrated.from = \"x\" }\n",
        "cluster = { migrated = { from = \"x\" }, migrated.to = \"x\" }\n",
    ] {
        let refused = edit(text, &migrated()).unwrap_err();
        assert!(
            matches!(refused, Failure::Form { .. } | Failure::Parse { .. }),
            "{text}: {refused}"
        );
    }
}

/// Lines of a valid configuration; some stand for several lines that belong together.
#[derive(Clone, Debug)]
struct Layout {
    lines: Vec<String>,
    line_end: &'static str,
    mark: bool,
    last_line_end: bool,
}

impl Layout {
    fn text(&self) -> String {
        let mut text = self.lines.join("\n");
        if self.last_line_end {
            text.push('\n');
        }
        let text = text.replace('\n', self.line_end);
        if self.mark {
            format!("\u{feff}{text}")
        } else {
            text
        }
    }
}

/// Each a piece that may stand at the top, before any header.
fn top() -> impl Strategy<Value = Vec<String>> {
    let pieces = prop::sample::subsequence(
        vec![
            "node.id = 3",
            "node.data_dir = '/srv'",
            "http = { listen = \"127.0.0.1:1\" } # h",
        ],
        0..=3,
    );
    pieces.prop_map(|pieces| pieces.into_iter().map(str::to_owned).collect())
}

fn backend_line() -> impl Strategy<Value = Option<String>> {
    let value = prop::sample::select(vec!["\"redb\"", "'redb'", "\"sqlite\"", "\"\"\"redb\"\"\""]);
    let comment = prop::sample::select(vec!["", " # why", "\t#"]);
    let line =
        (value, comment).prop_map(|(value, comment)| format!("storage_backend = {value}{comment}"));
    prop::option::of(line)
}

/// The cluster in one of its forms: pieces at the top, and pieces with headers.
fn cluster() -> impl Strategy<Value = (Vec<String>, Vec<String>)> {
    (0..6, backend_line(), any::<bool>(), 0..3).prop_map(|(form, backend, sqlite, record)| {
        let backend: Vec<String> = backend.into_iter().collect();
        let record = match record {
            0 => vec![
                "[cluster.migrated] # r".to_owned(),
                "keys = 1".into(),
                "last_applied = 2".into(),
            ],
            _ => vec![],
        };
        let pool = if sqlite {
            vec!["[ cluster.sqlite ]".to_owned(), "pool_size = 5 # p".into()]
        } else {
            vec![]
        };
        match form {
            0 => (vec![], pool),
            1 => (
                vec![],
                [vec!["[cluster]".into()], backend, pool, record].concat(),
            ),
            2 => (
                vec![],
                [pool, record, vec!["[\"cluster\"]".into()], backend].concat(),
            ),
            3 => {
                let dotted = backend.iter().map(|line| format!("cluster.{line}"));
                (dotted.collect(), [pool, record].concat())
            }
            4 => {
                let dotted = backend.iter().map(|line| format!(" \"cluster\" .  {line}"));
                (
                    dotted
                        .chain(["cluster.peer_listen = '127.0.0.1:9'".into()])
                        .collect(),
                    record,
                )
            }
            _ => {
                let value = backend
                    .first()
                    .map(|line| line.split('#').next().unwrap().trim());
                let inside = value.map_or_else(String::new, |value| format!(" {value} "));
                (vec![format!("cluster = {{{inside}}} # c")], vec![])
            }
        }
    })
}

fn other_tables() -> impl Strategy<Value = Vec<String>> {
    let tables = prop::sample::subsequence(
        vec![
            "[log]\nfilter = \"\"\"info,\\\n  aspen=debug\"\"\"",
            "[migration]\n  backup   = 'link'  ",
            "[log2]",
        ],
        0..=2,
    );
    tables.prop_map(|tables| {
        let kept = tables.into_iter().filter(|table| *table != "[log2]");
        kept.map(str::to_owned).collect()
    })
}

fn layout() -> impl Strategy<Value = Layout> {
    let noise = prop::sample::select(vec![
        "# a comment: [cluster]",
        "",
        "#",
        "   # storage_backend = \"redb\"",
        "\t",
    ]);
    let noise = prop::collection::vec((any::<prop::sample::Index>(), noise), 0..6);
    let ends = (
        prop::sample::select(vec!["\n", "\r\n"]),
        any::<bool>(),
        any::<bool>(),
    );
    (top(), cluster(), other_tables(), any::<bool>(), noise, ends).prop_map(
        |(top, (dotted, headed), other, dotted_first, noise, (line_end, mark, last_line_end))| {
            let top = if dotted_first {
                [dotted, top].concat()
            } else {
                [top, dotted].concat()
            };
            let tables = if dotted_first {
                [headed, other].concat()
            } else {
                [other, headed].concat()
            };
            let mut lines = [top, tables].concat();
            for (at, line) in noise {
                lines.insert(at.index(lines.len() + 1), line.into());
            }
            Layout {
                lines,
                line_end,
                mark,
                last_line_end,
            }
        },
    )
}

/// What the file sets, by path, except what a migration changes.
fn settings(text: &str) -> Vec<(String, String)> {
    let source = Source::file(Path::new("c"), text.as_bytes());
    assert_eq!(source.problems, []);
    let others = source
        .fragments
        .iter()
        .filter(|f| f.path != "cluster.storage_backend");
    let mut set: Vec<_> = others
        .map(|f| (f.path.clone(), format!("{:?}", f.value)))
        .collect();
    set.sort();
    set
}

/// Lines that a migration may change: they hold the backend, or a part of the record.
fn may_change(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}').trim_start();
    let changed = [
        "storage_backend",
        "\"cluster\" .  storage_backend",
        "cluster.storage_backend",
        "cluster = {",
    ];
    changed
        .iter()
        .chain(&["keys", "last_applied"])
        .any(|start| line.starts_with(start))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_other_line_stays_byte_for_byte_and_in_order(layout in layout()) {
        let old = layout.text();
        let new = edit(&old, &migrated()).unwrap();

        prop_assert_eq!(settings(&old), settings(&new));
        let document: toml_edit::DocumentMut = new.parse().unwrap();
        let cluster = document["cluster"].as_table_like().unwrap();
        prop_assert_eq!(cluster.get("storage_backend").unwrap().as_str(), Some("sqlite"));
        prop_assert_eq!(cluster.get("migrated").unwrap()["last_applied"].as_integer(), Some(1300));
        prop_assert_eq!(old.starts_with('\u{feff}'), new.starts_with('\u{feff}'));

        // Old lines are found again in order; one that may change is found with the
        // same comment. Everything between them is of the program's own making.
        let mut new_lines = new.split_inclusive('\n').map(|line| line.trim_start_matches('\u{feff}'));
        let mut inserted = String::new();
        for line in old.split_inclusive('\n').map(|line| line.trim_start_matches('\u{feff}')) {
            let (code, comment) = line.split_at(line.rfind('#').unwrap_or(line.len()));
            let found = new_lines.find(|new| {
                let ended = new.strip_suffix("\r\n").or(new.strip_suffix('\n'));
                let whole = *new == line || ended == Some(line);
                let comment_kept = !comment.is_empty() && new.trim_end().ends_with(comment.trim_end());
                let changed = may_change(code) && (comment.is_empty() || comment_kept);
                let found = whole || (changed && may_change(new));
                if !found {
                    inserted.push_str(new);
                }
                found
            });
            prop_assert!(found.is_some(), "{line:?} is lost in {new}");
        }
        inserted.extend(new_lines);
        for line in inserted.lines() {
            let own = ["", "[cluster]", "# Written by"].contains(&line) || TABLE.contains(line)
                || line.ends_with("storage_backend = \"sqlite\"");
            prop_assert!(own, "{line:?} was added to {old}");
        }
        if layout.line_end == "\r\n" && old.contains("\r\n") {
            prop_assert_eq!(new.matches('\n').count(), new.matches("\r\n").count());
        }

        prop_assert_eq!(&edit(&new, &migrated()).unwrap(), &new);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[\\[\\]{}=.,\"'# \r\na-c0-9]{0,60}") {
        if let Ok(new) = edit(&text, &migrated()) {
            prop_assert_eq!(&edit(&new, &migrated()).unwrap(), &new);
        }
    }

    #[test]
    fn arbitrary_words_of_a_configuration_never_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            "cluster", "migrated", "storage_backend", "from", "last_applied", "=", "=", ".", "[", "]", "{", "}",
            "\n", "\n", "\r\n", " ", "\"x\"", "'redb'", "7", ",", "# c", "\u{feff}", "\"cluster\"",
        ]), 0..24),
    ) {
        if let Ok(new) = edit(&words.concat(), &migrated()) {
            prop_assert_eq!(&edit(&new, &migrated()).unwrap(), &new);
        }
    }
}
