//! An S3 server in memory: as much of the protocol as a bucket of backups needs, and faults on demand.
//!
//! Source: Amazon S3 API reference (`PutObject` with `If-None-Match` and `If-Match`, `GetObject` with ranges, `ListObjectsV2`,
//! `DeleteObjects`, multipart uploads). Signatures are not checked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Pass,
    /// An answer of 500, without anything done.
    Error,
    /// The connection ends in the middle of the body, without anything done.
    Cut,
    /// Everything is done, but the answer does not arrive.
    Deaf,
}

type Fates = Box<dyn FnMut(&str) -> Fate + Send>;

/// A request that waits for its fate.
pub(crate) struct Held {
    arrives: Receiver<()>,
    go_on: Sender<Fate>,
}

impl Held {
    /// Whether it has come by now.
    pub(crate) fn arrived(&self) -> bool {
        self.arrives.try_recv().is_ok()
    }

    pub(crate) fn go_on(self, fate: Fate) {
        self.go_on.send(fate).ok();
    }
}

/// A bucket, whatever its name.
pub(crate) struct S3 {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    objects: Mutex<BTreeMap<String, Object>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<u32, Vec<u8>>>>,
    fates: Mutex<Fates>,
    /// Whether an object must or must not be there does not matter to it, as to some stores.
    unconditional: AtomicBool,
    counter: AtomicU64,
}

#[derive(Clone)]
struct Object {
    content: Arc<Vec<u8>>,
    etag: String,
}

pub(crate) struct Request {
    pub(crate) method: String,
    /// As it came, without the query.
    pub(crate) path: String,
    /// What follows the path's first part, or the second with an account before the container.
    pub(crate) key: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl S3 {
    pub(crate) fn start() -> Self {
        Self::start_at(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    pub(crate) fn start_at(address: IpAddr) -> Self {
        let state = Arc::new(State {
            objects: Mutex::default(),
            uploads: Mutex::default(),
            fates: Mutex::new(Box::new(|_| Fate::Pass)),
            unconditional: AtomicBool::new(false),
            counter: AtomicU64::new(1),
        });
        let served = Arc::clone(&state);
        let address = listen_at(address, move |stream| {
            let fate = |line: &str| {
                let mut fates = served.fates.lock().expect("lock");
                fates(line)
            };
            serve(stream, 1, fate, |request| served.answer(request))
        });
        Self { address, state }
    }

    /// From now on requests end so; told are method and path with the query.
    pub(crate) fn set_fates(&self, fates: impl FnMut(&str) -> Fate + Send + 'static) {
        *self.state.fates.lock().expect("lock") = Box::new(fates);
    }

    /// From now on `If-None-Match` and `If-Match` are ignored.
    pub(crate) fn ignore_conditions(&self) {
        self.state.unconditional.store(true, Ordering::Relaxed);
    }

    /// The request that `asked` wants is held, and all that come after it, until [`Held::go_on`].
    pub(crate) fn hold(&self, asked: impl Fn(&str) -> bool + Send + 'static) -> Held {
        let (arrived, arrives) = channel();
        let (go_on, goes_on) = channel::<Fate>();
        let mut held = false;
        let fates = move |line: &str| {
            if held || !asked(line) {
                return Fate::Pass;
            }
            held = true;
            arrived.send(()).ok();
            goes_on.recv().unwrap_or(Fate::Cut)
        };
        *self.state.fates.lock().expect("lock") = Box::new(fates);
        Held { arrives, go_on }
    }

    /// Content as it is; `None` if there is none.
    pub(crate) fn content(&self, key: &str) -> Option<Vec<u8>> {
        let objects = self.state.objects.lock().expect("lock");
        objects.get(key).map(|object| object.content.to_vec())
    }

    /// As another client would write it, or with `None` delete it.
    pub(crate) fn set(&self, key: &str, content: Option<&[u8]>) {
        let etag = self.state.etag();
        let mut objects = self.state.objects.lock().expect("lock");
        match content {
            Some(content) => {
                let content = Arc::new(content.to_vec());
                objects.insert(key.to_owned(), Object { content, etag });
            }
            None => drop(objects.remove(key)),
        }
    }

    /// The keys that there are, in order.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.objects.lock().expect("lock").keys().cloned().collect()
    }
}

/// Each connection gets a thread, which ends when `next` has no more to say; the address.
pub(crate) fn listen(next: impl Fn(&TcpStream) -> Option<()> + Send + Sync + 'static) -> SocketAddr {
    listen_at(IpAddr::V4(Ipv4Addr::LOCALHOST), next)
}

fn listen_at(address: IpAddr, next: impl Fn(&TcpStream) -> Option<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let next = Arc::new(next);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let next = Arc::clone(&next);
            thread::spawn(move || while next(&stream).is_some() {});
        }
    });
    address
}

