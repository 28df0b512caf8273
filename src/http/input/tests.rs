//! What is taken, what is refused, and by which code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn code<T: fmt::Debug>(result: Result<T, ApiError>) -> Code {
    result.unwrap_err().code()
}

fn put(body: &str) -> Result<Plain, ApiError> {
    set("k".to_owned(), body.as_bytes())
}

#[test]
fn the_guides_write_is_a_write() {
    let expected = Plain::Set {
        key: "test_key".to_owned(),
        value: "test_value".to_owned(),
    };
    let key = key("/api/kv/test_key").unwrap();
    assert_eq!(set(key, br#"{"value":"test_value"}"#).unwrap(), expected);
}

#[test]
fn an_expectation_is_a_value_or_null_and_its_absence_is_neither() {
    let cas = |expect: Option<&str>| Plain::CompareAndSet {
        key: "k".to_owned(),
        expect: expect.map(str::to_owned),
        value: "v".to_owned(),
    };
    let set = Plain::Set {
        key: "k".to_owned(),
        value: "v".to_owned(),
    };
    assert_eq!(
        put(r#"{"value":"v","expect":"e"}"#).unwrap(),
        cas(Some("e"))
    );
    assert_eq!(put(r#"{"expect":"","value":"v"}"#).unwrap(), cas(Some("")));
    assert_eq!(put(r#"{"value":"v","expect":null}"#).unwrap(), cas(None));
    assert_eq!(put(r#"{"value":"v"}"#).unwrap(), set);
}

#[test]
fn a_body_that_is_not_exactly_what_is_known_is_refused() {
    for bad in [
        "",
        "{",
        "null",
        "{}",
        r#""v""#,
        r#"["v"]"#,
        r#"["v",null]"#,
        r#"{"value":1}"#,
        r#"{"value":null}"#,
        r#"{"value":"v","expct":"e"}"#,
        r#"{"value":"v","Expect":"e"}"#,
        r#"{"value":"v","expect":1}"#,
        r#"{"value":"v","value":"v"}"#,
        r#"{"value":"v","expect":null,"expect":"e"}"#,
        r#"{"value":"v"} {}"#,
        r#"{"value":"\ud800"}"#,
    ] {
        assert_eq!(code(put(bad)), Code::BadRequest, "{bad}");
    }
    let not_utf8 = set("k".to_owned(), b"{\"value\":\"\xff\"}");
    assert_eq!(code(not_utf8), Code::BadRequest);
    for bad in [
        "[]",
        r#"{"sets":[]}"#,
        r#"{"set":[["k","v"]]}"#,
        r#"{"set":{"k":"v"}}"#,
        r#"{"set":[{"key":"k"}]}"#,
        r#"{"set":[{"key":"k","value":"v","expect":null}]}"#,
        r#"{"set":[],"set":[]}"#,
        r#"{"delete":[1]}"#,
        r#"{"delete":null}"#,
    ] {
        assert_eq!(code(batch(bad.as_bytes())), Code::BadRequest, "{bad}");
    }
}

#[test]
fn a_batch_sets_and_deletes_and_names_no_key_twice() {
    let body = json!({"set": [{"key": "a", "value": ""}], "delete": ["b", ""]});
    let expected = Plain::Batch {
        set: vec![("a".to_owned(), String::new())],
        delete: vec!["b".to_owned(), String::new()],
    };
    assert_eq!(batch(body.to_string().as_bytes()).unwrap(), expected);
    for body in [
        json!({"set": [{"key": "a", "value": "1"}, {"key": "a", "value": "1"}]}),
        json!({"delete": ["a", "a"]}),
        json!({"set": [{"key": "a", "value": "1"}], "delete": ["a"]}),
    ] {
        let refused = batch(body.to_string().as_bytes());
        assert_eq!(code(refused), Code::DuplicateKey, "{body}");
    }
}

#[test]
fn keys_and_values_are_taken_up_to_their_limits() {
    let (key, value) = ("k".repeat(MAX_KEY_BYTES), "v".repeat(MAX_VALUE_BYTES));
    let body = |value: &str| json!({ "value": value }).to_string().into_bytes();
    assert!(set(key.clone(), &body(&value)).is_ok());
    let long_key = format!("{key}k");
    assert_eq!(code(set(long_key.clone(), &body("v"))), Code::PathTooLong);
    let large = body(&format!("{value}v"));
    assert_eq!(code(set(key, &large)), Code::ValueTooLarge);
    let expect = json!({"value": "v", "expect": format!("{value}v")}).to_string();
    assert_eq!(code(put(&expect)), Code::ValueTooLarge);
    let pair = |key: &str| json!({"set": [{"key": key, "value": "v"}]}).to_string();
    assert_eq!(code(batch(pair(&long_key).as_bytes())), Code::KeyTooLong);
    for bad in ["", "a\0b"] {
        assert_eq!(code(set(bad.to_owned(), &body("v"))), Code::InvalidKey);
        assert_eq!(code(batch(pair(bad).as_bytes())), Code::InvalidKey);
    }
    // What legacy nodes left can be removed.
    let old = json!({"delete": ["", "a\0b", long_key]}).to_string();
    assert!(batch(old.as_bytes()).is_ok());
}

#[test]
fn a_batch_is_taken_up_to_its_limits() {
    let keys = |count: usize| {
        let keys: Vec<_> = (0..count).map(|n| n.to_string()).collect();
        json!({ "delete": keys }).to_string()
    };
    assert!(batch(keys(MAX_BATCH_KEYS).as_bytes()).is_ok());
    let refused = batch(keys(MAX_BATCH_KEYS + 1).as_bytes());
    assert_eq!(code(refused), Code::BatchTooLarge);
    let values = |bytes: usize| {
        let half = "v".repeat(bytes / 2 - 1);
        json!({"set": [{"key": "a", "value": half}, {"key": "b", "value": half}]}).to_string()
    };
    assert!(batch(values(MAX_BATCH_BYTES).as_bytes()).is_ok());
    let refused = batch(values(MAX_BATCH_BYTES + 2).as_bytes());
    assert_eq!(code(refused), Code::BatchTooLarge);
}

#[test]
fn a_page_is_asked_for_by_name() {
    let page = |query: &str| range(Some(query)).unwrap().0;
    let usual = range(None).unwrap();
    assert_eq!(usual.0.limit, USUAL_PAGE);
    assert_eq!((usual.0.prefix.as_str(), usual.0.after), ("", None));
    assert_eq!(usual.1, Consistency::Linearizable);
    assert_eq!(page("prefix=a%2Fb+c%2B"), page("&prefix=a/b%20c%2b&"));
    assert_eq!(page("prefix=a%2Fb+c%2B").prefix, "a/b c+");
    assert_eq!(page("after=").after.as_deref(), Some(""));
    assert_eq!(page("limit=1000&after=%00").limit, MAX_PAGE);
    let stale = range(Some("consistency=stale")).unwrap();
    assert_eq!(stale.1, Consistency::Stale);
    for bad in [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=",
        "limit=1e2",
        "prefx=a",
        "prefix=a&prefix=a",
        "prefix=%FF",
        "consistency=Stale",
        "consistency",
    ] {
        assert_eq!(code(range(Some(bad))), Code::BadRequest, "{bad}");
    }
}

#[test]
fn a_read_may_lag_by_so_many_milliseconds() {
    for (query, expected) in [
        ("consistency=linearizable", Consistency::Linearizable),
        ("consistency=lease", Consistency::Lease),
        (
            "max_lag=0&consistency=stale",
            Consistency::Bounded(Duration::ZERO),
        ),
        (
            "consistency=stale&max_lag=86400000",
            Consistency::Bounded(Duration::from_secs(86_400)),
        ),
    ] {
        assert_eq!(consistency(Some(query)).unwrap(), expected);
        assert_eq!(range(Some(query)).unwrap().1, expected);
    }
    for bad in [
        "max_lag=1",
        "max_lag=1&consistency=linearizable",
        "max_lag=1&consistency=lease",
        "consistency=stale&max_lag=",
        "consistency=stale&max_lag=-1",
        "consistency=stale&max_lag=1.5",
        "consistency=stale&max_lag=1s",
        "consistency=stale&max_lag=86400001",
        "consistency=stale&max_lag=18446744073709551616",
        "consistency=stale&max_lag=1&max_lag=1",
        "consistency=leased",
    ] {
        assert_eq!(code(consistency(Some(bad))), Code::BadRequest, "{bad}");
        assert_eq!(code(range(Some(bad))), Code::BadRequest, "{bad}");
    }
}

#[test]
fn an_idempotency_key_is_a_string_in_quotes_or_without() {
    let key = |field: &str| idempotency_key(field.as_bytes());
    for (field, expected) in [
        (r#""8e03978e-40d5""#, "8e03978e-40d5"),
        ("8e03978e-40d5", "8e03978e-40d5"),
        (r#""a \"b\" \\ c,d;e""#, r#"a "b" \ c,d;e"#),
        (r#"" ""#, " "),
        ("a/b:c=d*!~", "a/b:c=d*!~"),
    ] {
        assert_eq!(key(field).unwrap(), expected);
    }
    let longest = "k".repeat(idempotency::MAX_KEY_BYTES);
    assert_eq!(key(&longest).unwrap(), longest);
    assert_eq!(key(&format!("\"{longest}\"")).unwrap(), longest);
    let long = format!("{longest}k");
    let quoted = format!("\"{long}\"");
    for bad in [
        "",
        "\"\"",
        "\"",
        "a b",
        "a,b",
        "a;b=1",
        "a\"b",
        "\"a\"b\"",
        "\"a\";b=1",
        "\"a\\\"",
        "\"a\\b\"",
        "a\\b",
        "\u{e9}",
        "\"\u{e9}\"",
        "\"a\tb\"",
        &long,
        &quoted,
    ] {
        assert_eq!(code(key(bad)), Code::InvalidIdempotencyKey, "{bad}");
    }
}

#[test]
fn other_queries_are_as_strict() {
    assert_eq!(consistency(Some("")).unwrap(), Consistency::Linearizable);
    assert_eq!(
        consistency(Some("consistency=stale")).unwrap(),
        Consistency::Stale
    );
    assert_eq!(code(consistency(Some("limit=1"))), Code::BadRequest);
    for (query, expected) in [
        (None, false),
        (Some("verbose"), true),
        (Some("verbose="), true),
        (Some("verbose=true"), true),
        (Some("verbose=false"), false),
    ] {
        assert_eq!(verbose(query).unwrap(), expected);
    }
    assert_eq!(code(verbose(Some("verbose=maybe"))), Code::BadRequest);
    assert!(nothing(None).is_ok());
    assert_eq!(code(nothing(Some("expect=v"))), Code::BadRequest);
}

proptest! {
    #[test]
    fn no_bytes_are_too_odd_to_be_judged(bytes: Vec<u8>, text: String) {
        let _ = (set("k".to_owned(), &bytes), batch(&bytes), idempotency_key(&bytes));
        let _ = (key(&format!("{PREFIX}{text}")), range(Some(&text)));
    }

    #[test]
    fn every_key_comes_back_from_its_path(expected in "\\PC*|.*") {
        let encoded: String = expected.bytes().map(|byte| format!("%{byte:02x}")).collect();
        prop_assert_eq!(key(&format!("{PREFIX}{encoded}")).unwrap(), expected);
    }

    #[test]
    fn every_idempotency_key_comes_back_from_its_field(expected in "[ -~]{1,255}") {
        let escaped = expected.replace('\\', "\\\\").replace('"', "\\\"");
        let found = idempotency_key(format!("\"{escaped}\"").as_bytes());
        prop_assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn every_value_comes_back_from_its_body(value: String, expect: Option<String>) {
        let body = json!({"value": value, "expect": expect}).to_string();
        let request = put(&body).unwrap();
        prop_assert_eq!(request, Plain::CompareAndSet { key: "k".to_owned(), expect, value });
    }

    #[test]
    fn every_batch_that_names_its_keys_once_comes_back_from_its_body(
        pairs in prop::collection::hash_map("[a-m]{1,9}", ".*", 0..20),
        delete in prop::collection::hash_set("[n-z]{0,9}", 0..20),
    ) {
        let objects = pairs.iter().map(|(key, value)| json!({"key": key, "value": value}));
        let objects = objects.collect::<Vec<_>>();
        let body = json!({"set": objects, "delete": delete}).to_string();
        let expected = Plain::Batch {
            set: pairs.into_iter().collect(),
            delete: delete.into_iter().collect(),
        };
        prop_assert_eq!(batch(body.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn every_prefix_and_cursor_comes_back_from_its_query(prefix: String, after: Option<String>) {
        let encode = |text: &str| percent_encoding::utf8_percent_encode(
            text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let mut query = format!("prefix={}", encode(&prefix));
        if let Some(after) = &after {
            query += &format!("&after={}", encode(after));
        }
        let (found, _) = range(Some(&query)).unwrap();
        prop_assert_eq!((found.prefix, found.after), (prefix, after));
    }
}
