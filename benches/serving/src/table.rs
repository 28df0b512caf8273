//! Figures as people read them.

/// Digits in groups.
pub(crate) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn rate(per_second: f64) -> String {
    thousands(per_second.round() as u64)
}

pub(crate) fn time(seconds: f64) -> String {
    match seconds * 1_000.0 {
        none if none.is_nan() => "none".to_owned(),
        long if long >= 1_000.0 => format!("{seconds:.2} s"),
        middle if middle >= 10.0 => format!("{middle:.1} ms"),
        short => format!("{short:.2} ms"),
    }
}

pub(crate) fn mib(mib: f64) -> String {
    format!("{} MiB", rate(mib))
}

pub(crate) fn fraction(of_one: f64) -> String {
    format!("{of_one:.2}")
}