/// One request; `None` if the connection has ended. The key begins after so many parts of the path.
pub(crate) fn serve(
    stream: &TcpStream,
    key_after: usize,
    fate: impl Fn(&str) -> Fate,
    handle: impl Fn(&Request) -> Answer,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let fate = fate(&format!("{method} {target}"));
    let length: usize = headers
        .get("content-length")
        .map_or(0, |length| length.parse().expect("a number"));
    let mut body = vec![0; if fate == Fate::Cut { length / 2 } else { length }];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = path.trim_start_matches('/').splitn(key_after + 1, '/');
    let key = key.skip(key_after).last().unwrap_or_default();
    let query = query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (name.to_owned(), decoded(value))
    });
    let request = Request {
        method,
        path: path.to_owned(),
        key: decoded(key),
        query: query.collect(),
        headers,
        body,
    };
    let answer = match fate {
        Fate::Cut => return None,
        Fate::Error => Answer::empty(500),
        Fate::Pass => handle(&request),
        Fate::Deaf => {
            handle(&request);
            return None;
        }
    };
    answer.send(stream, &request.method)
}

impl Answer {
    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub(crate) fn xml(body: String) -> Self {
        Self {
            status: 200,
            headers: vec![("Content-Type", "application/xml".to_owned())],
            body: body.into_bytes(),
        }
    }

    /// The content, or the part of it that was asked for.
    pub(crate) fn ranged(
        request: &Request,
        mut headers: Vec<(&'static str, String)>,
        content: &[u8],
    ) -> Self {
        let range = request
            .headers
            .get("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((from, to)) = range else {
            return Self {
                status: 200,
                headers,
                body: content.to_vec(),
            };
        };
        let length = content.len();
        let from: usize = from.parse().unwrap_or(0);
        let to = to.parse().map_or(length, |to: usize| (to + 1).min(length));
        headers.push((
            "Content-Range",
            format!("bytes {from}-{}/{length}", to.saturating_sub(1)),
        ));
        Self {
            status: 206,
            headers,
            body: content[from..to].to_vec(),
        }
    }

    fn send(&self, mut stream: &TcpStream, method: &str) -> Option<()> {
        let mut head = format!(
            "HTTP/1.1 {} x\r\nContent-Length: {}\r\n",
            self.status,
            self.body.len()
        );
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").ok()?;
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        if method == "HEAD" {
            Some(())
        } else {
            stream.write_all(&self.body).ok()
        }
    }
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        let has = |name| request.query.contains_key(name);
        match request.method.as_str() {
            "PUT" if has("partNumber") => self.put_part(request),
            "PUT" => self.put(request),
            "POST" if has("uploads") => self.begin_upload(),
            "POST" if has("uploadId") => self.complete_upload(request),
            "POST" if has("delete") => self.delete_many(request),
            "DELETE" if has("uploadId") => {
                self.uploads
                    .lock()
                    .expect("lock")
                    .remove(&request.query["uploadId"]);
                Answer::empty(204)
            }
            "DELETE" => {
                self.objects.lock().expect("lock").remove(&request.key);
                Answer::empty(204)
            }
            "GET" if has("list-type") => self.list(request),
            "GET" | "HEAD" => self.get(request),
            _ => Answer::empty(501),
        }
    }

