//! Who may do what: two tokens and one decision, deny by default.
//!
//! | path | no token set | `http.token` alone | `http.admin_token` alone | both |
//! |---|---|---|---|---|
//! | `/`, `/health`, `/livez`, `/readyz` | open | open | open | open |
//! | `/admin` and below | open | 403 with the token, else 401 | the admin token | the admin token |
//! | everything else, known or not | open | the token | open | either |
//!
//! Health stays open because load balancers ask without a token; it tells of no
//! key, no value and no other node. The page at `/` is the same for everybody,
//! and holds nothing of the node. The admin token opens all that the token
//! does. A path that is not exactly one of the first row needs a token, so that
//! a new route is closed until somebody opens it here.
//!
//! The presented token is compared with the expected one in a time that depends
//! on neither: both lie in arrays of one length.

use std::sync::{PoisonError, RwLock};

use axum::http::{HeaderMap, header};
use subtle::{Choice, ConstantTimeEq as _};

use super::error::ApiError;
use crate::config::settings::{MAX_TOKEN, Secret};

/// A token as it is compared: no shorter for being short. Tokens hold no zero
/// byte, so that no two are padded to the same.
#[derive(Clone)]
struct Padded([u8; MAX_TOKEN]);

impl Padded {
    /// None for what is longer than any token.
    fn new(token: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_TOKEN];
        bytes.get_mut(..token.len())?.copy_from_slice(token);
        Some(Self(bytes))
    }

    fn is(&self, other: Option<&Self>) -> Choice {
        other.map_or(Choice::from(0), |other| self.0.ct_eq(&other.0))
    }
}

/// The tokens in effect.
#[derive(Clone, Default)]
struct Tokens {
    token: Option<Padded>,
    admin: Option<Padded>,
}

/// Decides who may do what; the tokens can be replaced while it does.
#[derive(Default)]
pub(super) struct Auth(RwLock<Tokens>);

/// What a path needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Token,
    Admin,
}

impl Need {
    fn of(path: &str) -> Self {
        match path {
            "/" | "/health" | "/livez" | "/readyz" => Self::Nothing,
            "/admin" => Self::Admin,
            path if path.starts_with("/admin/") => Self::Admin,
            _ => Self::Token,
        }
    }
}

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// No token, or a wrong one.
    Unknown,
    /// The token, where the admin token is needed.
    NotAdmin,
    /// The token, where an admin token is needed and none is set.
    NoAdmin,
}

impl Tokens {
    fn decide(&self, need: Need, presented: Option<&Padded>) -> Result<(), Refused> {
        // Both are compared, whatever comes of the first.
        let has = |expected: &Option<Padded>| {
            let same = expected.as_ref().map(|expected| expected.is(presented));
            same.is_some_and(bool::from)
        };
        let (is_token, is_admin) = (has(&self.token), has(&self.admin));
        match (need, &self.token, &self.admin) {
            (Need::Nothing, _, _) | (_, None, None) | (Need::Token, None, _) => Ok(()),
            _ if is_admin => Ok(()),
            (Need::Token, _, _) if is_token => Ok(()),
            (Need::Admin, _, None) if is_token => Err(Refused::NoAdmin),
            (Need::Admin, _, Some(_)) if is_token => Err(Refused::NotAdmin),
            _ => Err(Refused::Unknown),
        }
    }
}

impl Auth {
    /// From now on these tokens count, for connections that exist too.
    pub(super) fn set(&self, token: Option<&Secret>, admin: Option<&Secret>) {
        // A secret of the configuration is never longer than the array.
        let padded = |secret: &Secret| Padded::new(secret.reveal().as_bytes());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Tokens {
            token: token.and_then(padded),
            admin: admin.and_then(padded),
        };
    }

    /// Whether a request may pass.
    pub(super) fn admit(&self, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let need = Need::of(path);
        if need == Need::Nothing {
            return Ok(());
        }
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let presented = presented(headers).and_then(Padded::new);
        let decided = tokens.decide(need, presented.as_ref());
        decided.map_err(|refused| match refused {
            Refused::Unknown => ApiError::unauthorized(),
            Refused::NotAdmin => ApiError::forbidden("this needs the admin token"),
            Refused::NoAdmin => ApiError::forbidden(
                "this needs an admin token, and none is set; set http.admin_token and reload the node",
            ),
        })
    }
}

