//! TLS, tokens and where they come from; what an address that others reach needs.

use super::*;

fn wrong(text: &str) -> Vec<String> {
    Given::file(text).problems()
}

#[test]
fn an_address_that_others_reach_needs_an_explicit_word() {
    let open = "[http]\nlisten = \"0.0.0.0:8080\"\n";
    assert_eq!(
        wrong(open),
        [
            "file FILE line 2: http.listen: found \"0.0.0.0:8080\", which other machines can reach, so that whoever reaches \
             it could read and write everything; set http.tls_certificate, http.tls_key and http.token, or listen on a \
             loopback address such as \"127.0.0.1:8080\", or set http.insecure = true to accept that"
        ]
    );
    assert!(
        Given::file(open)
            .env("ASPEN_HTTP__INSECURE", "true")
            .settings()
            .http
            .insecure
    );
    for loopback in ["127.8.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        Given::nothing().env("ASPEN_HTTP_ADDR", loopback).settings();
    }
}

#[test]
fn tls_and_a_token_protect_an_address_that_others_reach_and_nothing_less_does() {
    let open = "[http]\nlisten = \"0.0.0.0:8080\"\n";
    let tls = "tls_certificate = \"c\"\ntls_key = \"k\"\n";
    let token = "token = \"0123456789abcdef\"\n";
    let admin = "admin_token = \"0123456789abcdef\"\n";
    for (given, missing) in [
        (tls.to_owned(), "; set http.token, or"),
        (format!("{tls}{admin}"), "; set http.token, or"),
        (
            token.to_owned(),
            "; set http.tls_certificate and http.tls_key, or",
        ),
    ] {
        let problems = wrong(&format!("{open}{given}"));
        assert!(
            problems.len() == 1 && problems[0].contains(missing),
            "{problems:?}"
        );
    }
    let settings = Given::file(format!("{open}{tls}{token}")).settings();
    assert_eq!(settings.http.tls(), Some((Path::new("c"), Path::new("k"))));
    assert_eq!(
        wrong("http.tls_key = \"k\"\n"),
        [
            "file FILE line 1: http.tls_key: found this file only, expected http.tls_certificate as well"
        ]
    );
}

#[test]
fn a_secret_that_is_refused_is_not_shown() {
    let expected = "found a value that is not shown, expected 16 to 128 visible ASCII characters, \
                    such as `openssl rand -hex 24` makes";
    assert_eq!(
        wrong("[http]\ntoken = \"hunter2\"\nadmin_token = \"with a space in it\"\n"),
        [
            format!("file FILE line 2 column 9: http.token: {expected}"),
            format!("file FILE line 3 column 15: http.admin_token: {expected}"),
        ]
    );
}

#[test]
fn a_credential_that_cannot_be_used_is_refused_by_name() {
    let given = Given::nothing();
    let dir = given.dir.path().to_owned();
    std::fs::write(dir.join("http.token"), "short\n").unwrap();
    std::fs::create_dir(dir.join("http.admin_token")).unwrap();
    let problems = given.env("CREDENTIALS_DIRECTORY", dir).problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0]
            .starts_with("credential http.token: http.token: found a value that is not shown")
    );
    assert!(
        problems[1].starts_with("credential http.admin_token: http.admin_token: cannot be read: ")
    );
}

#[test]
fn credentials_win_over_the_file_and_lose_to_the_environment_and_are_never_shown() {
    let [in_file, in_credential, in_environment] = [
        "token-of-the-file",
        "token-of-credential",
        "token-of-environment",
    ];
    let text = format!("[http]\ntoken = \"{in_file}\"\nadmin_token = \"{in_file}\"\n");
    let given = Given::file(text);
    let dir = given.dir.path().to_owned();
    // An editor's line break is no part of it; what is no secret is no credential.
    for name in ["http.token", "http.admin_token", "node.id"] {
        std::fs::write(dir.join(name), format!("{in_credential}\n")).unwrap();
    }
    let given = given.env("CREDENTIALS_DIRECTORY", dir);
    let given = given.env("ASPEN_HTTP__ADMIN_TOKEN", in_environment);
    let loaded = given.load().unwrap();
    let http = &loaded.settings.http;
    assert_eq!(http.token, Some(Secret::new(in_credential)));
    assert_eq!(http.admin_token, Some(Secret::new(in_environment)));
    assert_eq!(loaded.origin("http.token"), "credential http.token");
    let report = loaded.report();
    let rows = ["http.token", "http.admin_token"].map(|key| {
        let row = report
            .lines()
            .find(|line| line.starts_with(&format!("{key} ")));
        row.unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    });
    assert_eq!(
        rows,
        [
            "http.token = \"(hidden)\" # credential http.token",
            "http.admin_token = \"(hidden)\" # environment ASPEN_HTTP__ADMIN_TOKEN",
        ]
    );
    for secret in [in_file, in_credential, in_environment] {
        assert!(!report.contains(secret), "{report}");
        assert!(!format!("{:?}", loaded.settings).contains(secret));
    }
    assert!(
        loaded
            .contradictions()
            .iter()
            .all(|c| c.given == "\"(hidden)\"")
    );
}

#[test]
fn tokens_and_limits_are_taken_over_while_the_node_runs_and_addresses_are_not() {
    let of = |http: &str| Given::file(format!("[http]\n{http}")).settings();
    let tls = "tls_certificate = \"c\"\ntls_key = \"k\"\n";
    let running = of("");
    let restart = |newer: &str| running.changes_that_need_a_restart(&of(newer));
    assert_eq!(
        restart("token = \"0123456789abcdef\"\nmax_connections = 2"),
        [""; 0]
    );
    for newer in ["listen = \"127.0.0.1:1\"", "insecure = true", tls] {
        assert_eq!(restart(newer), ["[http]"], "{newer}");
    }
    let other = tls.replace("\"c\"", "\"d\"");
    assert_eq!(of(tls).changes_that_need_a_restart(&of(&other)), [""; 0]);
    let slower = Given::file("raft.election_timeout_ms = 2000").settings();
    assert_eq!(running.changes_that_need_a_restart(&slower), ["[raft]"]);
}

#[test]
fn an_address_that_other_nodes_reach_needs_the_secret_or_all_of_tls() {
    let open = "[cluster]\npeer_listen = \"0.0.0.0:7000\"\n";
    assert_eq!(
        wrong(open),
        [
            "file FILE line 2: cluster.peer_listen: found \"0.0.0.0:7000\", which other machines can reach, so that \
             whoever reaches it could pose as a node; set cluster.secret to the same on all nodes, or \
             cluster.tls_certificate, cluster.tls_key, cluster.tls_ca, or listen on a loopback address such as \
             \"127.0.0.1:7000\""
        ]
    );
    let tls = "tls_certificate = \"c\"\ntls_key = \"k\"\ntls_ca = \"a\"\n";
    for protection in ["secret = \"0123456789abcdef\"\n", tls] {
        Given::file(format!("{open}{protection}")).settings();
    }
    let problems = wrong(&format!("{open}{}", tls.replace("tls_ca = \"a\"\n", "")));
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.iter().any(|problem| problem.ends_with(
        "cluster.tls_certificate: found a part of what TLS between nodes needs, expected cluster.tls_ca as well"
    )));
    let loopback = open.replace("0.0.0.0", "127.0.0.1");
    Given::file(loopback).settings();
}
