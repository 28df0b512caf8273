//! What Prometheus collects from real nodes, and what is made for it: the alert
//! rules and the dashboard ask for nothing that no node tells.
//!
//! `promtool` is of Debian's package `prometheus`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::client::{ask, put, until};
use common::cluster::Cluster;
use common::fixture::scratch;
use common::node::{get, node_on, request, send};
use common::scenario::Scenario;
use serde_json::Value;

const TOKEN: &str = "the-token-of-the-test-0123456789";

/// The tool, if it is there.
fn promtool() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path);
    let found = dirs.find_map(|dir| Some(dir.join("promtool")).filter(|tool| tool.is_file()));
    if found.is_none() {
        assert!(!common::all_tests_required(), "promtool is not there");
        // Not eprintln: the harness would keep that from whoever runs the tests.
        let _ = writeln!(std::io::stderr(), "skipped, needs promtool");
    }
    found
}

/// Runs the tool, which must have nothing to complain of.
fn run(tool: &Path, arguments: &[&str], input: &str) {
    let mut command = Command::new(tool);
    command.args(arguments).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(output.status.success(), "{arguments:?}: {told}\n{input}");
}

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

fn metrics(address: SocketAddr) -> String {
    let answer = get(address, "/metrics");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// The value of the sample that a line begins with.
fn sample(address: SocketAddr, name: &str) -> f64 {
    let text = metrics(address);
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

#[test]
fn promtool_finds_nothing_wrong_with_the_names_and_their_help() {
    let Some(tool) = promtool() else { return };
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let mut node = copy.launch().start();
    let address = node.ready();
    put(address, "key", "value");
    run(&tool, &["check", "metrics"], &metrics(address));
    node.stop().with(0);
}

#[test]
fn prometheus_gets_open_metrics_with_units_and_an_end() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let headers = [("Host", "localhost"), ("Accept", accept)];
    let answer = request(address, "GET", "/metrics", &headers);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(kind));
    assert!(
        answer
            .body
            .contains("# UNIT aspen_log_sync_duration_seconds seconds\n")
    );
    assert!(answer.body.ends_with("# EOF\n"));
    let plain = get(address, "/metrics");
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(plain.header("content-type"), Some(kind));
    // Every other line is the same.
    let samples = |text: &str| {
        let names = text.lines().filter(|line| !line.starts_with('#'));
        let names = names.map(|line| line.rsplit_once(' ').unwrap().0.to_owned());
        names.collect::<BTreeSet<_>>()
    };
    assert!(samples(&answer.body).is_subset(&samples(&plain.body)));
    node.stop().with(0);
}

