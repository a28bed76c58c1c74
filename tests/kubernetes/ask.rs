//! What a cluster is asked: HTTP by way of the API server, SQL by way of a pod's psql.

use std::process::{Child, Stdio};

use crate::cluster::Cluster;
use crate::kubectl;

impl Cluster<'_> {
    /// What a pod's HTTP says, by way of the API server; `None` if it does not answer, or not well.
    pub(crate) fn http(&self, method: &str, pod: &str, port: u16, path: &str) -> Option<String> {
        let (status, text) = self.http_form(method, pod, port, (path, "")).ok()?;
        (status < 400).then_some(text)
    }

    /// The same with a form as a browser sends it: status and body, whatever they are.
    pub(crate) fn http_form(
        &self,
        method: &str,
        pod: &str,
        port: u16,
        (path, form): (&str, &str),
    ) -> kube::Result<(u16, String)> {
        let uri = format!(
            "/api/v1/namespaces/{}/pods/{pod}:{port}/proxy{path}",
            self.namespace
        );
        let request = hyper::Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(kube::client::Body::from(form.as_bytes().to_vec()))
            .expect("a request");
        let answer = async {
            let answer = self.world.asks_once.send(request).await?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect_bytes().await?;
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        self.world.now(answer)
    }

    /// What `pg_is_in_recovery()` is on each member, asked at the same time.
    pub(crate) fn recovering(&self) -> Vec<String> {
        let ask = |ordinal| {
            let arguments = sql_arguments(
                &format!("pg-{ordinal}"),
                ("127.0.0.1", 5432),
                "SELECT pg_is_in_recovery()",
            );
            let mut command = kubectl::kubectl();
            command.args(["-n", &self.namespace]).args(arguments);
            command.stdout(Stdio::piped()).stderr(Stdio::null());
            command.spawn().expect("kubectl runs")
        };
        let asked: Vec<Child> = (0..self.replicas()).map(ask).collect();
        let answer = |child: Child| {
            let output = child.wait_with_output().expect("kubectl ends");
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        asked.into_iter().map(answer).collect()
    }

    /// SQL from a pod at another one's address, whatever the API says of that; given up after some seconds, which a statement's own time limit would take
    /// for an acknowledgement where a commit waits for standbys.
    pub(crate) fn ask_past_the_routes(&self, pod: &str, address: &str, sql: &str) -> Result<String, String> {
        const SCRIPT: &str = "PGCONNECT_TIMEOUT=5 PGPASSWORD=$(cat /etc/podgres/secret/password) \
             exec timeout 8 psql -XAtq -v ON_ERROR_STOP=1 -h \"$0\" -U postgres -d postgres -c \"$1\"";
        self.try_kubectl(&[
            "exec", pod, "-c", "postgres", "--", "sh", "-c", SCRIPT, address, sql,
        ])
    }

    /// Runs SQL in a pod's PostgreSQL container, against HOST and port; what it complained about if it failed.
    pub(crate) fn try_sql(&self, pod: &str, server: (&str, u16), sql: &str) -> Result<String, String> {
        let run = sql_arguments(pod, server, sql);
        let run: Vec<&str> = run.iter().map(String::as_str).collect();
        self.try_kubectl(&run).map(|text| text.trim_end().to_owned())
    }

    /// SQL on a member itself.
    pub(crate) fn sql(&self, pod: &str, sql: &str) -> String {
        self.try_sql(pod, ("127.0.0.1", 5432), sql)
            .unwrap_or_else(|error| panic!("{pod}: {sql}: {error}"))
    }

    /// SQL by one of the client Services.
    pub(crate) fn sql_by(&self, service: &str, sql: &str) -> Result<String, String> {
        let pods = self.pods();
        let (client, _) = pods.iter().find(|(_, pod)| pod.ready).ok_or("no pod is ready")?;
        self.try_sql(client, (service, 5432), sql)
    }

    /// Which member answers on the read-only Service: a standby's slot bears its name.
    pub(crate) fn read_by(&self) -> String {
        let slot = self.sql_by("pg-ro", "SELECT current_setting('primary_slot_name')");
        let slot = slot.expect("a read");
        slot.trim_start_matches("podgres_").replace('_', "-")
    }

    /// The addresses that a Service leads to.
    pub(crate) fn led_to(&self, service: &str) -> Vec<String> {
        let addresses = "jsonpath={.subsets[*].addresses[*].ip}";
        let found = self.kubectl(&["get", "endpoints", service, "-o", addresses]);
        found.split_whitespace().map(str::to_owned).collect()
    }
}

/// What kubectl is given to run SQL in a pod's PostgreSQL container.
fn sql_arguments(pod: &str, (host, port): (&str, u16), sql: &str) -> Vec<String> {
    const SCRIPT: &str = "PGCONNECT_TIMEOUT=5 PGPASSWORD=$(cat /etc/podgres/secret/password) \
         exec psql -XAtq -v ON_ERROR_STOP=1 -h \"$0\" -p \"$1\" -U postgres -d postgres -c \"$2\"";
    let port = port.to_string();
    let run = [
        "exec", pod, "-c", "postgres", "--", "sh", "-c", SCRIPT, host, &port, sql,
    ];
    run.map(str::to_owned).to_vec()
}
