//! The log filter: a level, exceptions to it by target, or both.

use tracing_subscriber::filter::{LevelFilter, Targets};

/// A part of a log filter that means nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "Cannot understand {part:?} in the log filter {filter:?}: expected off, error, warn, info, \
     debug, trace or TARGET=LEVEL, separated by commas, such as \"info,aspen::raft=debug\""
)]
pub struct FilterError {
    filter: String,
    part: String,
}

/// The consensus library tells developers its every step at `info`, and every
/// failed attempt to reach a node at `warn`, several a second; the node itself
/// says once what has changed. Operators who want more ask for this target.
const CHATTY: &str = "openraft";

/// Parses `LEVEL` and `TARGET=LEVEL`, separated by commas. A level for all
/// targets is for `openraft` no more than `error`.
///
/// Stricter than the parsers of `tracing-subscriber`: there a misspelt level,
/// `inof`, is a target, which silences everything else without a word.
///
/// # Errors
///
/// Names the first part that is neither.
pub fn parse(filter: &str) -> Result<Targets, FilterError> {
    filter
        .split(',')
        .map(str::trim)
        .try_fold(Targets::new(), |targets, part| {
            let (target, level) = match part.split_once('=') {
                Some((target, level)) => (Some(target.trim()), level.trim()),
                None => (None, part),
            };
            let level = level_of(level).filter(|_| target != Some(""));
            match (target, level) {
                (None, Some(level)) => {
                    let chatty = level.min(LevelFilter::ERROR);
                    let own = targets.iter().any(|(target, _)| target == CHATTY);
                    let targets = targets.with_default(level);
                    Ok(match own {
                        true => targets,
                        false => targets.with_target(CHATTY, chatty),
                    })
                }
                (Some(target), Some(level)) => Ok(targets.with_target(target, level)),
                (_, None) => Err(FilterError {
                    filter: filter.to_owned(),
                    part: part.to_owned(),
                }),
            }
        })
}

fn level_of(name: &str) -> Option<LevelFilter> {
    Some(match name.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use tracing::Level;

    #[test]
    fn a_level_applies_to_all_targets_but_those_with_their_own() {
        let filter = parse("INFO, aspen::raft=debug,hyper=off").unwrap();
        assert!(filter.would_enable("aspen::http", &Level::INFO));
        assert!(!filter.would_enable("aspen::http", &Level::DEBUG));
        assert!(filter.would_enable("aspen::raft::log", &Level::DEBUG));
        assert!(!filter.would_enable("hyper::proto", &Level::ERROR));
    }

    #[test]
    fn the_consensus_library_is_quiet_unless_asked() {
        let filter = parse("debug").unwrap();
        assert!(filter.would_enable("openraft::core", &Level::ERROR));
        assert!(!filter.would_enable("openraft::core", &Level::WARN));
        assert!(
            !parse("off")
                .unwrap()
                .would_enable("openraft", &Level::ERROR)
        );
        for asked in ["info,openraft=debug", "openraft=debug,info"] {
            let filter = parse(asked).unwrap();
            assert!(filter.would_enable("openraft::core", &Level::DEBUG));
        }
    }

    #[test]
    fn a_filter_that_would_silence_the_log_by_a_slip_is_refused_by_name() {
        for (filter, part) in [
            ("inof", "inof"),
            ("info,aspen", "aspen"),
            ("aspen=loud", "aspen=loud"),
            ("=info", "=info"),
            ("info,", ""),
            ("", ""),
        ] {
            assert_eq!(parse(filter).unwrap_err().part, part, "{filter:?}");
        }
    }
}
