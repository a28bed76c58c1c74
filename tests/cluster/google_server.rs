//! A bucket of Google's cloud storage in memory: as much of the protocol as backups need. It refuses who brings neither a
//! token that a service account's key has signed nor one that its metadata server has given out.
//!
//! Source: Cloud Storage XML API (`PUT Object` with `x-goog-if-generation-match`, multipart uploads, `GET Object` with ranges,
//! `GET Bucket` version 2), AIP-4111 (self-signed JWT) and "Authenticate workloads" (the metadata server).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::Value;

use crate::authority::openssl;
use crate::s3_server::{Answer, Fate, Request, listen, serve};
use crate::user::give_away;

const ACCOUNT: &str = "backup@project.iam.gserviceaccount.com";
const MODIFIED: &str = "Sat, 21 Nov 2026 17:00:00 GMT";
const MACHINE_TOKEN: &str = "ya29.of-the-machine";

/// Cloud storage with one bucket, whatever its name, and one service account.
pub(crate) struct Google {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// Of the service account's key, as PKCS #1.
    public_key: Vec<u8>,
    objects: Mutex<BTreeMap<String, Object>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<u32, Object>>>,
    /// As Google's generations, it never gives the same number twice.
    counter: AtomicU64,
    machine_has_account: bool,
    refused: AtomicU64,
    /// Conditional writes over something, and uploads in parts that were put together.
    updated: AtomicU64,
    joined: AtomicU64,
}

#[derive(Clone)]
struct Object {
    content: Arc<Vec<u8>>,
    generation: u64,
}

impl Google {
    /// `key` is a service account's, see [`service_account`]; the machine has one of its own if so said.
    pub(crate) fn start(key: &Path, machine_has_account: bool) -> Self {
        let state = Arc::new(State {
            public_key: std::fs::read(key.with_extension("public")).expect("the public key"),
            objects: Mutex::default(),
            uploads: Mutex::default(),
            counter: AtomicU64::new(1_763_740_800_000_000),
            machine_has_account,
            refused: AtomicU64::new(0),
            updated: AtomicU64::new(0),
            joined: AtomicU64::new(0),
        });
        let served = Arc::clone(&state);
        let address =
            listen(move |stream| serve(stream, 1, |_| Fate::Pass, |request| served.answer(request)));
        Self { address, state }
    }

    /// The objects that there are, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.state.objects.lock().expect("lock").keys().cloned().collect()
    }

    /// Somebody else writes an object, without any condition.
    pub(crate) fn overwrite(&self, name: &str, content: &str) {
        let object = self.state.object(content.as_bytes().to_vec());
        self.state
            .objects
            .lock()
            .expect("lock")
            .insert(name.to_owned(), object);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.state.objects.lock().expect("lock").remove(name);
    }

    /// Requests without a good token.
    pub(crate) fn refused(&self) -> u64 {
        self.state.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn updated(&self) -> u64 {
        self.state.updated.load(Ordering::Relaxed)
    }

    pub(crate) fn joined(&self) -> u64 {
        self.state.joined.load(Ordering::Relaxed)
    }
}

