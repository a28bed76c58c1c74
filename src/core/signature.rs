//! How a member shows another one that it belongs to the cluster: an HMAC under a key that both make of the same secret.
//!
//! The server draws a random challenge for each connection and takes it once, so that a recorded request is worth
//! nothing, and no clocks are compared. Method, path and body are under the signature. Never sends the secret.

use std::num::NonZeroU32;

use ring::{digest, hmac, pbkdf2};

/// What a challenge is: as many random bytes.
pub const CHALLENGE_BYTES: usize = 32;

/// The header of a signed request; its value is the scheme and the signature in hexadecimal digits.
pub const SCHEME: &str = "Podgres-Member";

const LABEL: &str = "podgres member request 1";
/// As many as PostgreSQL's SCRAM: a signature that was overheard must not give a weak password away cheaply.
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(4095);

/// The cluster's key for requests between its members.
#[derive(Clone)]
pub struct MemberKey(hmac::Key);

impl std::fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemberKey(…)")
    }
}

impl MemberKey {
    /// Made of the secret that all members share. Takes thousands of hash rounds.
    #[must_use]
    pub fn derive(cluster: &str, secret: &str) -> Self {
        let salt = format!("{LABEL}: {cluster}");
        let mut key = [0; digest::SHA256_OUTPUT_LEN];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            ITERATIONS,
            salt.as_bytes(),
            secret.as_bytes(),
            &mut key,
        );
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// The value of the `Authorization` header.
    #[must_use]
    pub fn sign(&self, request: &SignedRequest<'_>) -> String {
        let tag = hmac::sign(&self.0, &request.text());
        format!("{SCHEME} {}", hex(tag.as_ref()))
    }

    /// Whether this key signed the request; compares in constant time.
    #[must_use]
    pub fn verifies(&self, request: &SignedRequest<'_>, signature: &[u8]) -> bool {
        unhex(signature).is_some_and(|tag| hmac::verify(&self.0, &request.text(), &tag).is_ok())
    }
}

/// What a signature covers.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'a> {
    pub challenge: &'a [u8],
    pub method: &'a str,
    /// With the query.
    pub path: &'a str,
    pub body: &'a [u8],
}

impl SignedRequest<'_> {
    /// No part can flow into another: method and path hold no line end, the rest has a fixed length.
    fn text(&self) -> Vec<u8> {
        let body = digest::digest(&digest::SHA256, self.body);
        let parts = [hex(self.challenge), hex(body.as_ref())];
        format!(
            "{LABEL}\n{}\n{}\n{}\n{}",
            self.method, self.path, parts[0], parts[1]
        )
        .into_bytes()
    }
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// Reads [`hex`]; `None` for anything else.
#[must_use]
pub fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_fits_its_own_request_and_key_alone() {
        let key = MemberKey::derive("pg", "secret");
        let request = SignedRequest {
            challenge: &[7; CHALLENGE_BYTES],
            method: "POST",
            path: "/restart",
            body: b"{}",
        };
        let header = key.sign(&request);
        let signature = header
            .strip_prefix("Podgres-Member ")
            .expect("the scheme")
            .as_bytes();
        assert!(key.verifies(&request, signature));
        for other in [
            SignedRequest {
                challenge: &[8; CHALLENGE_BYTES],
                ..request
            },
            SignedRequest {
                method: "PUT",
                ..request
            },
            SignedRequest {
                path: "/restart?x",
                ..request
            },
            SignedRequest {
                body: b"{ }",
                ..request
            },
        ] {
            assert!(!key.verifies(&other, signature), "{other:?}");
        }
        for (cluster, secret) in [("pg", "Secret"), ("pg2", "secret")] {
            assert!(!MemberKey::derive(cluster, secret).verifies(&request, signature));
        }
        for wrong in [&b""[..], b"zz", &signature[..62], &signature[1..]] {
            assert!(!key.verifies(&request, wrong));
        }
        assert!(!format!("{key:?}").contains("secret"));
    }
}
