//! What is in the packages, and what the distributions' own checkers say of them.

use crate::common::all_tests_required;
use crate::made::{Kind, package};
use crate::rig::text;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Write as _};
use std::process::Command;

/// What a program printed on both outputs; `None` where there is no such program.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(text(&output.stdout) + &text(&output.stderr)),
        Err(error) if error.kind() == ErrorKind::NotFound && !all_tests_required() => {
            // Not eprintln: the harness would keep that from whoever runs the tests.
            let _ = writeln!(std::io::stderr(), "skipped, needs {program}");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// The plain files in a package.
fn files(kind: Kind) -> Option<BTreeSet<String>> {
    let package = package(kind)?;
    let package = package.to_str().unwrap();
    let listed = match kind {
        Kind::Deb => said("dpkg-deb", &["--contents", package])?,
        Kind::Rpm => said("rpm", &["-qplv", package])?,
    };
    let plain = listed.lines().filter(|line| line.starts_with('-'));
    let path = |line: &str| {
        let path = line.split_whitespace().last().unwrap();
        path.strip_prefix('.').unwrap_or(path).to_owned()
    };
    Some(plain.map(path).collect())
}

/// What both packages bring, under the same names.
const COMMON: [&str; 23] = [
    "/usr/bin/aspen-migrate",
    "/usr/bin/aspen-node",
    "/usr/bin/aspen-rolling-restart",
    "/usr/lib/systemd/catalog/aspen.catalog",
    "/usr/lib/systemd/system/aspen-node.service",
    "/usr/lib/systemd/system/aspen-node@.service",
    "/usr/lib/sysusers.d/aspen.conf",
    "/usr/lib/tmpfiles.d/aspen.conf",
    "/usr/libexec/aspen/restart-nodes",
    "/usr/share/aspen/config.toml",
    "/usr/share/aspen/grafana/aspen.json",
    "/usr/share/aspen/prometheus/aspen.rules.yml",
    "/usr/share/bash-completion/completions/aspen-migrate",
    "/usr/share/bash-completion/completions/aspen-node",
    "/usr/share/doc/aspen/README.md",
    "/usr/share/doc/aspen/docs/benchmarks.md",
    "/usr/share/doc/aspen/docs/design.md",
    "/usr/share/doc/aspen/docs/operations.md",
    "/usr/share/fish/vendor_completions.d/aspen-migrate.fish",
    "/usr/share/fish/vendor_completions.d/aspen-node.fish",
    "/usr/share/man/man1/aspen-migrate.1.gz",
    "/usr/share/man/man8/aspen-node.8.gz",
    "/usr/share/man/man8/aspen-rolling-restart.8.gz",
];

#[track_caller]
fn assert_holds(kind: Kind, besides: &[&str]) {
    let Some(files) = files(kind) else { return };
    let wanted: BTreeSet<_> = COMMON.iter().chain(besides).copied().collect();
    let found: BTreeSet<_> = files.iter().map(String::as_str).collect();
    // Pages of documentation may be added without a word here.
    let is_page = |path: &str| path.starts_with("/usr/share/doc/aspen/") && path.ends_with(".md");
    let missing: Vec<_> = wanted.difference(&found).collect();
    let unknown: Vec<_> = found.difference(&wanted).filter(|p| !is_page(p)).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "{missing:?} {unknown:?}"
    );
}

/// Nothing in /etc: dpkg would ask about it one day.
#[test]
fn the_debian_package_holds_what_it_should_and_no_conffile() {
    assert_holds(
        Kind::Deb,
        &[
            "/usr/share/aspen/aspen-node.default",
            "/usr/share/aspen/logrotate",
            "/usr/share/doc/aspen/changelog.Debian.gz",
            "/usr/share/doc/aspen/changelog.gz",
            "/usr/share/doc/aspen/copyright",
            "/usr/share/lintian/overrides/aspen",
            "/usr/share/zsh/vendor-completions/_aspen-migrate",
            "/usr/share/zsh/vendor-completions/_aspen-node",
        ],
    );
}

/// Not the configuration: rpm would put another one in its place one day.
#[test]
fn the_rpm_holds_what_it_should_and_not_the_configuration() {
    assert_holds(
        Kind::Rpm,
        &[
            "/etc/default/aspen-node",
            "/etc/logrotate.d/aspen",
            "/usr/share/doc/aspen/CHANGELOG.md",
            "/usr/share/licenses/aspen/LICENSE",
            "/usr/share/zsh/site-functions/_aspen-migrate",
            "/usr/share/zsh/site-functions/_aspen-node",
        ],
    );
    let Some(package) = package(Kind::Rpm) else {
        return;
    };
    let config = said("rpm", &["-qpc", package.to_str().unwrap()]).unwrap();
    assert!(!config.contains("/etc/aspen"), "{config}");
}

#[test]
fn lintian_has_nothing_to_say() {
    let Some(package) = package(Kind::Deb) else {
        return;
    };
    let package = package.to_str().unwrap();
    let options = ["--allow-root", "--pedantic", "--display-info", package];
    let Some(found) = said("lintian", &options) else {
        return;
    };
    assert_eq!(found.trim(), "");
}

#[test]
fn rpmlint_has_nothing_to_say() {
    let Some(package) = package(Kind::Rpm) else {
        return;
    };
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/rpm/rpmlint.toml");
    let Some(found) = said("rpmlint", &["-c", config, package.to_str().unwrap()]) else {
        return;
    };
    assert!(found.contains(" 0 errors, 0 warnings"), "{found}");
}
