//! Who may change something: rules over where a request came from and what it carries.
//!
//! The pod's unix socket is authority enough, since whoever reaches it can already signal the processes; over
//! TCP the operator's bearer token is, and a signature that only a member of the cluster can make. Never logs or shows a token.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::core::signature::{CHALLENGE_BYTES, SCHEME, hex};

/// Where a connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The pod's own unix socket.
    UnixSocket,
    Tcp(std::net::SocketAddr),
}

/// The operator's token, from `--admin-token-file`.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(Box<[u8]>);

impl AdminToken {
    /// The token in a file's `text`, without white space around it; `None` if nothing is left.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let token = text.trim();
        (!token.is_empty()).then(|| Self(token.as_bytes().into()))
    }

    /// Compares in a time that depends on the length of `given` alone.
    fn matches(&self, given: &[u8]) -> bool {
        let mut differs = usize::from(given.len() != self.0.len());
        for (position, byte) in given.iter().enumerate() {
            let own = self.0[position % self.0.len()];
            differs |= std::hint::black_box(usize::from(byte ^ own));
        }
        std::hint::black_box(differs) == 0
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

/// What is known of the operator's token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Token {
    #[default]
    NotSet,
    /// Its file is missing or empty: nobody is let in until that is mended.
    Unusable,
    Set(AdminToken),
}

/// Why a request has no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorised {
    #[error(
        "a request that changes something needs the local unix socket, the operator's bearer token or a member's signature"
    )]
    NoCredentials,
    #[error("no bearer token is accepted here, since no admin token file is set")]
    NoTokenSet,
    #[error("no bearer token is accepted now, since the admin token file cannot be read or is empty")]
    UnusableToken,
    #[error("authorization is not of the form \"Bearer TOKEN\"")]
    UnknownScheme,
    #[error("bearer token does not match")]
    WrongToken,
    #[error("no challenge was asked for on this connection, or it has been used")]
    NoChallenge,
    #[error("signature does not match")]
    WrongSignature,
}

impl Unauthorised {
    /// What the one who asked can do.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::NoCredentials | Self::UnknownScheme => {
                "Run the podgres command inside the pod, or send the header \"Authorization: Bearer TOKEN\"."
            }
            Self::NoTokenSet => {
                "Run the podgres command inside the pod, or start the sidecar with --admin-token-file."
            }
            Self::UnusableToken => "Put a token into the file that --admin-token-file names on this member.",
            Self::WrongToken => {
                "Compare the token with the file that --admin-token-file names on this member."
            }
            Self::NoChallenge => "GET /challenge first, and sign what it answers.",
            Self::WrongSignature => {
                "Members must have the same replication password; a new one takes a moment."
            }
        }
    }

    /// 401, or 403 where no credentials would help.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::NoTokenSet | Self::UnusableToken => 403,
            _ => 401,
        }
    }
}

