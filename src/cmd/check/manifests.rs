//! Where the objects come from that `core::manifests` looks at: YAML files, or the API.

use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory as _;
use serde_json::{Value, json};

use crate::core::manifests;
use crate::kube::{ApiClient, Reach};

use super::super::lease_orders::kubeconfig;
use super::super::{CommandLine, ExitStatus, Failure, read_text};
use super::{Arguments, Finding};

const API_LIMIT: Duration = Duration::from_secs(10);
/// Objects of one answer.
const PAGE: u32 = 50;

/// A kind of objects that could not be listed, and why.
pub(super) type Unseen = (&'static str, String);

/// What cannot work in the objects.
pub(super) fn findings(objects: &[Value], unseen: &[Unseen]) -> Vec<Finding> {
    let settings = settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let known = |found: manifests::Finding| {
        let mut finding = Finding::new(format!("{}: {}", found.object, found.problem), &found.hint);
        if let Some((kind, why)) = unseen.iter().find(|(kind, _)| found.unless == Some(kind)) {
            finding.certain = false;
            finding.problem = format!(
                "{}, unless a {kind} says so: not looked at, {why}",
                finding.problem
            );
        }
        finding
    };
    manifests::check(objects, &settings)
        .into_iter()
        .map(known)
        .collect()
}

/// The variables of every verb that runs in a pod, and of secrets, which are no flags.
fn settings() -> Vec<String> {
    let mut settings: Vec<String> = [
        "PODGRES_INITDB_SCRIPTS",
        "PODGRES_REPLICATION_USER",
        "PODGRES_REPLICATION_USER_FILE",
        "PODGRES_REPLICATION_PASSWORD",
        "PODGRES_REPLICATION_PASSWORD_FILE",
    ]
    .map(str::to_owned)
    .to_vec();
    for verb in CommandLine::command().get_subcommands() {
        let variables = verb.get_arguments().filter_map(clap::Arg::get_env);
        settings.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    }
    let whole = CommandLine::command();
    let variables = whole.get_arguments().filter_map(clap::Arg::get_env);
    settings.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    settings
}

/// All documents of all files.
pub(super) fn read(files: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let mut objects = Vec::new();
    for file in files {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&read_text(file)?).map_err(|error| {
            Failure::new(
                ExitStatus::Settings,
                format!("\"{}\" is not YAML", file.display()),
            )
            .detail(error.to_string())
        })?;
        objects.extend(documents.into_iter().flat_map(items));
    }
    Ok(objects)
}

/// `kubectl get -o yaml` has a list of objects as one.
fn items(mut document: Value) -> Vec<Value> {
    if document["kind"] != "List" {
        return vec![document];
    }
    match document["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// The StatefulSet, whatever in its namespace it may refer to, and what is granted in all namespaces as far as one may see that.
pub(super) async fn live(set: &str, arguments: &Arguments) -> Result<(Vec<Value>, Vec<Unseen>), Failure> {
    let client = ApiClient::new(reach(arguments)?, API_LIMIT);
    let namespace = match &arguments.pod.namespace {
        Some(given) => given.clone(),
        None => client
            .namespace()
            .await
            .map_err(|error| Failure::from_error(ExitStatus::Settings, &error))?,
    };
    let core = format!("/api/v1/namespaces/{namespace}");
    let rights = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
    let sets = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets");
    let named = |path: &str, name: &str| format!("{path}?fieldSelector=metadata.name%3D{name}");
    let mut objects = list(&client, "StatefulSet", &named(&sets, set)).await?;
    let Some(found) = objects.first() else {
        let problem = format!("there is no StatefulSet \"{set}\" in namespace \"{namespace}\"");
        return Err(
            Failure::new(ExitStatus::Settings, problem).hint("Give --namespace, --context or --kubeconfig.")
        );
    };
    // Those of others may be large.
    let mut wanted: Vec<_> = manifests::config_maps(found)
        .iter()
        .map(|name| ("ConfigMap", named(&format!("{core}/configmaps"), name)))
        .collect();
    wanted.extend([
        ("Service", format!("{core}/services")),
        ("ServiceAccount", format!("{core}/serviceaccounts")),
        ("Role", format!("{rights}/roles")),
        ("RoleBinding", format!("{rights}/rolebindings")),
    ]);
    for (kind, path) in wanted {
        objects.extend(list(&client, kind, &path).await?);
    }
    let budgets = format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets");
    // Who may not see them, or has a cluster that knows them by an earlier name only, is told of the rest.
    objects.extend(
        list(&client, "PodDisruptionBudget", &budgets)
            .await
            .unwrap_or_default(),
    );
    let unseen = cluster_wide(&client, &mut objects).await?;
    Ok((objects, unseen))
}

/// ClusterRoleBindings, and the ClusterRoles that bindings name.
async fn cluster_wide(client: &ApiClient, objects: &mut Vec<Value>) -> Result<Vec<Unseen>, Failure> {
    const RIGHTS: &str = "/apis/rbac.authorization.k8s.io/v1";
    let mut unseen = Vec::new();
    match list(
        client,
        manifests::CLUSTER_WIDE,
        &format!("{RIGHTS}/clusterrolebindings"),
    )
    .await
    {
        Ok(found) => objects.extend(found),
        Err(failure) if failure.status == ExitStatus::Permission => {
            unseen.push((manifests::CLUSTER_WIDE, failure.message));
        }
        Err(failure) => return Err(failure),
    }
    for name in manifests::cluster_roles(objects) {
        let path = format!("{RIGHTS}/clusterroles?fieldSelector=metadata.name%3D{name}");
        match list(client, "ClusterRole", &path).await {
            Ok(found) => objects.extend(found),
            // What it grants is not judged then.
            Err(failure) if failure.status == ExitStatus::Permission => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(unseen)
}

fn reach(arguments: &Arguments) -> Result<Reach, Failure> {
    let path = kubeconfig(arguments.pod.lease.kubeconfig.as_deref())?;
    let context = arguments.context.clone();
    Ok(Reach::Kubeconfig { path, context })
}

/// The objects of a list, which do not say their kind themselves, page by page: an answer has a greatest length.
async fn list(client: &ApiClient, kind: &str, path: &str) -> Result<Vec<Value>, Failure> {
    let sign = if path.contains('?') { '&' } else { '?' };
    let first = format!("{path}{sign}limit={PAGE}");
    let (mut objects, mut after) = page(client, kind, &first).await?;
    while let Some(token) = after {
        let more = page(client, kind, &format!("{first}&continue={token}")).await?;
        objects.extend(more.0);
        after = more.1;
    }
    Ok(objects)
}

/// One of them, and the token for the next.
async fn page(client: &ApiClient, kind: &str, path: &str) -> Result<(Vec<Value>, Option<String>), Failure> {
    let answer = client.request("GET", path, "application/json", None).await;
    let mut answer = answer.map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))?;
    if answer.status != 200 {
        let status = match answer.status {
            401 | 403 => ExitStatus::Permission,
            _ => ExitStatus::Overdue,
        };
        let problem = format!("could not list objects of kind {kind} ({})", answer.status);
        let reason = answer.body["message"].as_str().unwrap_or("no reason given");
        return Err(Failure::new(status, problem).detail(reason));
    }
    let Value::Array(mut found) = answer.body["items"].take() else {
        return Ok((Vec::new(), None));
    };
    for object in &mut found {
        object["kind"] = json!(kind);
    }
    let token = answer.body["metadata"]["continue"].as_str();
    let token = token.filter(|token| !token.is_empty()).map(str::to_owned);
    Ok((found, token))
}