#[test]
fn what_happens_is_counted() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    let before = sample(address, "aspen_log_sync_duration_seconds_count");
    for n in 0..5 {
        put(address, &format!("key-{n}"), "value");
    }
    assert!(sample(address, "aspen_log_sync_duration_seconds_count") > before);
    assert!(sample(address, "aspen_log_write_duration_seconds_count") > before);
    assert_eq!(sample(address, "aspen_write_duration_seconds_count"), 5.0);
    let puts = r#"aspen_http_requests_total{method="PUT",route="/api/kv/{key}",status="200"}"#;
    assert_eq!(sample(address, puts), 5.0);
    assert_eq!(send(address, "POST", "/admin/checkpoint", "").status, 200);
    assert_eq!(
        sample(address, "aspen_storage_checkpoint_duration_seconds_count"),
        1.0
    );
    assert_eq!(send(address, "POST", "/admin/snapshot", "").status, 200);
    assert!(sample(address, "aspen_raft_snapshot_duration_seconds_count") >= 1.0);
    let headers = [("Host", "localhost")];
    assert_eq!(
        request(address, "HEAD", "/admin/backup", &headers).status,
        200
    );
    let (head, copy) = common::node::exchange(address, "GET", "/admin/backup", &[], "");
    assert!(head.contains(" 200 ") && !copy.is_empty());
    let taken = || get(address, "/metrics");
    until(taken, |answer| {
        answer
            .body
            .contains("\naspen_backup_duration_seconds_count 1\n")
    });
    assert_eq!(sample(address, "aspen_raft_leader_changes_total"), 1.0);
    assert_eq!(sample(address, r#"aspen_raft_role{role="leader"}"#), 1.0);
    assert!(sample(address, "aspen_disk_free_bytes") > 0.0);
    assert!(sample(address, "process_resident_memory_bytes") > 1e6);
    assert!(sample(address, "aspen_http_connections") >= 1.0);
    assert!(sample(address, "aspen_http_connections_limit") >= 1.0);
    node.stop().with(0);
}

/// Requests that are not admitted reach no route; they were counted nowhere.
#[test]
fn who_is_not_admitted_is_counted_by_why() {
    let dir = scratch();
    let mut node = node_on(&dir).env("ASPEN_HTTP__TOKEN", TOKEN).start();
    let address = node.ready();
    let bearer = format!("Bearer {TOKEN}");
    let known = ("Authorization", bearer.as_str());
    let here = ("Host", "localhost");
    for _ in 0..3 {
        assert_eq!(request(address, "GET", "/api/kv/x", &[here]).status, 401);
    }
    let evil = ("Host", "evil.example");
    assert_eq!(
        request(address, "GET", "/api/kv/x", &[evil, known]).status,
        403
    );
    for _ in 0..2 {
        let refused = request(address, "POST", "/admin/snapshot", &[here, known]);
        assert_eq!(refused.status, 403);
    }
    let text = request(address, "GET", "/metrics", &[here, known]).body;
    for line in [
        r#"aspen_http_errors_total{code="unauthorized",status="401"} 3"#,
        r#"aspen_http_errors_total{code="host_not_allowed",status="403"} 1"#,
        r#"aspen_http_errors_total{code="forbidden",status="403"} 2"#,
        r#"aspen_http_errors_total{code="overloaded",status="503"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    node.stop().with(0);
}

/// The names of all samples of a text.
fn names(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| {
        let end = line.find(['{', ' ']).unwrap();
        line[..end].to_owned()
    };
    lines.map(name).collect()
}

/// Every name that a node can tell: of a leader with followers, of a node that
/// was migrated and serves TLS, and of one that migrates.
fn all_names() -> BTreeSet<String> {
    let mut cluster = Cluster::all(&["sqlite", "memory"]);
    let leader = cluster.leader();
    put(cluster.address(leader), "key", "value");
    let told = || ask(cluster.address(leader), "GET", "/metrics", None);
    let told = until(told, |answer| {
        answer.body.contains("aspen_raft_member_lag_entries{")
    });
    let mut all = names(&told.body);
    for id in cluster.ids() {
        cluster.stop(id);
    }
    all.extend(names(&migrated()));
    all.extend(names(&migrating()));
    // Prometheus' own.
    all.extend(["up", "ALERTS"].map(str::to_owned));
    all
}

fn migrated() -> String {
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let dir = scratch();
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    std::fs::write(&certificate, signed.cert.pem()).unwrap();
    std::fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    let mut node = copy
        .launch()
        .env("ASPEN_HTTP__TLS_CERTIFICATE", &certificate)
        .env("ASPEN_HTTP__TLS_KEY", &key)
        .start();
    let address = node.ready();
    let output = Command::new("curl")
        .args(["-sf", "--cacert"])
        .arg(&certificate)
        .args(["--connect-to", &format!("localhost::{address}")])
        .arg(format!("https://localhost:{}/metrics", address.port()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    node.stop().with(0);
    String::from_utf8(output.stdout).unwrap()
}

#[cfg(debug_assertions)]
fn migrating() -> String {
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let address = common::node::free_address();
    let mut node = copy.launch_slowly(address, 1000).start();
    assert!(node.says(" %: copy, "));
    let text = metrics(address);
    node.stop().with(0);
    text
}

/// Release builds have no slow copies.
#[cfg(not(debug_assertions))]
fn migrating() -> String {
    "aspen_migration_progress_ratio 0.5\n".to_owned()
}

/// The words of an expression that are names of metrics of ours.
fn asked(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = |word: &&str| {
        let name = word.starts_with("aspen_") || word.starts_with("process_");
        name || *word == "ALERTS" || *word == "up"
    };
    words.filter(ours).map(str::to_owned).collect()
}

/// The expressions of the rules, each on one line.
fn rules() -> Vec<String> {
    let text = std::fs::read_to_string(packaged("prometheus/aspen.rules.yml")).unwrap();
    let (mut found, mut lines) = (Vec::new(), text.lines().peekable());
    while let Some(line) = lines.next() {
        let Some(expression) = line.trim_start().strip_prefix("expr: ") else {
            continue;
        };
        let mut whole = expression.trim_start_matches('>').to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with("          ")) {
            whole.push(' ');
            whole.push_str(more.trim());
        }
        found.push(whole.trim().to_owned());
    }
    assert!(found.len() > 10, "{found:#?}");
    found
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(packaged("grafana/aspen.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The expressions of the dashboard's panels.
fn panels() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let expressions = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let expressions: Vec<_> = expressions.collect();
    assert!(expressions.len() > 20, "{expressions:#?}");
    expressions
}

#[test]
fn rules_and_dashboard_ask_for_what_nodes_tell_and_for_nothing_else() {
    let known = all_names();
    for expression in rules().iter().chain(&panels()) {
        let asked = asked(expression);
        assert!(!asked.is_empty(), "{expression}");
        for name in asked {
            assert!(known.contains(&name), "{name} in {expression}");
        }
    }
    let labels: String = dashboard()["templating"].to_string();
    for name in asked(&labels) {
        assert!(known.contains(&name), "{name} in {labels}");
    }
    // The page that explains them explains each, by the name of its family.
    let page = include_str!("../docs/metrics.md");
    for name in known.iter().filter(|name| name.contains('_')) {
        let ends = ["_bucket", "_count", "_sum"];
        let family = ends
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        assert!(
            page.contains(&format!("`{family}`")),
            "{family} is not in docs/metrics.md"
        );
    }
}

#[test]
fn the_alert_rules_are_valid_and_fire_when_they_should() {
    let Some(tool) = promtool() else { return };
    let path = |name: &str| packaged(name).to_str().unwrap().to_owned();
    run(
        &tool,
        &["check", "rules", &path("prometheus/aspen.rules.yml")],
        "",
    );
    run(
        &tool,
        &["test", "rules", &path("prometheus/aspen.rules.test.yml")],
        "",
    );
    // Every alert is tested.
    let read = |name: &str| std::fs::read_to_string(packaged(name)).unwrap();
    let tests = read("prometheus/aspen.rules.test.yml");
    for line in read("prometheus/aspen.rules.yml").lines() {
        if let Some(alert) = line.trim_start().strip_prefix("- alert: ") {
            assert!(tests.contains(alert), "{alert} is not tested");
        }
    }
}

#[test]
fn the_dashboard_is_well_formed_and_its_expressions_are_promql() {
    let dashboard = dashboard();
    let panels_found = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels_found
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels_found.len());
    for panel in panels_found {
        let grid = &panel["gridPos"];
        let end = grid["x"].as_u64().unwrap() + grid["w"].as_u64().unwrap();
        assert!(end <= 24, "{panel}");
    }
    let Some(tool) = promtool() else { return };
    let dir = scratch();
    let file = dir.join("rules.yml");
    let mut text = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (n, expression) in panels().iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "1m");
        let expression = serde_json::to_string(&expression).unwrap();
        text.push_str(&format!("  - record: panel:{n}\n    expr: {expression}\n"));
    }
    std::fs::write(&file, text).unwrap();
    run(&tool, &["check", "rules", file.to_str().unwrap()], "");
}
