//! The router as a whole, before the node serves, and its description. What a
//! serving node answers is told by `tests/node_*.rs`, with a real one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;
use crate::format::record::LogId;
use crate::raft::{Member, Status};
use crate::storage::Sizes;
use crate::storage::space::Free;

/// The status of a leader that is well.
pub(super) fn status() -> Status {
    let member = |id, address: &str, voter, lag| Member {
        id,
        address: address.to_owned(),
        voter,
        lag,
    };
    Status {
        node_id: 1,
        cluster_id: "c".to_owned(),
        membership: "voter",
        barred: None,
        role: "leader",
        term: 5,
        leader: Some(1),
        members: vec![
            member(1, "127.0.0.1:7000", true, None),
            member(2, "127.0.0.1:7001", false, Some(3)),
        ],
        last_log_index: Some(1236),
        committed: Some(1235),
        last_applied: Some(LogId {
            term: 5,
            node_id: 1,
            index: 1234,
        }),
        last_purged: None,
        snapshot: None,
        quorum_age_ms: Some(7),
        backend: "sqlite",
        sizes: Sizes {
            database: 4096,
            wal: Some(8192),
        },
        log_bytes: 65536,
        disk: Some(Free {
            free: 1000,
            reserved: 50,
            size: 2000,
        }),
        full: None,
        failed: None,
    }
}

async fn ask(router: &Router, method: &Method, path: &str) -> (StatusCode, Response) {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    (response.status(), response)
}

async fn json(response: Response) -> Value {
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn description() -> Value {
    let shared = Shared::default();
    let _ = router(shared.clone());
    serde_json::from_slice(&shared.description()).unwrap()
}

/// Each path of the description with its methods.
fn described() -> BTreeMap<String, BTreeSet<String>> {
    let description = description();
    let paths = description["paths"].as_object().unwrap();
    let methods = |item: &Value| {
        let names = item.as_object().unwrap().keys();
        names.map(|name| name.to_ascii_uppercase()).collect()
    };
    let paths = paths.iter();
    paths
        .map(|(path, item)| (path.clone(), methods(item)))
        .collect()
}

#[tokio::test]
async fn every_route_takes_the_methods_that_are_described_and_says_so() {
    let router = router(Shared::default());
    let described = described();
    assert!(described.len() >= 12, "{described:?}");
    for (path, methods) in described {
        let path = path.replace("{key}", "a/b").replace("{id}", "7");
        let (status, response) = ask(&router, &Method::PATCH, &path).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allowed = response.headers()[header::ALLOW].to_str().unwrap();
        let allowed = allowed.split(',').filter(|method| *method != "HEAD");
        let allowed: BTreeSet<_> = allowed.map(str::to_owned).collect();
        assert_eq!(allowed, methods, "{path}");
        assert_eq!(json(response).await["error"]["code"], "method_not_allowed");
    }
}

#[tokio::test]
async fn before_the_node_serves_all_but_health_is_told_to_come_back() {
    let shared = Shared::default();
    let router = router(shared.clone());
    for phase in [
        Phase::Starting,
        Phase::Migrating(Progress::default()),
        Phase::Stopping,
    ] {
        shared.set(phase);
        for (path, methods) in described() {
            for method in methods {
                let method = method.parse().unwrap();
                let path = path.replace("{key}", "a/b").replace("{id}", "7");
                let (status, response) = ask(&router, &method, &path).await;
                // Who watches the node watches it in every phase.
                if ["/livez", "/metrics"].contains(&path.as_str()) {
                    assert_eq!(status, StatusCode::OK);
                    continue;
                }
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}");
                assert_eq!(response.headers()[header::RETRY_AFTER], "1", "{path}");
                let body = json(response).await;
                let told = match path.as_str() {
                    "/health" => body["checks"]["storage"]["status"].is_string(),
                    "/readyz" => body["status"] == "not_ready",
                    _ => body["error"]["code"] == "unavailable",
                };
                assert!(told, "{path}: {body}");
            }
        }
        let (status, _) = ask(&router, &Method::GET, "/no/such/route").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn probes_tell_more_when_asked_and_refuse_what_they_do_not_know() {
    let router = router(Shared::default());
    let (_, response) = ask(&router, &Method::GET, "/livez").await;
    assert_eq!(json(response).await, serde_json::json!({"status": "live"}));
    let (_, response) = ask(&router, &Method::GET, "/livez?verbose").await;
    let body = json(response).await;
    assert_eq!(body["phase"], "starting");
    assert!(body["uptime_seconds"].is_f64());
    let (status, response) = ask(&router, &Method::GET, "/readyz?verbose").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let expected =
        serde_json::json!({"status": "not_ready", "checks": {"storage": {"status": "starting"}}});
    assert_eq!(json(response).await, expected);
    for path in ["/livez?verbose=maybe", "/readyz?quiet"] {
        let (status, response) = ask(&router, &Method::GET, path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(json(response).await["error"]["code"], "bad_request");
    }
}

#[test]
fn every_error_is_described_somewhere() {
    let text = description()["paths"].to_string();
    let missing = Code::ALL.iter().filter(|code| {
        let told = text.contains(&format!("`{}`: {}", code.name(), code.meaning()));
        // Answers to what is not described: no path, no method of it, no request.
        let outside = [
            Code::NoSuchRoute,
            Code::MethodNotAllowed,
            Code::HeadTooLarge,
        ];
        !told && !outside.contains(*code)
    });
    assert_eq!(missing.collect::<Vec<_>>(), [&Code::NotJson; 0]);
}

#[test]
fn the_description_holds_together() {
    let description = description();
    let mut operations = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(operations.insert(id), "{method} {path}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let content = response["content"].as_object();
                assert!(
                    content.is_some_and(|c| !c.is_empty()),
                    "{method} {path} {status}"
                );
            }
            let named = |name: &str| {
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let mut names = parameters.filter(|p| p["in"] == "path");
                names.any(|parameter| parameter["name"] == name)
            };
            assert_eq!(path.contains("{key}"), named("key"), "{method} {path}");
        }
    }
    // Nothing refers to a schema that is not there.
    let text = description.to_string();
    let references = text.split("\"#/components/schemas/").skip(1);
    for name in references.map(|rest| rest.split('"').next().unwrap()) {
        assert!(
            description["components"]["schemas"][name].is_object(),
            "{name}"
        );
    }
}

#[test]
fn the_descriptions_limits_are_those_that_hold() {
    let schemas = &description()["components"]["schemas"];
    assert_eq!(
        schemas["Batch"]["properties"]["set"]["maxItems"],
        limits::MAX_BATCH_KEYS
    );
    assert_eq!(
        schemas["Batch"]["properties"]["delete"]["maxItems"],
        limits::MAX_BATCH_KEYS
    );
    assert_eq!(
        schemas["Pair"]["properties"]["key"]["maxLength"],
        limits::MAX_KEY_BYTES
    );
    for name in ["Set", "Batch", "Pair"] {
        assert_eq!(schemas[name]["additionalProperties"], false, "{name}");
    }
}
