//! Backups and WAL to a bucket of Google's cloud storage: made, listed, proven, restored, pruned and locked as in a folder,
//! with every kind of credentials.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use podgres::store::{Store, StoreSettings};
use tokio::io::AsyncWriteExt as _;

use crate::backup::{answer, ask_restored, text, told};
use crate::google_server::{Google, service_account};
use crate::harness::{LIMIT, Start, podgres, programs, wait_for};
use crate::kit::{open_folder, shared};
use crate::user::give_away;

const BUCKET: &str = "gs://my-bucket/some/prefix";
const LOCK: &str = "some/prefix/lock.json";
const KEY_FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const METADATA: &str = "GCE_METADATA_HOST";

/// A bucket, and the key of its service account.
struct Lab {
    folder: tempfile::TempDir,
    key: PathBuf,
    server: Google,
}

impl Lab {
    fn new() -> Self {
        let folder = open_folder();
        give_away(folder.path());
        let key = service_account(folder.path(), "own");
        let server = Google::start(&key, true);
        Self { folder, key, server }
    }

    /// Without any credentials, and where none can be found by chance.
    fn bare(&self, words: &[&str]) -> Command {
        let mut command = podgres();
        for name in [
            "GOOGLE_SERVICE_ACCOUNT",
            "GOOGLE_SERVICE_ACCOUNT_KEY",
            KEY_FILE,
            METADATA,
        ] {
            command.env_remove(name);
        }
        command
            .args(words)
            .env("PG_BINDIR", programs(16))
            .env("HOME", self.folder.path())
            .env("GOOGLE_BASE_URL", format!("http://{}", self.server.address));
        command
    }

    fn with(&self, name: &str, value: &str, words: &[&str]) -> Output {
        self.bare(words).env(name, value).output().expect("podgres")
    }

    fn with_key(&self, words: &[&str]) -> Command {
        let mut command = self.bare(words);
        command.env(KEY_FILE, &self.key);
        command
    }
}

#[test]
fn a_google_bucket_keeps_proven_backups() {
    let (lab, demo) = (Lab::new(), shared());
    let backup = ["backup", "--dir", text(&demo.directory), "--to", BUCKET];
    answer(&lab.with_key(&backup).output().expect("podgres"));
    let logical = [&backup[..], &["--kind", "logical"]].concat();
    answer(&lab.with(METADATA, &lab.server.address.to_string(), &logical));
    let key = std::fs::read_to_string(&lab.key).expect("the key");
    let verify = ["verify", "--all", "--from", BUCKET];
    let verified = answer(&lab.with("GOOGLE_SERVICE_ACCOUNT_KEY", &key, &verify));
    assert_eq!(verified.matches(": verified\n").count(), 2, "{verified}");
    // As `gcloud auth application-default login` leaves it.
    let login = lab.folder.path().join("application_default_credentials.json");
    std::fs::copy(&lab.key, &login).expect("copy");
    give_away(&login);
    let restored = lab.folder.path().join("restored");
    let restore = [
        "restore",
        "--from",
        BUCKET,
        "--to-backup",
        "--pgdata",
        text(&restored),
    ];
    answer(&lab.with("CLOUDSDK_CONFIG", text(lab.folder.path()), &restore));
    assert_eq!(ask_restored(16, &restored, "SELECT 1"), "1");
    one_run_at_a_time(&lab, &backup);
    assert_eq!(lab.server.refused(), 0);
    a_wrong_key(&lab, &backup);
}

