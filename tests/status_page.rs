//! The status page in a real browser, on real nodes: what it shows are the
//! facts, whatever the node is going through, and nothing goes wrong in it.
//!
//! Each test leaves pictures of what it saw in `target/tmp/status-page`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use common::browser::Browser;
use common::client::{ask, put};
use common::cluster::Cluster;
use common::disk::{Disk, is_root};
use common::fixture::scratch;
use common::node::{free_address, get, node_on, request};
use common::scenario::Scenario;

const TOKEN: &str = "the-token-of-the-test-0123456789";

/// A picture of each kind: two schemes, two widths.
fn pictures(browser: &mut Browser, name: &str) {
    for (scheme, width) in [
        ("light", 1280),
        ("dark", 1280),
        ("light", 390),
        ("dark", 390),
    ] {
        browser.look(scheme, width);
        browser.picture(&format!("{name}-{scheme}-{width}"));
        let wider = "document.documentElement.scrollWidth - innerWidth";
        let wider = browser.value(wider).as_i64().unwrap();
        assert!(
            wider <= 0,
            "{name}, {scheme}, {width}: {wider} pixels too wide"
        );
    }
    browser.look("light", 1280);
}

/// The text of the list of facts or the table with this id.
fn part(browser: &mut Browser, id: &str) -> String {
    let text = browser.value(&format!("document.getElementById('{id}').innerText"));
    text.as_str().unwrap().to_owned()
}

#[test]
fn a_node_that_was_migrated_tells_itself_its_disk_and_its_record() {
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let mut node = copy.launch().start();
    let address = node.ready();
    browser.look("light", 1280);
    browser.go(&format!("http://{address}/"));
    browser.shows(&["Aspen node 1", "healthy", "ready", "leader"]);
    for n in 0..40 {
        put(address, &format!("page/{n}"), "value");
        assert_eq!(
            ask(address, "GET", &format!("/api/kv/page/{n}"), None).status,
            200
        );
    }
    // The charts have begun, and there were requests between two looks.
    browser.until("document.querySelectorAll('#charts figure').length === 3");
    browser.until("[...document.querySelectorAll('#charts svg path')].some(p => p.getAttribute('d').includes('L'))");
    let status = ask(address, "GET", "/status", None).json();
    browser.shows(&["a majority", status["cluster_id"].as_str().unwrap()]);
    let record = part(&mut browser, "record");
    let migration = &status["migration"];
    for fact in ["source", "target", "backup", "checksum", "program"] {
        let fact = migration[fact].as_str().unwrap();
        assert!(record.contains(fact), "{fact} is not in {record}");
    }
    assert!(record.contains("1,234"), "{record}");
    let members = part(&mut browser, "members");
    assert!(members.contains("node 1 (this one)"), "{members}");
    assert!(members.contains("leader, voter"), "{members}");
    assert!(part(&mut browser, "checks").contains("Write-ahead log"));
    assert_eq!(browser.value("document.title"), "Aspen node 1: leader");
    pictures(&mut browser, "alone");
    accessible(&mut browser);
    browser.assert_content();
    node.stop().with(0);
    // It says so, and what was known stays.
    browser.shows(&["No answer from the node", "node 1 (this one)"]);
    pictures(&mut browser, "gone");
}

/// What a keyboard and a screen reader need: a name for everything, headings
/// and tables that are such, and nothing that only a mouse can do.
fn accessible(browser: &mut Browser) {
    for (what, wrong) in [
        ("language", "document.documentElement.lang === '' ? 1 : 0"),
        ("headings", "document.querySelectorAll('h1').length - 1"),
        (
            "charts",
            "document.querySelectorAll('svg:not([role=img][aria-label])').length",
        ),
        (
            "header cells",
            "document.querySelectorAll('th:not([scope])').length",
        ),
        (
            "captions",
            "[...document.querySelectorAll('table')].filter(t => !t.caption).length",
        ),
        (
            "sections",
            "[...document.querySelectorAll('section')].filter(s => !document.getElementById(s.getAttribute('aria-labelledby'))).length",
        ),
        (
            "inputs",
            "[...document.querySelectorAll('input')].filter(i => !i.labels.length).length",
        ),
        (
            "tab order",
            "document.querySelectorAll('[tabindex]:not([tabindex=\"0\"])').length",
        ),
    ] {
        assert_eq!(browser.value(wrong), 0, "{what}");
    }
}

#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn a_migration_is_watched_to_its_end_without_a_reload() {
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let address = free_address();
    let mut node = copy.launch_slowly(address, 150).start();
    assert!(node.says(" %: copy, "));
    browser.look("light", 1280);
    browser.go(&format!("http://{address}/"));
    browser.shows(&["Migrating", "copy, ", " of 1,234 keys"]);
    let percent = "document.getElementById('migrating-bar').value";
    let before = browser.value(percent).as_f64().unwrap();
    assert!(before > 0.0 && before < 100.0, "{before}");
    pictures(&mut browser, "migrating");
    browser.until(&format!("{percent} > {before}"));
    let text = get(address, "/metrics");
    assert_eq!(text.status, 200, "{text:?}");
    assert!(
        text.body.contains("aspen_migration_progress_ratio 0."),
        "{text:?}"
    );
    node.ready();
    browser.shows(&["Aspen node 1", "healthy", "state-machine.redb.backup-"]);
    browser.assert_content();
    node.stop().with(0);
}

