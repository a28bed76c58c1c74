//! Who may change something: a pure rule over where a request came from and what it carries.
//!
//! The pod's unix socket is authority enough, since whoever reaches it can already signal the processes; over
//! TCP only the operator's bearer token is. Never logs or shows a token.

use std::fmt;

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

/// Why a request has no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorised {
    #[error("a request that changes something needs the local unix socket or the operator's bearer token")]
    NoToken,
    #[error("no bearer token is accepted here, since no admin token file is set")]
    NoTokenSet,
    #[error("authorization is not of the form \"Bearer TOKEN\"")]
    NotBearer,
    #[error("bearer token does not match")]
    WrongToken,
}

impl Unauthorised {
    /// What the one who asked can do.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::NoToken | Self::NotBearer => {
                "Run the podgres command inside the pod, or send the header \"Authorization: Bearer TOKEN\"."
            }
            Self::NoTokenSet => {
                "Run the podgres command inside the pod, or start the sidecar with --admin-token-file."
            }
            Self::WrongToken => {
                "Compare the token with the file that --admin-token-file names on this member."
            }
        }
    }
}

/// Whether a request from `origin` with this `Authorization` header may change something.
///
/// # Errors
/// Why not.
pub fn authorise(
    origin: Origin,
    authorization: Option<&[u8]>,
    token: Option<&AdminToken>,
) -> Result<(), Unauthorised> {
    if origin == Origin::UnixSocket {
        return Ok(());
    }
    let header = authorization.ok_or(Unauthorised::NoToken)?;
    let given = bearer(header).ok_or(Unauthorised::NotBearer)?;
    let token = token.ok_or(Unauthorised::NoTokenSet)?;
    if token.matches(given) {
        Ok(())
    } else {
        Err(Unauthorised::WrongToken)
    }
}

/// RFC 6750: the scheme in any case, one or more spaces, the token.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked(7)?;
    let given = rest.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !given.is_empty()).then_some(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_socket_and_the_right_token_have_authority() {
        let tcp = Origin::Tcp(std::net::SocketAddr::from(([127, 0, 0, 1], 40000)));
        let token = AdminToken::new("s3cret\n");
        let token = token.as_ref();
        for (origin, header, token, expected) in [
            (Origin::UnixSocket, None, None, Ok(())),
            (Origin::UnixSocket, Some("Bearer wrong"), token, Ok(())),
            (tcp, Some("Bearer s3cret"), token, Ok(())),
            (tcp, Some("bearer  s3cret "), token, Ok(())),
            (tcp, None, token, Err(Unauthorised::NoToken)),
            (tcp, None, None, Err(Unauthorised::NoToken)),
            (tcp, Some("Bearer s3cret"), None, Err(Unauthorised::NoTokenSet)),
            (tcp, Some("Basic s3cret"), token, Err(Unauthorised::NotBearer)),
            (tcp, Some("Bearer "), token, Err(Unauthorised::NotBearer)),
            (tcp, Some("s3cret"), token, Err(Unauthorised::NotBearer)),
            (tcp, Some("Bearer s3cre"), token, Err(Unauthorised::WrongToken)),
            (
                tcp,
                Some("Bearer s3crets3cret"),
                token,
                Err(Unauthorised::WrongToken),
            ),
            (tcp, Some("Bearer S3cret"), token, Err(Unauthorised::WrongToken)),
        ] {
            let found = authorise(origin, header.map(str::as_bytes), token);
            assert_eq!(found, expected, "{origin:?} {header:?}");
        }
    }

    #[test]
    fn an_empty_file_is_no_token_and_a_token_shows_nowhere() {
        assert_eq!(AdminToken::new(" \n"), None);
        assert!(!format!("{:?}", AdminToken::new("s3cret")).contains("s3cret"));
    }
}
