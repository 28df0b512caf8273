//! The packages under test, and the release that comes after them.

use crate::common::all_tests_required;
use crate::rig::text;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of the release that upgrade tests go on to: the same programs under a higher number.
pub(crate) const NEXT_VERSION: &str = "99.0.0";
/// What a package is made from.
const SOURCES: [&str; 8] = [
    "src",
    "Cargo.toml",
    "Cargo.lock",
    "packaging",
    "systemd",
    "docs",
    "README.md",
    "CHANGELOG.md",
];

/// A kind of package.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Deb,
    Rpm,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// The package of this tree. `None`, and the reason on standard error, where it has not been built
/// since something that is in it changed, unless `ASPEN_REQUIRE_ALL_TESTS=1` makes that a failure.
pub(crate) fn package(kind: Kind) -> Option<PathBuf> {
    let (deb, rpm) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "aarch64"),
        other => ("amd64", other),
    };
    let name = match kind {
        Kind::Deb => format!("aspen_{VERSION}-1_{deb}.deb"),
        Kind::Rpm => format!("aspen-{VERSION}-1.{rpm}.rpm"),
    };
    let path = target().join("packages/dev").join(name);
    let built = path.metadata().and_then(|metadata| metadata.modified());
    let newest = newest_source();
    if built.is_ok_and(|built| built >= newest) {
        return Some(path);
    }
    let why = format!(
        "{} is missing, or older than what it is made from: run packaging/build --profile dev",
        path.display()
    );
    assert!(!all_tests_required(), "{why}");
    // Not eprintln: the harness would keep that from whoever runs the tests.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
    None
}

fn newest_source() -> SystemTime {
    let mut left: Vec<PathBuf> = SOURCES.map(|name| root().join(name)).into();
    let mut newest = SystemTime::UNIX_EPOCH;
    while let Some(path) = left.pop() {
        let metadata = path.metadata().unwrap();
        if metadata.is_dir() {
            let entries = std::fs::read_dir(path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        } else {
            newest = newest.max(metadata.modified().unwrap());
        }
    }
    newest
}

/// The release after this one. Its templates differ too, so that an upgrade that put them in the
/// place of what is configured would show.
pub(crate) fn next(kind: Kind) -> Option<PathBuf> {
    static DEB: OnceLock<PathBuf> = OnceLock::new();
    static RPM: OnceLock<PathBuf> = OnceLock::new();
    let package = package(kind)?;
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("next-{kind:?}"));
    let (made, script) = match kind {
        Kind::Deb => (&DEB, NEXT_DEB),
        Kind::Rpm => (&RPM, NEXT_RPM),
    };
    let make = || {
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new("sh");
        command.args(["-euc", script]).current_dir(&dir);
        command.env("PACKAGE", package).env("VERSION", NEXT_VERSION);
        command.env("SPEC", root().join("packaging/rpm/aspen.spec"));
        let made = command.output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        dir.join("next")
    };
    Some(made.get_or_init(make).clone())
}

const NEXT_DEB: &str = r#"
    dpkg-deb -R "$PACKAGE" tree
    sed -i "s/^Version: .*/Version: $VERSION-1/" tree/DEBIAN/control
    find tree/usr/share/aspen -maxdepth 1 -type f | while read -r template; do
      echo '# Of the next release.' >>"$template"
    done
    dpkg-deb -Zgzip -z1 --root-owner-group -b tree next"#;
const NEXT_RPM: &str = r#"
    mkdir -p tree/usr/lib/debug/.build-id
    cd tree; rpm2cpio "$PACKAGE" | cpio --quiet -id; cd ..
    find tree/usr/share/aspen/config.toml tree/etc -type f | while read -r template; do
      echo '# Of the next release.' >>"$template"
    done
    rpmbuild --quiet -bb --define "aspen_version $VERSION" --define "staged $PWD/tree" \
      --define 'aspen_maintainer T <t@localhost>' --define 'aspen_date Thu Jan 01 2026' \
      --define 'aspen_payload w1.gzdio' --define "_topdir $PWD/work" --define "_rpmdir $PWD" "$SPEC"
    mv */aspen-"$VERSION"-1.*.rpm next"#;