    fn put(&self, request: &Request) -> Answer {
        let mut objects = self.objects.lock().expect("lock");
        let known = objects.get(&request.key);
        let unmet = (request.headers.contains_key("if-none-match") && known.is_some())
            || request
                .headers
                .get("if-match")
                .is_some_and(|wanted| known.is_none_or(|known| known.etag != *wanted));
        if unmet && !self.unconditional.load(Ordering::Relaxed) {
            return Answer::empty(412);
        }
        let etag = self.etag();
        objects.insert(
            request.key.clone(),
            Object {
                content: Arc::new(request.body.clone()),
                etag: etag.clone(),
            },
        );
        Answer {
            headers: vec![("ETag", etag)],
            ..Answer::empty(200)
        }
    }

    fn get(&self, request: &Request) -> Answer {
        let Some(object) = self.objects.lock().expect("lock").get(&request.key).cloned() else {
            return Answer::empty(404);
        };
        let headers = vec![
            ("ETag", object.etag),
            ("Last-Modified", "Sat, 21 Nov 2026 17:00:00 GMT".to_owned()),
        ];
        Answer::ranged(request, headers, &object.content)
    }

    fn list(&self, request: &Request) -> Answer {
        let of = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let (prefix, delimiter) = (of("prefix"), of("delimiter"));
        let (mut contents, mut folders) = (String::new(), Vec::new());
        for (key, object) in self
            .objects
            .lock()
            .expect("lock")
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
        {
            let rest = &key[prefix.len()..];
            if let Some(at) = rest.find(&delimiter).filter(|_| !delimiter.is_empty()) {
                folders.push(format!("{prefix}{}", &rest[..=at]));
                continue;
            }
            write!(
                contents,
                "<Contents><Key>{key}</Key><LastModified>2026-11-21T17:00:00.000Z</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
                object.etag,
                object.content.len()
            )
            .expect("a string");
        }
        folders.dedup();
        let folders: String = folders
            .iter()
            .flat_map(|folder| {
                [
                    "<CommonPrefixes><Prefix>",
                    folder.as_str(),
                    "</Prefix></CommonPrefixes>",
                ]
            })
            .collect();
        Answer::xml(format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{folders}</ListBucketResult>"
        ))
    }

    fn begin_upload(&self) -> Answer {
        let id = format!("upload-{}", self.counter.fetch_add(1, Ordering::Relaxed));
        self.uploads
            .lock()
            .expect("lock")
            .insert(id.clone(), BTreeMap::new());
        Answer::xml(format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        ))
    }

    fn put_part(&self, request: &Request) -> Answer {
        let number = request.query["partNumber"].parse().expect("a number");
        match self
            .uploads
            .lock()
            .expect("lock")
            .get_mut(&request.query["uploadId"])
        {
            Some(parts) => parts.insert(number, request.body.clone()),
            None => return Answer::empty(404),
        };
        Answer {
            headers: vec![("ETag", self.etag())],
            ..Answer::empty(200)
        }
    }

    fn complete_upload(&self, request: &Request) -> Answer {
        let Some(parts) = self
            .uploads
            .lock()
            .expect("lock")
            .remove(&request.query["uploadId"])
        else {
            return Answer::empty(404);
        };
        let content: Vec<u8> = parts.into_values().flatten().collect();
        let etag = self.etag();
        let object = Object {
            content: Arc::new(content),
            etag: etag.clone(),
        };
        self.objects
            .lock()
            .expect("lock")
            .insert(request.key.clone(), object);
        Answer::xml(format!(
            "<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
        ))
    }

    fn delete_many(&self, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body);
        let mut deleted = String::new();
        for part in text.split("<Key>").skip(1) {
            let key = part.split("</Key>").next().unwrap_or_default();
            self.objects.lock().expect("lock").remove(key);
            write!(deleted, "<Deleted><Key>{key}</Key></Deleted>").expect("a string");
        }
        Answer::xml(format!("<DeleteResult>{deleted}</DeleteResult>"))
    }

    fn etag(&self) -> String {
        format!("\"{:032x}\"", self.counter.fetch_add(1, Ordering::Relaxed))
    }
}

fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let byte = part
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.expect("two hexadecimal digits"));
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).expect("utf-8")
}
