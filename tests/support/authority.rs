//! A certificate authority of the tests' own, made with the `openssl` program.

#![allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::user::{give_away, temporary_directory};

/// `ca.crt`, and the key to sign with.
pub(crate) struct Authority {
    pub(crate) directory: TempDir,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let directory = temporary_directory();
        openssl(
            directory.path(),
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ],
            &[
                "-keyout",
                "ca.key",
                "-out",
                "ca.crt",
                "-days",
                "2",
                "-subj",
                &format!("/CN={name}"),
            ],
        );
        Self { directory }
    }

    /// Writes `tls.crt` and `tls.key` for `names` (e.g. `DNS:pg-0.pg`) to `folder`.
    pub(crate) fn issue(&self, folder: &Path, names: &str) {
        let own = self.directory.path();
        openssl(
            own,
            &[
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ],
            &["-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=server"],
        );
        std::fs::write(own.join("names"), format!("subjectAltName={names}\n")).expect("names");
        openssl(
            own,
            &[
                "x509",
                "-req",
                "-in",
                "tls.csr",
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
            ],
            &["-days", "2", "-extfile", "names", "-out", "tls.crt"],
        );
        for file in ["tls.crt", "tls.key"] {
            std::fs::copy(own.join(file), folder.join(file)).expect("copy");
            give_away(&folder.join(file));
        }
    }
}

/// Runs the program there, and sees that it succeeds.
pub(crate) fn openssl(folder: &Path, what: &[&str], how: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .stdin(Stdio::null())
        .args(what)
        .args(how)
        .output()
        .expect("the openssl program");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
