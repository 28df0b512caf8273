//! Writes the man pages and the shell completions, out of what `--help`, the
//! configuration and the data directory are made of:
//!
//! ```text
//! cargo run --example manual -- OUTDIR
//! ```
//!
//! makes `aspen-node.8`, `aspen-migrate.1`, and for each program completions
//! for bash, zsh and fish.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;

use aspen::config::DEFAULT_FILE;
use aspen::config::keys::KEYS;
use aspen::config::settings::Backend;
use aspen::layout;
use clap::builder::PossibleValuesParser;
use clap::{Command, CommandFactory as _, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: manual OUTDIR")?;
    std::fs::create_dir_all(&dir)?;
    for mut page in pages() {
        let name = page.command.get_name().to_owned();
        let path = Path::new(&dir).join(format!("{name}.{}", page.section));
        page.write(&mut std::fs::File::create(path)?)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut page.command, &name, &dir)?;
        }
    }
    Ok(())
}

/// One program's page.
struct Page {
    command: Command,
    section: &'static str,
    /// Sections beyond those that `--help` has: a title, and terms with their text.
    more: Vec<(&'static str, Vec<(String, String)>)>,
    see_also: &'static str,
}

fn pages() -> [Page; 2] {
    let node = aspen::supervisor::Arguments::command()
        .mut_arg("data_dir", |arg| arg.value_hint(ValueHint::DirPath))
        .mut_arg("storage_backend", |arg| {
            arg.value_parser(PossibleValuesParser::new(Backend::NAMES))
        });
    [
        Page {
            command: node,
            section: "8",
            more: vec![
                ("CONFIGURATION", configuration()),
                ("ENVIRONMENT", environment()),
                ("FILES", files()),
            ],
            see_also: "aspen-migrate(1), journalctl(1), systemd.service(5)",
        },
        Page {
            command: aspen::offline::Arguments::command(),
            section: "1",
            more: Vec::new(),
            see_also: "aspen-node(8), sqlite3(1)",
        },
    ]
}

impl Page {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut command = self.command.clone();
        // As `--help` has it; left to itself the page lists every option in brackets.
        let usage = command.render_usage().to_string();
        let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
        let man = Man::new(command.override_usage(usage))
            .section(self.section)
            .date(" ") // not empty, or what follows it would take its place
            .manual("Aspen");
        man.render_title(out)?;
        man.render_name_section(out)?;
        man.render_synopsis_section(out)?;
        man.render_description_section(out)?;
        man.render_options_section(out)?;
        let mut rest = Roff::new();
        self.after_help(&mut rest);
        for (title, entries) in &self.more {
            rest.control("SH", [*title]);
            for (term, text) in entries {
                rest.control("TP", []);
                rest.text([bold(term.as_str())]);
                rest.text([roman(text.as_str())]);
            }
        }
        rest.control("SH", ["SEE ALSO"]);
        rest.text([roman(self.see_also)]);
        rest.to_writer(out)
    }

    /// What `--help` says below the options, line by line: `Title:`, then indented text.
    fn after_help(&self, page: &mut Roff) {
        let text = self.command.get_after_help().map(ToString::to_string);
        let mut verbatim = false;
        for line in text.unwrap_or_default().lines() {
            match line
                .strip_suffix(':')
                .filter(|title| !title.starts_with(' '))
            {
                Some(title) => {
                    if std::mem::take(&mut verbatim) {
                        page.control("fi", []);
                    }
                    page.control("SH", [title.to_uppercase().as_str()]);
                }
                None => {
                    if !std::mem::replace(&mut verbatim, true) {
                        page.control("nf", []);
                    }
                    page.text([roman(line)]);
                }
            }
        }
        if verbatim {
            page.control("fi", []);
        }
    }
}

fn configuration() -> Vec<(String, String)> {
    let entries = KEYS.iter().map(|key| {
        let mut text = key.doc.to_owned();
        if let Some(default) = key.default {
            text += &format!(" Default: {default}.");
        }
        if let Some(short) = key.short {
            text += &format!(" Environment: {short}.");
        }
        (key.path.to_owned(), text)
    });
    entries.collect()
}

fn environment() -> Vec<(String, String)> {
    let entries = [
        (
            "ASPEN_CONFIG",
            "The configuration file, where --config names none.",
        ),
        (
            "ASPEN_SECTION__KEY",
            "Any key of the configuration: ASPEN_ and its path in capitals, joined by two \
             underscores, such as ASPEN_CLUSTER__SQLITE__POOL_SIZE. An unknown name that begins \
             with ASPEN_ is refused.",
        ),
        (
            "STATE_DIRECTORY",
            "Set by systemd: where the data lies when nothing else says so.",
        ),
    ];
    entries.map(owned).into()
}

fn files() -> Vec<(String, String)> {
    let entries = [
        (DEFAULT_FILE, "The configuration, where none is named."),
        (
            layout::STATE_MACHINE_SQLITE,
            "In the data directory: the state machine.",
        ),
        (
            layout::STATE_MACHINE_REDB,
            "The state machine of a legacy node.",
        ),
        (
            "state-machine.redb.backup-YYYYMMDD-HHMMSS",
            "What a migration kept of it; the time is in UTC.",
        ),
        (layout::RAFT_LOG, "The Raft log."),
        (layout::HISTORY, "One line of JSON for each migration."),
        (
            layout::LOCK,
            "Held while a program uses the directory. Never remove it.",
        ),
    ];
    entries.map(owned).into()
}

fn owned((term, text): (&str, &str)) -> (String, String) {
    (term.to_owned(), text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::process::Stdio;

    fn written(page: &Page) -> String {
        let mut bytes = Vec::new();
        page.write(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// As a reader sees it, as far as a search for a word needs that.
    fn plain(page: &Page) -> String {
        written(page).replace("\\-", "-")
    }

    #[test]
    fn the_pages_name_every_option_key_and_exit_code_of_their_program() {
        for page in &pages() {
            let text = plain(page);
            for option in page.command.get_opts() {
                let long = option.get_long().unwrap();
                assert!(text.contains(&format!("--{long}")), "{long}: {text}");
            }
            for title in ["EXAMPLES", "\"EXIT STATUS\"", "\"SEE ALSO\""] {
                assert!(text.contains(&format!(".SH {title}\n")), "{title}: {text}");
            }
        }
        let [node, _] = &pages();
        let text = plain(node);
        for key in KEYS {
            assert!(text.contains(key.path), "{}", key.path);
        }
    }

    #[test]
    fn the_formatter_finds_nothing_to_complain_of() {
        let mut groff = std::process::Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-rCHECKSTYLE=3", "-z"]);
        groff.stdin(Stdio::piped()).stderr(Stdio::piped());
        for page in &pages() {
            let mut child = match groff.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let all = std::env::var("ASPEN_REQUIRE_ALL_TESTS").is_ok_and(|v| v == "1");
                    assert!(!all, "groff: {error}");
                    // Not eprintln: the harness would keep that from whoever runs the tests.
                    let _ = writeln!(io::stderr(), "skipped, needs groff: {error}");
                    return;
                }
            };
            let text = written(page);
            child
                .stdin
                .take()
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            let output = child.wait_with_output().unwrap();
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && complaints.is_empty(),
                "{complaints}\n{text}"
            );
        }
    }
}
