//! Where the cluster is that an operator's command is about, and who of it can be asked.
//!
//! A demo by its folder, a member by its address, inside a pod its own sidecar. Secrets come as files.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;

use crate::core::cluster::table::size_text;
use crate::demo::run_directories;
use crate::demo::state::PodState;
use crate::peers::{RequestError, get_json};

use super::serve::SOCKET_NAME;
use super::{ExitStatus, Failure, file_status};

const ASK_LIMIT: Duration = Duration::from_secs(2);
const NEXT_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_TOKEN_BYTES: usize = 64 * 1024;

/// Where the cluster is.
#[derive(Args, Debug)]
pub struct Place {
    /// A demo's folder
    #[arg(long, env = "PODGRES_DEMO_DIR", conflicts_with = "url")]
    pub dir: Option<PathBuf>,
    /// A member's HTTP address, e.g. http://10.0.0.7:8008 [default: this pod's own sidecar]
    #[arg(long, env = "PODGRES_URL")]
    pub url: Option<String>,
    /// Folder shared by the pod's containers
    #[arg(long, env = "PODGRES_RUN_DIR", default_value = "/run/podgres", hide = true)]
    pub run_dir: PathBuf,
}

impl Place {
    /// Every member that may be asked for what it sees.
    fn urls(&self) -> Result<Vec<String>, Failure> {
        if let Some(directory) = &self.dir {
            let state = super::demo::state(directory)?;
            let url = |pod: &PodState| format!("http://{}", SocketAddr::new(pod.address, state.ports.http));
            return Ok(state.pods.iter().map(url).collect());
        }
        Ok(vec![self.url.clone().unwrap_or_else(|| self.own_sidecar())])
    }

    /// Every member that may be given an order: over its unix socket where there is one.
    fn order_urls(&self) -> Result<Vec<String>, Failure> {
        let Some(directory) = &self.dir else {
            return self.urls();
        };
        let state = super::demo::state(directory)?;
        let socket = |pod: &PodState| {
            let mut found = run_directories(directory, &pod.name)
                .into_iter()
                .map(|run| run.join(SOCKET_NAME));
            found.find(|socket| socket.exists()).map(|socket| unix(&socket))
        };
        let sockets: Vec<String> = state.pods.iter().filter_map(socket).collect();
        if sockets.is_empty() {
            let closed = |pod: &PodState| {
                run_directories(directory, &pod.name)
                    .iter()
                    .any(|run| is_closed(run))
            };
            return Err(if state.pods.iter().any(closed) {
                Failure::new(
                    ExitStatus::Permission,
                    "the pods' run folders are closed to this user",
                )
                .hint("The demo is somebody else's: give the command as that user, or as root.")
            } else {
                Failure::new(
                    ExitStatus::Overdue,
                    "no pod of the demo can be reached over its socket",
                )
                .hint("Does the demo run?")
            });
        }
        Ok(sockets)
    }

    fn own_sidecar(&self) -> String {
        let socket = self.run_dir.join(SOCKET_NAME);
        if socket.exists() {
            return unix(&socket);
        }
        "http://127.0.0.1:8008".to_owned()
    }

    /// The view of the first member that answers.
    pub(super) async fn cluster(&self) -> Result<Value, Failure> {
        let (_, cluster) = first(self.urls()?, "/cluster").await?;
        Ok(cluster)
    }

    /// What the first member that answers, or the named one, has at `path`.
    pub(super) async fn page(&self, member: Option<&str>, path: &str) -> Result<Value, Failure> {
        let urls = match member {
            Some(name) => vec![self.member_url(name).await?],
            None => self.urls()?,
        };
        first(urls, path).await.map(|(_, page)| page)
    }

    async fn member_url(&self, name: &str) -> Result<String, Failure> {
        let cluster = self.cluster().await?;
        let members = cluster["members"].as_array();
        let mut members = members.into_iter().flatten();
        let member = members.find(|member| member["name"] == name).ok_or_else(|| {
            Failure::new(
                ExitStatus::Settings,
                format!("the cluster has no member \"{name}\""),
            )
        })?;
        let unheard = || Failure::new(ExitStatus::Overdue, format!("\"{name}\" was never heard"));
        let host = member["host"]
            .as_str()
            .and_then(|host| host.parse().ok())
            .ok_or_else(unheard)?;
        let port = member["http_port"]
            .as_u64()
            .and_then(|port| port.try_into().ok())
            .ok_or_else(unheard)?;
        Ok(format!("http://{}", SocketAddr::new(host, port)))
    }

