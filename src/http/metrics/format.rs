//! The two text formats: OpenMetrics, which the library writes, and the older
//! one of Prometheus, which tools such as `promtool check metrics` read. They
//! differ in how a counter and an info are announced, and in the last line.

use axum::http::HeaderValue;
use axum::http::header::GetAll;

pub(super) const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
pub(super) const TEXT: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Whether a client names OpenMetrics among what it accepts; Prometheus does.
pub(super) fn wants_open_metrics(accept: GetAll<'_, HeaderValue>) -> bool {
    let named = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default().to_ascii_lowercase();
        value.contains("application/openmetrics-text")
    };
    accept.iter().any(named)
}

/// OpenMetrics as Prometheus' own text.
pub(super) fn to_text(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help = "";
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            for word in ["HELP", "TYPE"] {
                let said = if word == "HELP" { help } else { kind };
                text.extend(["# ", word, " ", name, suffix, " ", said, "\n"]);
            }
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::http::{HeaderMap, header};

    #[test]
    fn a_counter_and_an_info_are_announced_by_the_names_of_their_samples() {
        let open = "# HELP a_requests Requests.\n# TYPE a_requests counter\na_requests_total 3\n\
                    # HELP a_build Build.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                    # HELP a_seconds Time.\n# TYPE a_seconds gauge\n# UNIT a_seconds seconds\n\
                    a_seconds 2.5\n# EOF\n";
        let text = "# HELP a_requests_total Requests.\n# TYPE a_requests_total counter\n\
                    a_requests_total 3\n\
                    # HELP a_build_info Build.\n# TYPE a_build_info gauge\n\
                    a_build_info{version=\"1\"} 1\n\
                    # HELP a_seconds Time.\n# TYPE a_seconds gauge\na_seconds 2.5\n";
        assert_eq!(to_text(open), text);
    }

    #[test]
    fn prometheus_gets_open_metrics_and_a_person_gets_text() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_open_metrics(headers.get_all(header::ACCEPT))
        };
        assert!(wants(
            "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        assert!(!wants("*/*"));
        assert!(!wants("text/plain;version=0.0.4"));
        assert!(!wants_open_metrics(
            HeaderMap::new().get_all(header::ACCEPT)
        ));
    }
}