/// The lock is an object with a condition: another run waits for it, and its holder sees that somebody has taken it.
fn one_run_at_a_time(lab: &Lab, backup: &[&str]) {
    let mut slow = lab.with_key(&[backup, &["--max-rate", "200kB"]].concat());
    let mut first = slow
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("backup");
    let locked = || lab.server.names().iter().any(|name| name == LOCK);
    assert!(wait_for(LIMIT, locked), "the first run does not begin");
    let second = lab.with_key(backup).output().expect("backup");
    assert_eq!(second.status.code(), Some(65), "{}", told(&second));
    assert!(lab.server.updated() > 0, "it was refused without a heartbeat");
    assert!(
        first.try_wait().expect("wait").is_none(),
        "it ended too early to be robbed"
    );
    lab.server
        .overwrite(LOCK, r#"{"who": "somebody else", "token": 1, "beat": 1}"#);
    let robbed = first.wait_with_output().expect("wait");
    assert_eq!(robbed.status.code(), Some(69), "{}", told(&robbed));
    assert!(told(&robbed).contains("the lock of the destination was lost"));
    assert!(locked(), "it took away what is another one's");
    lab.server.remove(LOCK);
    let pruned = lab.with_key(&[backup, &["--keep", "1"]].concat());
    answer(&{ pruned }.output().expect("backup"));
    let names = lab.server.names();
    let records = names.iter().filter(|name| name.ends_with("/backup.json")).count();
    assert_eq!(
        records, 3,
        "the verified ones of each kind, and the newest: {names:?}"
    );
    assert!(!names.iter().any(|name| name == LOCK), "{names:?}");
}

fn a_wrong_key(lab: &Lab, backup: &[&str]) {
    let other = service_account(lab.folder.path(), "other");
    for words in [backup, &["backups", "--from", BUCKET]] {
        let before = lab.server.refused();
        let output = lab.with(KEY_FILE, text(&other), words);
        assert_eq!(output.status.code(), Some(77), "{words:?}: {}", told(&output));
        assert!(lab.server.refused() > before);
    }
}

#[test]
fn credentials_that_are_missing_or_unusable_are_told_without_being_shown() {
    let folder = open_folder();
    give_away(folder.path());
    let key = service_account(folder.path(), "own");
    let server = Google::start(&key, false);
    let address = server.address.to_string();
    let lab = Lab { folder, key, server };
    let list = ["backups", "--from", BUCKET];
    // Nobody is there: asked for some seconds, since in a new pod it may only be late.
    let mut nobody = lab.bare(&list);
    let nobody = nobody
        .env(METADATA, "127.0.0.1:1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podgres");
    let broken = lab.folder.path().join("broken.json");
    std::fs::write(&broken, r#"{"private_key": "geheim", "client_email": 1}"#).expect("file");
    for (name, value, status, problem) in [
        (
            METADATA,
            address.as_str(),
            77,
            "says 404 Not Found: no service account",
        ),
        (
            KEY_FILE,
            "/nowhere/key.json",
            64,
            "could not read \"/nowhere/key.json\"",
        ),
        (KEY_FILE, text(&broken), 64, "it has no \"client_email\""),
        (
            "GOOGLE_SERVICE_ACCOUNT_KEY",
            "\"geheim\"",
            64,
            "GOOGLE_SERVICE_ACCOUNT_KEY holds no credentials",
        ),
    ] {
        let output = lab.with(name, value, &list);
        assert_eq!(output.status.code(), Some(status), "{}", told(&output));
        assert!(told(&output).contains(problem), "{}", told(&output));
        assert!(!told(&output).contains("geheim"), "{}", told(&output));
    }
    let nobody = nobody.wait_with_output().expect("wait");
    assert_eq!(nobody.status.code(), Some(77), "{}", told(&nobody));
    let problem = "GOOGLE_APPLICATION_CREDENTIALS is not set, and the machine has no service account";
    assert!(told(&nobody).contains(problem), "{}", told(&nobody));
    assert_eq!(lab.server.refused(), 0, "something was asked without a token");
}

/// As PostgreSQL's archiver and recovery do it; a file that is there is never written over.
#[test]
fn wal_goes_to_a_google_bucket_and_comes_back() {
    let lab = Lab::new();
    let data = lab.folder.path().join("data");
    for name in ["global", "pg_wal"] {
        std::fs::create_dir_all(data.join(name)).expect("folder");
    }
    std::fs::write(data.join("global/pg_control"), 7_u64.to_ne_bytes()).expect("file");
    let name = "000000010000000000000001";
    let path = format!("pg_wal/{name}");
    let run = |words: &[&str]| lab.with_key(words).current_dir(&data).output().expect("podgres");
    let push = || run(&["wal-push", "--to", BUCKET, &path]);
    std::fs::write(data.join(&path), name.repeat(3_000)).expect("file");
    answer(&push());
    answer(&push());
    let into = lab.folder.path().join("into");
    answer(&run(&["wal-fetch", "--from", BUCKET, name, text(&into)]));
    assert_eq!(std::fs::read_to_string(&into).expect("read"), name.repeat(3_000));
    std::fs::write(data.join(&path), "another server's").expect("file");
    let output = push();
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    let end = run(&[
        "wal-fetch",
        "--from",
        BUCKET,
        "000000010000000000000002",
        text(&into),
    ]);
    assert_eq!(end.status.code(), Some(1), "{}", told(&end));
}

/// The server's environment has none of this: it comes by a file in its run directory.
#[test]
fn a_server_archives_to_a_google_bucket() {
    let lab = Lab::new();
    let settings = [
        format!("PODGRES_ARCHIVE_DESTINATION={BUCKET}"),
        format!("{KEY_FILE}={}", lab.key.display()),
        format!("GOOGLE_BASE_URL=http://{}", lab.server.address),
    ];
    let mut start = Start::new(16).with(&["--replicas", "1"]);
    for setting in &settings {
        start = start.with(&["--set", setting]);
    }
    let demo = start.run();
    demo.wait_streaming(0);
    let file = demo.sql(&["--member", "0"], "SELECT pg_walfile_name(pg_switch_wal())");
    let archived = || lab.server.names().iter().any(|name| name.contains(&file));
    assert!(wait_for(LIMIT, archived), "{file}: {:?}", lab.server.names());
    assert_eq!(lab.server.refused(), 0);
}

#[test]
fn a_large_object_goes_to_a_google_bucket_in_parts() {
    let lab = Lab::new();
    let mut settings = StoreSettings::new(BUCKET.parse().expect("a destination"));
    for (name, value) in [
        ("google_application_credentials", lab.key.display().to_string()),
        ("google_base_url", format!("http://{}/", lab.server.address)),
    ] {
        settings.google.insert(name.to_owned(), value);
    }
    let content: Vec<u8> = (0..20_u32 << 20).map(|at| (at % 251) as u8).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let back = runtime.block_on(write_and_read(&settings, Bytes::from(content.clone())));
    assert!(back == content, "another content came back");
    assert_eq!(lab.server.joined(), 1);
    assert_eq!(lab.server.refused(), 0);
}

async fn write_and_read(settings: &StoreSettings, content: Bytes) -> Vec<u8> {
    let store = Store::open(settings).expect("a store");
    let mut writer = store.writer("large");
    writer.put(content).await.expect("written");
    writer.shutdown().await.expect("put together");
    let pieces = store.read("large").await.expect("read");
    let pieces: Vec<Bytes> = pieces.try_collect().await.expect("pieces");
    pieces.concat()
}