/// A new service account's key file in `folder`, as the console gives one, and the public key beside it.
pub(crate) fn service_account(folder: &Path, name: &str) -> PathBuf {
    let (pem, public) = (format!("{name}.pem"), format!("{name}.public"));
    openssl(
        folder,
        &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        &["-out", &pem],
    );
    openssl(
        folder,
        &["rsa", "-in", &pem, "-RSAPublicKey_out"],
        &["-outform", "DER", "-out", &public],
    );
    let key = serde_json::json!({
        "type": "service_account",
        "project_id": "project",
        "private_key_id": name,
        "private_key": std::fs::read_to_string(folder.join(&pem)).expect("a key"),
        "client_email": ACCOUNT,
        "token_uri": "https://oauth2.googleapis.com/token",
    });
    let path = folder.join(format!("{name}.json"));
    std::fs::write(&path, key.to_string()).expect("key file");
    give_away(&path);
    path
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        if request.path.starts_with("/computeMetadata/") {
            return self.machine(request);
        }
        if !self.known(request) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Answer::empty(401);
        }
        let has = |name| request.query.contains_key(name);
        match request.method.as_str() {
            "PUT" if has("partNumber") => self.put_part(request),
            "PUT" => self.put(request),
            "POST" if has("uploads") => self.begin_upload(),
            "POST" if has("uploadId") => self.complete_upload(request),
            "DELETE" if has("uploadId") => {
                let known = self
                    .uploads
                    .lock()
                    .expect("lock")
                    .remove(&request.query["uploadId"]);
                Answer::empty(if known.is_some() { 204 } else { 404 })
            }
            "DELETE" => {
                let known = self.objects.lock().expect("lock").remove(&request.key);
                Answer::empty(if known.is_some() { 204 } else { 404 })
            }
            "GET" if has("list-type") => self.list(request),
            "GET" | "HEAD" => self.get(request),
            _ => Answer::empty(400),
        }
    }

    /// The metadata server, which answers nobody who does not say that he means it.
    fn machine(&self, request: &Request) -> Answer {
        let flavor = ("Metadata-Flavor", "Google".to_owned());
        if request.headers.get("metadata-flavor") != Some(&flavor.1) {
            return Answer::empty(403);
        }
        let (status, body) = if self.machine_has_account {
            let token = serde_json::json!({
                "access_token": MACHINE_TOKEN, "expires_in": 3599, "token_type": "Bearer"
            });
            (200, token.to_string())
        } else {
            (404, "no service account".to_owned())
        };
        Answer {
            status,
            headers: vec![flavor],
            body: body.into_bytes(),
        }
    }

    fn known(&self, request: &Request) -> bool {
        let authorization = request.headers.get("authorization");
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        token.is_some_and(|token| {
            (self.machine_has_account && token == MACHINE_TOKEN) || self.signed(token).is_some()
        })
    }

    /// Whether a token is the service account's, for cloud storage and for now.
    fn signed(&self, token: &str) -> Option<()> {
        let (message, signature) = token.rsplit_once('.')?;
        let decoded = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key)
            .verify(message.as_bytes(), &decoded(signature)?)
            .ok()?;
        let (header, claims) = message.split_once('.')?;
        let header: Value = serde_json::from_slice(&decoded(header)?).ok()?;
        let claims: Value = serde_json::from_slice(&decoded(claims)?).ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let good = header["alg"] == "RS256"
            && [&claims["iss"], &claims["sub"]]
                .iter()
                .all(|who| **who == ACCOUNT)
            && claims["scope"].as_str()?.ends_with("/auth/cloud-platform")
            && (claims["iat"].as_u64()?..claims["exp"].as_u64()?).contains(&now);
        good.then_some(())
    }

    fn put(&self, request: &Request) -> Answer {
        let mut objects = self.objects.lock().expect("lock");
        let known = objects.get(&request.key).map_or(0, |known| known.generation);
        let wanted = request.headers.get("x-goog-if-generation-match");
        if wanted.is_some_and(|wanted| *wanted != known.to_string()) {
            return Answer::empty(412);
        }
        if wanted.is_some() && known > 0 {
            self.updated.fetch_add(1, Ordering::Relaxed);
        }
        let object = self.object(request.body.clone());
        objects.insert(request.key.clone(), object.clone());
        stored(&object)
    }

    fn object(&self, content: Vec<u8>) -> Object {
        Object {
            content: Arc::new(content),
            generation: self.counter.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn get(&self, request: &Request) -> Answer {
        let Some(object) = self.objects.lock().expect("lock").get(&request.key).cloned() else {
            return Answer::empty(404);
        };
        Answer::ranged(request, headers(&object), &object.content)
    }

    fn list(&self, request: &Request) -> Answer {
        let of = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let (prefix, delimiter) = (of("prefix"), of("delimiter"));
        let (mut found, mut folders) = (String::new(), Vec::new());
        for (name, object) in self.objects.lock().expect("lock").iter() {
            let Some(rest) = name.strip_prefix(&prefix) else {
                continue;
            };
            if let Some(at) = rest.find(&delimiter).filter(|_| !delimiter.is_empty()) {
                let folder = &rest[..=at];
                folders.push(format!(
                    "<CommonPrefixes><Prefix>{prefix}{folder}</Prefix></CommonPrefixes>"
                ));
                continue;
            }
            let (generation, bytes) = (object.generation, object.content.len());
            write!(
                found,
                "<Contents><Key>{name}</Key><Generation>{generation}</Generation><MetaGeneration>1</MetaGeneration>\
                 <LastModified>2026-11-21T17:00:00.000Z</LastModified><ETag>{}</ETag><Size>{bytes}</Size></Contents>",
                etag(object)
            )
            .expect("a string");
        }
        folders.dedup();
        let folders = folders.concat();
        Answer::xml(format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{found}{folders}</ListBucketResult>"
        ))
    }

    fn begin_upload(&self) -> Answer {
        let id = format!("upload-{}", self.counter.fetch_add(1, Ordering::Relaxed));
        let mut uploads = self.uploads.lock().expect("lock");
        uploads.insert(id.clone(), BTreeMap::new());
        Answer::xml(format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        ))
    }

    fn put_part(&self, request: &Request) -> Answer {
        let number = request.query["partNumber"].parse().expect("a number");
        let mut uploads = self.uploads.lock().expect("lock");
        let Some(parts) = uploads.get_mut(&request.query["uploadId"]) else {
            return Answer::empty(404);
        };
        let part = self.object(request.body.clone());
        parts.insert(number, part.clone());
        stored(&part)
    }

    /// Of the parts that the request names, in its order, each with the tag that it was given.
    fn complete_upload(&self, request: &Request) -> Answer {
        let mut uploads = self.uploads.lock().expect("lock");
        let Some(parts) = uploads.remove(&request.query["uploadId"]) else {
            return Answer::empty(404);
        };
        let text = String::from_utf8_lossy(&request.body);
        let mut content = Vec::new();
        for named in text.split("<Part>").skip(1) {
            let of = |name: &str| Some(named.split_once(&format!("<{name}>"))?.1.split_once('<')?.0);
            let part = of("PartNumber").and_then(|number| parts.get(&number.parse().ok()?));
            match part {
                Some(part) if of("ETag") == Some(&etag(part)) => content.extend_from_slice(&part.content),
                _ => return Answer::empty(400),
            }
        }
        let object = self.object(content);
        let tag = etag(&object);
        let generation = ("x-goog-generation", object.generation.to_string());
        self.objects
            .lock()
            .expect("lock")
            .insert(request.key.clone(), object);
        self.joined.fetch_add(1, Ordering::Relaxed);
        let mut answer = Answer::xml(format!(
            "<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
        ));
        answer.headers.push(generation);
        answer
    }
}

fn etag(object: &Object) -> String {
    format!("\"{:032x}\"", object.generation)
}

fn headers(object: &Object) -> Vec<(&'static str, String)> {
    vec![
        ("ETag", etag(object)),
        ("x-goog-generation", object.generation.to_string()),
        ("Last-Modified", MODIFIED.to_owned()),
    ]
}

fn stored(object: &Object) -> Answer {
    Answer {
        headers: headers(object),
        ..Answer::empty(200)
    }
}
