//! SCRAM-SHA-256 verifiers, as `pg_authid.rolpassword` holds them: made, and compared with a password.
//!
//! Source: RFC 5802 and PostgreSQL's `scram-common.c`; `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};

use super::Secret;

const KEY_BYTES: usize = 32;

/// More rounds than our own client accepts from a server (`postgres_protocol`): such a verifier is no use to us.
const ITERATIONS_LIMIT: u32 = 100_000;

/// A new verifier with a random salt; holds nothing that SQL would need quoted.
pub(super) fn verifier(password: &Secret) -> String {
    postgres_protocol::password::scram_sha_256(password.expose().as_bytes())
}

/// Whether `verifier` was made from `password`. Anything that is not SCRAM (e.g. MD5) does not fit.
pub(super) fn fits(verifier: &str, password: &Secret) -> bool {
    parse(verifier).is_some_and(|parsed| parsed.stored_key == stored_key(&parsed, password))
}

/// The last comparison, since one takes thousands of hash rounds and the status asks each second.
#[derive(Default)]
pub(super) struct VerifierMemory(Option<(String, Secret, bool)>);

impl VerifierMemory {
    /// As [`fits`]; computes only if the verifier or the password is another one than last time.
    pub(super) fn fits(&mut self, verifier: &str, password: &Secret) -> bool {
        match &self.0 {
            Some((known, of, fits)) if known == verifier && of == password => *fits,
            _ => {
                let fits = fits(verifier, password);
                self.0 = Some((verifier.to_owned(), password.clone(), fits));
                fits
            }
        }
    }
}

struct Parsed {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
}

fn parse(verifier: &str) -> Option<Parsed> {
    let mut parts = verifier.strip_prefix("SCRAM-SHA-256$")?.split(['$', ':']);
    let iterations: NonZeroU32 = parts.next()?.parse().ok()?;
    let salt = STANDARD.decode(parts.next()?).ok()?;
    let stored_key = STANDARD.decode(parts.next()?).ok()?;
    (iterations.get() <= ITERATIONS_LIMIT).then_some(Parsed {
        iterations,
        salt,
        stored_key,
    })
}

fn stored_key(parsed: &Parsed, password: &Secret) -> Vec<u8> {
    // A password that SASLprep forbids is taken as it is, as the server and libpq do.
    let text = password.expose();
    let prepared = stringprep::saslprep(text).unwrap_or(text.into());
    let mut salted = [0; KEY_BYTES];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        parsed.iterations,
        &parsed.salt,
        prepared.as_bytes(),
        &mut salted,
    );
    let client_key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salted), b"Client Key");
    digest::digest(&digest::SHA256, client_key.as_ref())
        .as_ref()
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_verifier_fits_its_password_and_no_other() {
        for text in [
            "x",
            "it's \\ a:b \"c\" $1",
            "påsswörd ☃",
            " ",
            "\u{a0}ß",
            "bell\u{7}",
        ] {
            let verifier = verifier(&secret(text));
            assert!(fits(&verifier, &secret(text)), "{text:?}");
            assert!(!fits(&verifier, &secret("other")), "{text:?}");
        }
    }

    #[test]
    fn the_rfc_7677_example_fits() {
        // Salt and rounds of RFC 7677, section 3 (password "pencil"); keys computed with Python's hashlib.
        let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert!(fits(verifier, &secret("pencil")));
    }

    #[test]
    fn what_is_no_verifier_fits_nothing() {
        for text in [
            "",
            "md5b1b55b2b0e1c9b6d1ff5b7b5f8f3d1a0",
            "SCRAM-SHA-256$",
            "SCRAM-SHA-256$0:AAAA$AAAA:AAAA",
            "SCRAM-SHA-256$4294967295:AAAA$AAAA:AAAA",
            "SCRAM-SHA-256$4096:!$AAAA:AAAA",
        ] {
            assert!(!fits(text, &secret("")), "{text:?}");
        }
    }

    #[test]
    fn the_memory_does_not_outlive_a_change() {
        let mut memory = VerifierMemory::default();
        let (one, two) = (verifier(&secret("one")), verifier(&secret("two")));
        for _ in 0..2 {
            assert!(memory.fits(&one, &secret("one")));
            assert!(!memory.fits(&one, &secret("two")));
            assert!(memory.fits(&two, &secret("two")));
        }
    }
}