    /// The first member that answers, where it takes orders, and its view.
    pub(super) async fn somebody(&self) -> Result<(String, Value), Failure> {
        first(self.order_urls()?, "/cluster").await
    }
}

/// Whether a folder is there that this user may not look into.
fn is_closed(folder: &Path) -> bool {
    let found = std::fs::symlink_metadata(folder.join(SOCKET_NAME));
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

fn unix(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

async fn first(urls: Vec<String>, path: &str) -> Result<(String, Value), Failure> {
    let asked = urls.into_iter().map(|url| {
        let asked = url.clone();
        let page = async move {
            let page = get_json(&asked, path, ASK_LIMIT).await;
            page.map_err(|error| unanswered(&error))
        };
        (url, page)
    });
    best(asked).await
}

/// No answer: for want of an address that could be one, or of somebody there.
pub(super) fn unanswered(error: &RequestError) -> Failure {
    let status = match error {
        RequestError::Url { .. } => ExitStatus::Settings,
        _ => ExitStatus::Overdue,
    };
    Failure::from_error(status, error)
}

/// The first answer, by preference one that knows of a primary: a member that has just begun knows of nobody yet.
///
/// The next one is asked as soon as those before are silent for a moment: a frozen member holds nobody up.
pub(super) async fn best(
    asked: impl IntoIterator<Item = (String, impl Future<Output = Result<Value, Failure>>)>,
) -> Result<(String, Value), Failure> {
    let asked = asked.into_iter().zip(0..).map(async |((whom, page), turn)| {
        tokio::time::sleep(NEXT_PAUSE * turn).await;
        (whom, page.await)
    });
    let mut answers: FuturesUnordered<_> = asked.collect();
    let (mut lacking, mut reasons, mut status) = (None, Vec::new(), ExitStatus::Overdue);
    while let Some((whom, answer)) = answers.next().await {
        match answer {
            Ok(page) if knows_of_primary(&page) => return Ok((whom, page)),
            Ok(page) => lacking = lacking.or(Some((whom, page))),
            Err(failure) if failure.status == ExitStatus::Settings => return Err(failure),
            Err(failure) => {
                if failure.status == ExitStatus::Permission {
                    status = ExitStatus::Permission;
                }
                let detail = failure.detail.map(|detail| format!(": {detail}"));
                reasons.push(format!(
                    "{whom}: {}{}",
                    failure.message,
                    detail.unwrap_or_default()
                ));
            }
        }
    }
    lacking.ok_or_else(|| {
        Failure::new(status, "no member answers")
            .detail(reasons.join("; "))
            .hint(
                "Give --dir for a demo, --url for a member's HTTP port, or --cluster for one in Kubernetes.",
            )
    })
}

/// Whatever does not list members is as good from anybody.
fn knows_of_primary(page: &Value) -> bool {
    let members = page["members"].as_array();
    members.is_none_or(|members| members.iter().any(|member| member["role"] == "primary"))
}

/// The operator's token.
#[derive(Args, Debug)]
pub struct TokenArgument {
    /// File with the token that the members' --admin-token-file holds; for --url
    #[arg(long, env = "PODGRES_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

impl TokenArgument {
    pub(super) fn read(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.token_file else {
            return Ok(None);
        };
        let invalid = |status, problem: String| {
            Failure::new(status, format!("invalid value for PODGRES_TOKEN_FILE: {problem}"))
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            invalid(
                file_status(&error),
                format!("could not read \"{}\": {error}", path.display()),
            )
        })?;
        let token = text.trim();
        let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
        if token.is_empty() || !plain || token.len() > LONGEST_TOKEN_BYTES {
            let limit = size_text(LONGEST_TOKEN_BYTES as u64);
            let problem = format!("\"{}\" does not hold one word of at most {limit}", path.display());
            return Err(invalid(ExitStatus::Settings, problem));
        }
        Ok(Some(token.to_owned()))
    }
}