#[test]
fn a_node_with_a_token_asks_for_it_and_keeps_it_in_the_tab() {
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let dir = scratch();
    let mut node = node_on(&dir).env("ASPEN_HTTP__TOKEN", TOKEN).start();
    let address = node.ready();
    let page = format!("http://{address}/");
    browser.look("light", 1280);
    browser.go(&page);
    browser.shows(&["A token, please"]);
    assert!(!browser.text().contains("Cluster"), "{}", browser.text());
    assert_eq!(browser.value("document.activeElement.id"), "token");
    pictures(&mut browser, "token");
    browser.enter("not-the-token-at-all-0123456789");
    browser.shows(&["does not know that token"]);
    browser.enter(TOKEN);
    browser.shows(&["Aspen node 1", "healthy"]);
    assert_eq!(browser.value("sessionStorage.length"), 1);
    assert_eq!(browser.value("localStorage.length"), 0);
    assert_eq!(browser.value("document.cookie"), "");
    assert!(!browser.value("location.href").to_string().contains(TOKEN));
    browser.go(&page);
    browser.shows(&["Aspen node 1", "Forget the token"]);
    browser.value("document.getElementById('forget').click()");
    browser.shows(&["A token, please"]);
    assert_eq!(browser.value("sessionStorage.length"), 0);
    browser.assert_content();
    node.stop().with(0);
}

#[test]
fn a_cluster_is_told_by_every_node_and_a_lost_majority_too() {
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let mut cluster = Cluster::all(&["sqlite", "redb", "sqlite"]);
    let leader = cluster.leader();
    put(cluster.address(leader), "key", "value");
    let followers = cluster.others(leader);
    browser.look("light", 1280);
    browser.go(&format!("http://{}/", cluster.address(leader)));
    browser.shows(&["healthy", "ready", "leader"]);
    for id in 1..=3 {
        let address = cluster.peer_address(id);
        browser.shows(&[&format!("node {id}"), &address]);
    }
    // Everybody has caught up, and the leader knows.
    browser.until("[...document.querySelectorAll('#members td.number')].every(cell => cell.innerText === '0')");
    pictures(&mut browser, "leader");
    browser.go(&format!("http://{}/", cluster.address(followers[0])));
    browser.shows(&["follower", &format!("known to the leader, node {leader}")]);
    pictures(&mut browser, "follower");
    for id in cluster.ids() {
        if id != followers[0] {
            cluster.kill(id);
        }
    }
    browser.shows(&[
        "not ready",
        "are not served",
        "Majority",
        "wait until a majority",
    ]);
    pictures(&mut browser, "no-majority");
    browser.assert_content();
    cluster.stop(followers[0]);
}

#[test]
fn a_full_disk_is_told_with_what_to_do_until_there_is_space_again() {
    if !is_root("a full disk on the status page") {
        return;
    }
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let disk = Disk::tmpfs(160 << 20);
    let mut node = node_on(&disk.path().join("data")).start();
    browser.look("light", 1280);
    browser.go(&format!("http://{}/", node.ready()));
    browser.shows(&["healthy", "ready"]);
    // Less than the node keeps free of such a disk.
    disk.leave(6 << 20);
    browser.shows(&["degraded", "No write is taken", "df -h"]);
    pictures(&mut browser, "full");
    disk.free_up();
    browser.until("document.getElementById('notices').innerText === ''");
    browser.until("!document.body.innerText.includes('degraded')");
    browser.assert_content();
    node.stop().with(0);
}

/// Text that got into the page as HTML after all could do nothing: the policy
/// runs the page's own script and no other, and asks nobody else.
#[test]
fn whatever_gets_into_the_page_cannot_run_and_cannot_call_home() {
    let Some(mut browser) = Browser::open() else {
        return;
    };
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    browser.look("light", 1280);
    browser.go(&format!("http://{address}/"));
    browser.shows(&["healthy"]);
    browser.assert_content();
    browser.value(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">');
         const script = document.createElement('script');
         script.textContent = 'window.ran = 2';
         document.body.append(script);",
    );
    let called = "fetch('http://127.0.0.1:9/').then(() => 'called', () => 'refused')";
    assert_eq!(browser.value(called), "refused");
    let complaints = browser.complaints().join("\n");
    for directive in ["script-src", "connect-src"] {
        assert!(complaints.contains(directive), "{complaints}");
    }
    assert_eq!(browser.value("typeof window.ran"), "undefined");
    node.stop().with(0);
}

fn accept(address: SocketAddr, accept: &str) -> common::node::Answer {
    request(
        address,
        "GET",
        "/",
        &[("Host", "localhost"), ("Accept", accept)],
    )
}

/// The rest needs no browser.
#[test]
fn a_program_gets_json_at_the_root_and_a_browser_the_page_with_its_policy() {
    let dir = scratch();
    let mut node = node_on(&dir).env("ASPEN_HTTP__TOKEN", TOKEN).start();
    let address = node.ready();
    let index = accept(address, "*/*");
    assert_eq!(index.status, 200);
    assert_eq!(index.header("content-type"), Some("application/json"));
    for path in index.json()["see"].as_array().unwrap() {
        let path = path.as_str().unwrap();
        let bearer = format!("Bearer {TOKEN}");
        let headers = [("Host", "localhost"), ("Authorization", &bearer)];
        assert_eq!(
            request(address, "GET", path, &headers).status,
            200,
            "{path}"
        );
    }
    let page = accept(address, "text/html,*/*;q=0.8");
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert_eq!(page.header("vary"), Some("accept"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    // The same for everybody: nothing of this node is in it.
    assert!(!page.body.contains(&address.port().to_string()));
    node.stop().with(0);
}
