//! An Azure blob container in memory: as much of the protocol as backups need. It refuses what is not signed with its key.
//!
//! Source: Azure Blob service REST API (`Put Blob` with `If-None-Match` and `If-Match`, `Put Block`, `Put Block List`,
//! `Get Blob` with ranges, `List Blobs`, `Blob Batch`) and "Authorize with Shared Key".

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::s3_server::{Answer, Fate, Request, listen, serve};

pub(crate) const ACCOUNT: &str = "account";
/// Base64, as the portal shows one.
pub(crate) const KEY: &str = "c2VjcmV0IGtleSBvZiBhIHRlc3QgYWNjb3VudA==";
const MODIFIED: &str = "Sat, 21 Nov 2026 17:00:00 GMT";

/// A storage account with one container, whatever its name.
pub(crate) struct Azure {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    blobs: Mutex<BTreeMap<String, Blob>>,
    blocks: Mutex<BTreeMap<(String, String), Vec<u8>>>,
    counter: AtomicU64,
    refused: AtomicU64,
}

#[derive(Clone)]
struct Blob {
    content: Arc<Vec<u8>>,
    etag: String,
}

impl Azure {
    pub(crate) fn start() -> Self {
        let state = Arc::new(State::default());
        let served = Arc::clone(&state);
        let address =
            listen(move |stream| serve(stream, 2, |_| Fate::Pass, |request| served.answer(request)));
        Self { address, state }
    }