/// How a request shows its authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials<'a> {
    /// By where it comes from.
    UnixSocket,
    Bearer(&'a [u8]),
    /// A member's signature, see [`core::signature`](crate::core::signature).
    Signature(&'a [u8]),
}

impl<'a> Credentials<'a> {
    /// Reads the `Authorization` header of a request from `origin`.
    ///
    /// # Errors
    /// There are none, or of an unknown kind.
    pub fn of(origin: Origin, authorization: Option<&'a [u8]>) -> Result<Self, Unauthorised> {
        if origin == Origin::UnixSocket {
            return Ok(Self::UnixSocket);
        }
        let header = authorization.ok_or(Unauthorised::NoCredentials)?;
        let bearer = after_scheme(header, "Bearer").map(Self::Bearer);
        let signature = || after_scheme(header, SCHEME).map(Self::Signature);
        bearer.or_else(signature).ok_or(Unauthorised::UnknownScheme)
    }
}

/// Whether the operator's token was given.
///
/// # Errors
/// Why not.
pub fn check_bearer(given: &[u8], token: &Token) -> Result<(), Unauthorised> {
    match token {
        Token::NotSet => Err(Unauthorised::NoTokenSet),
        Token::Unusable => Err(Unauthorised::UnusableToken),
        Token::Set(token) if token.matches(given) => Ok(()),
        Token::Set(_) => Err(Unauthorised::WrongToken),
    }
}

/// The challenge of one connection: drawn when it is asked for, good for one request.
#[derive(Clone, Debug, Default)]
pub(super) struct Challenge(Arc<Mutex<Option<[u8; CHALLENGE_BYTES]>>>);

impl Challenge {
    /// A new one, in place of one that was not used; `None` if the system gives no random bytes.
    pub(super) fn draw(&self) -> Option<String> {
        let mut bytes = [0; CHALLENGE_BYTES];
        SystemRandom::new().fill(&mut bytes).ok()?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        Some(hex(&bytes))
    }

    pub(super) fn take(&self) -> Option<[u8; CHALLENGE_BYTES]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// RFC 9110: the scheme in any case, one or more spaces, the credentials.
fn after_scheme<'a>(header: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let (found, rest) = header.split_at_checked(scheme.len())?;
    let rest = rest.strip_prefix(b" ")?.trim_ascii();
    (found.eq_ignore_ascii_case(scheme.as_bytes()) && !rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_socket_and_the_right_token_have_authority() {
        let tcp = Origin::Tcp(std::net::SocketAddr::from(([127, 0, 0, 1], 40000)));
        let set = || Token::Set(AdminToken::new("s3cret\n").expect("a token"));
        for (origin, header, token, expected) in [
            (Origin::UnixSocket, None, Token::NotSet, Ok(())),
            (Origin::UnixSocket, Some("Bearer wrong"), set(), Ok(())),
            (tcp, Some("Bearer s3cret"), set(), Ok(())),
            (tcp, Some("bearer  s3cret "), set(), Ok(())),
            (tcp, None, set(), Err(Unauthorised::NoCredentials)),
            (tcp, None, Token::NotSet, Err(Unauthorised::NoCredentials)),
            (
                tcp,
                Some("Bearer s3cret"),
                Token::NotSet,
                Err(Unauthorised::NoTokenSet),
            ),
            (
                tcp,
                Some("Bearer s3cret"),
                Token::Unusable,
                Err(Unauthorised::UnusableToken),
            ),
            (tcp, Some("Basic s3cret"), set(), Err(Unauthorised::UnknownScheme)),
            (tcp, Some("Bearer "), set(), Err(Unauthorised::UnknownScheme)),
            (tcp, Some("s3cret"), set(), Err(Unauthorised::UnknownScheme)),
            (tcp, Some("Bearer s3cre"), set(), Err(Unauthorised::WrongToken)),
            (
                tcp,
                Some("Bearer s3crets3cret"),
                set(),
                Err(Unauthorised::WrongToken),
            ),
            (tcp, Some("Bearer S3cret"), set(), Err(Unauthorised::WrongToken)),
        ] {
            let credentials = Credentials::of(origin, header.map(str::as_bytes));
            let found = credentials.and_then(|credentials| match credentials {
                Credentials::Bearer(given) => check_bearer(given, &token),
                Credentials::UnixSocket => Ok(()),
                Credentials::Signature(_) => Err(Unauthorised::WrongSignature),
            });
            assert_eq!(found, expected, "{origin:?} {header:?}");
        }
        let signed = Credentials::of(tcp, Some(b"podgres-member 00ff"));
        assert_eq!(signed, Ok(Credentials::Signature(b"00ff")));
    }

    #[test]
    fn an_empty_file_is_no_token_and_a_token_shows_nowhere() {
        assert_eq!(AdminToken::new(" \n"), None);
        assert!(!format!("{:?}", AdminToken::new("s3cret")).contains("s3cret"));
    }

    #[test]
    fn a_challenge_is_good_for_one_request() {
        let challenge = Challenge::default();
        assert_eq!(challenge.take(), None);
        let first = challenge.draw().expect("random bytes");
        let second = challenge.draw().expect("random bytes");
        assert_ne!(first, second);
        assert_eq!(challenge.take().map(|bytes| hex(&bytes)), Some(second));
        assert_eq!(challenge.take(), None);
    }
}