/// The token of `Authorization: Bearer TOKEN`; none where there are two such
/// headers, of which another program may have checked the other one.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (first, None) = (all.next()?, all.next()) else {
        return None;
    };
    let (scheme, token) = first.as_bytes().split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    // An empty one is padded to what no token is, and is none all the same.
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use Need::{Admin, Nothing, Token};
    use Refused::{NoAdmin, NotAdmin, Unknown};

    fn padded(text: &str) -> Padded {
        Padded::new(text.as_bytes()).unwrap()
    }

    /// Tokens of which each is set or not.
    fn tokens(token: bool, admin: bool) -> Tokens {
        Tokens {
            token: token.then(|| padded("the-token-of-clients")),
            admin: admin.then(|| padded("the-token-of-admins")),
        }
    }

    #[test]
    fn every_case_of_the_table_is_decided_as_it_says() {
        let shown = [
            None,
            Some("wrong-wrong-wrong-wrong"),
            Some("the-token-of-clients"),
            Some("the-token-of-admins"),
        ];
        let no = Err(Unknown);
        let table = [
            // need, token set, admin token set; then nothing, wrong, token, admin token
            (Nothing, false, false, [Ok(()); 4]),
            (Nothing, true, true, [Ok(()); 4]),
            (Token, false, false, [Ok(()); 4]),
            (Admin, false, false, [Ok(()); 4]),
            (Token, true, false, [no, no, Ok(()), no]),
            (Admin, true, false, [no, no, Err(NoAdmin), no]),
            (Token, false, true, [Ok(()); 4]),
            (Admin, false, true, [no, no, no, Ok(())]),
            (Token, true, true, [no, no, Ok(()), Ok(())]),
            (Admin, true, true, [no, no, Err(NotAdmin), Ok(())]),
        ];
        for (need, token, admin, expected) in table {
            for (shown, expected) in shown.iter().zip(expected) {
                let decided = tokens(token, admin).decide(need, shown.map(padded).as_ref());
                assert_eq!(decided, expected, "{need:?} {token} {admin} {shown:?}");
            }
        }
    }

    #[test]
    fn whatever_is_not_named_as_open_needs_a_token() {
        for path in ["/", "/health", "/livez", "/readyz"] {
            assert_eq!(Need::of(path), Nothing);
        }
        for path in ["/admin", "/admin/", "/admin/shutdown", "/admin//members"] {
            assert_eq!(Need::of(path), Admin);
        }
        for path in [
            "",
            "*",
            "/metrics",
            "/status",
            "/openapi.json",
            "/api/kv/admin",
            "/nothing",
            "/health/",
            "/healthz",
            "//health",
            "/HEALTH",
            "/livez/../api/kv/x",
            "/administer",
        ] {
            assert_eq!(Need::of(path), Token, "{path}");
        }
    }

    #[test]
    fn a_token_that_is_only_a_part_of_the_right_one_or_more_is_wrong() {
        let all = tokens(true, true);
        for wrong in ["the-token-of-client", "the-token-of-clientss", "x", ""] {
            assert_eq!(all.decide(Token, Some(&padded(wrong))), Err(Unknown));
        }
        assert!(Padded::new(&[b'x'; MAX_TOKEN + 1]).is_none());
    }

    #[test]
    fn the_header_is_read_as_the_standard_has_it() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            presented(&headers).map(|token| String::from_utf8(token.to_vec()).unwrap())
        };
        assert_eq!(read(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(read(&["bearer  abc "]).as_deref(), Some("abc"));
        for none in [
            &[] as &[&str],
            &["Bearer"],
            &["Bearer "],
            &["Basic abc"],
            &["abc"],
            &["Bearerabc"],
            &["Bearer abc", "Bearer abc"],
        ] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }

    #[test]
    fn tokens_can_be_replaced_while_requests_come() {
        let auth = Auth::default();
        let mut headers = HeaderMap::new();
        assert!(auth.admit("/api/kv/x", &headers).is_ok());
        auth.set(Some(&Secret::new("0123456789abcdef")), None);
        assert!(auth.admit("/api/kv/x", &headers).is_err());
        let bearer = "Bearer 0123456789abcdef".parse().unwrap();
        headers.insert(header::AUTHORIZATION, bearer);
        assert!(auth.admit("/api/kv/x", &headers).is_ok());
        auth.set(Some(&Secret::new("another-0123456789")), None);
        assert!(auth.admit("/api/kv/x", &headers).is_err());
        assert!(auth.admit("/livez", &headers).is_ok());
    }
}