    /// The blobs that there are, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.state.blobs.lock().expect("lock").keys().cloned().collect()
    }

    /// Blobs that came in blocks, and requests with a wrong signature.
    pub(crate) fn refused(&self) -> u64 {
        self.state.refused.load(Ordering::Relaxed)
    }
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        if !signed(request) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Answer::empty(403);
        }
        let component = request.query.get("comp").map_or("", String::as_str);
        match (request.method.as_str(), component) {
            ("PUT", "block") => self.put_block(request),
            ("PUT", "blocklist") => self.put_block_list(request),
            ("PUT", "") => self.put(request),
            ("GET", "list") => self.list(request),
            ("POST", "batch") => self.batch(request),
            ("GET" | "HEAD", "") => self.get(request),
            _ => Answer::empty(400),
        }
    }

    fn put(&self, request: &Request) -> Answer {
        if request.headers.get("x-ms-blob-type").map(String::as_str) != Some("BlockBlob") {
            return Answer::empty(400);
        }
        let mut blobs = self.blobs.lock().expect("lock");
        let known = blobs.get(&request.key);
        if request.headers.contains_key("if-none-match") && known.is_some() {
            return Answer::empty(409);
        }
        let wanted = request.headers.get("if-match");
        if wanted.is_some_and(|wanted| known.is_none_or(|known| known.etag != *wanted)) {
            return Answer::empty(412);
        }
        let blob = self.blob(request.body.clone());
        blobs.insert(request.key.clone(), blob.clone());
        stored(&blob)
    }

    fn blob(&self, content: Vec<u8>) -> Blob {
        Blob {
            content: Arc::new(content),
            etag: format!("\"0x{:016X}\"", self.counter.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn put_block(&self, request: &Request) -> Answer {
        let block = (request.key.clone(), request.query["blockid"].clone());
        self.blocks
            .lock()
            .expect("lock")
            .insert(block, request.body.clone());
        Answer::empty(201)
    }

    fn put_block_list(&self, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body);
        let mut content = Vec::new();
        let mut blocks = self.blocks.lock().expect("lock");
        for part in text.split("<Uncommitted>").skip(1) {
            let id = part.split("</Uncommitted>").next().unwrap_or_default();
            match blocks.remove(&(request.key.clone(), id.to_owned())) {
                Some(block) => content.extend(block),
                None => return Answer::empty(400),
            }
        }
        let blob = self.blob(content);
        self.blobs
            .lock()
            .expect("lock")
            .insert(request.key.clone(), blob.clone());
        stored(&blob)
    }

    fn get(&self, request: &Request) -> Answer {
        let Some(blob) = self.blobs.lock().expect("lock").get(&request.key).cloned() else {
            return Answer::empty(404);
        };
        let headers = vec![("ETag", blob.etag), ("Last-Modified", MODIFIED.to_owned())];
        Answer::ranged(request, headers, &blob.content)
    }

    fn list(&self, request: &Request) -> Answer {
        let of = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let (prefix, delimiter) = (of("prefix"), of("delimiter"));
        let (mut found, mut folders) = (String::new(), Vec::new());
        for (name, blob) in self.blobs.lock().expect("lock").iter() {
            let Some(rest) = name.strip_prefix(&prefix) else {
                continue;
            };
            if let Some(at) = rest.find(&delimiter).filter(|_| !delimiter.is_empty()) {
                folders.push(format!(
                    "<BlobPrefix><Name>{prefix}{}</Name></BlobPrefix>",
                    &rest[..=at]
                ));
                continue;
            }
            let (etag, bytes) = (&blob.etag, blob.content.len());
            write!(
                found,
                "<Blob><Name>{name}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified><Etag>{etag}</Etag>\
                 <Content-Length>{bytes}</Content-Length><Content-Type>application/octet-stream</Content-Type>\
                 </Properties></Blob>"
            )
            .expect("a string");
        }
        folders.dedup();
        let folders = folders.concat();
        Answer::xml(format!(
            "<EnumerationResults><Blobs>{found}{folders}</Blobs><NextMarker/></EnumerationResults>"
        ))
    }

    /// Only deletions, each of which is signed itself.
    fn batch(&self, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body);
        let mut answers = String::new();
        for part in text.split("--batch_").filter(|part| part.contains("DELETE ")) {
            let id = part
                .split("Content-ID: ")
                .nth(1)
                .and_then(|rest| rest.split("\r\n").next());
            let path = part
                .split("DELETE ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            let blob = path.and_then(|path| path.trim_start_matches('/').splitn(3, '/').nth(2));
            let known = blob.and_then(|blob| self.blobs.lock().expect("lock").remove(blob));
            let status = if known.is_some() {
                "202 Accepted"
            } else {
                "404 Not Found"
            };
            write!(
                answers,
                "--answers\r\nContent-Type: application/http\r\nContent-ID: {}\r\n\r\nHTTP/1.1 {status}\r\n\
                 x-ms-version: 2023-11-03\r\n\r\n",
                id.unwrap_or_default()
            )
            .expect("a string");
        }
        answers.push_str("--answers--\r\n");
        Answer {
            status: 202,
            headers: vec![("Content-Type", "multipart/mixed; boundary=answers".to_owned())],
            body: answers.into_bytes(),
        }
    }
}

fn stored(blob: &Blob) -> Answer {
    Answer {
        headers: vec![
            ("ETag", blob.etag.clone()),
            ("Last-Modified", MODIFIED.to_owned()),
        ],
        ..Answer::empty(201)
    }
}

/// Whether the `Authorization` header is what the account's key makes of the request.
fn signed(request: &Request) -> bool {
    let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
    let length = Some(header("content-length")).filter(|length| *length != "0");
    let mut lines = vec![request.method.clone(), String::new(), String::new()];
    lines.push(length.unwrap_or_default().to_owned());
    let names = [
        "content-md5",
        "content-type",
        "date",
        "if-modified-since",
        "if-match",
        "if-none-match",
    ];
    lines.extend(names.map(|name| header(name).to_owned()));
    lines.extend(["if-unmodified-since", "range"].map(|name| header(name).to_owned()));
    let own = request
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-ms-"));
    lines.extend(own.map(|(name, value)| format!("{name}:{value}")));
    lines.push(format!("/{ACCOUNT}{}", request.path));
    lines.extend(
        request
            .query
            .iter()
            .map(|(name, value)| format!("{name}:{value}")),
    );
    let secret = BASE64_STANDARD.decode(KEY).expect("base64");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
    let signature = ring::hmac::sign(&key, lines.join("\n").as_bytes());
    header("authorization")
        == format!(
            "SharedKey {ACCOUNT}:{}",
            BASE64_STANDARD.encode(signature.as_ref())
        )
}
